"""Every way of torch to train in parallel, and every collective; prints what each rank has in the end, as JSON."""

import json
import sys
from contextlib import nullcontext
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
from torch import nn
from torch.distributed.algorithms.join import Join
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.pipelining import PipelineStage, ScheduleInterleaved1F1B, schedules
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

WIDTH = 12


def model(layers=4):
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()) for _ in range(layers))).double()


def batch(seed):
    return torch.randn(24, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def train(net, optimizer=None, steps=3):
    optimizer = optimizer or torch.optim.Adam(net.parameters(), lr=0.01)
    losses = []
    for step in range(steps):
        loss = net(batch(100 * step + dist.get_rank())).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def ddp():
    return train(DistributedDataParallel(model(), bucket_cap_mb=0.001))


def fsdp2():
    net = model()
    for layer in net:
        fully_shard(layer)
    return train(fully_shard(net))


def fsdp2_of_the_root():
    return train(fully_shard(model()))


def zero():
    net = DistributedDataParallel(model())
    return train(net, ZeroRedundancyOptimizer(net.parameters(), torch.optim.Adam, lr=0.01))


def tensor_parallel():
    net = model(2)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    parallelize_module(net, mesh, {"0.0": ColwiseParallel(), "1.0": RowwiseParallel()})
    losses = []
    for step in range(3):
        out = net[1](net[0][1](net[0][0](batch(step))))
        loss = out.square().mean()
        net.zero_grad()
        loss.backward()
        losses.append(loss.item())
        with torch.no_grad():
            for parameter in net.parameters():
                parameter -= 0.1 * parameter.grad
    return losses


def pipeline(schedule, stages_per_rank, microbatches):
    rank, ranks = dist.get_rank(), dist.get_world_size()
    net, count = model(ranks * stages_per_rank), ranks * stages_per_rank
    mine = [rank + ranks * i for i in range(stages_per_rank)]
    if schedule is schedules.ScheduleZBVZeroBubble:
        mine = [rank, count - 1 - rank]
    stages = [PipelineStage(net[i], i, count, torch.device("cpu")) for i in mine]
    runner = schedule(
        stages if stages_per_rank > 1 else stages[0],
        microbatches,
        loss_fn=lambda out, target: (out - target).square().mean(),
    )
    losses = []
    for step in range(2):
        inputs = (batch(step),) if 0 in mine else ()
        if count - 1 in mine:
            found = []
            runner.step(*inputs, target=batch(step + 50), losses=found)
            losses += [loss.item() for loss in found]
        else:
            runner.step(*inputs)
    return [*losses, *(parameter.grad.sum().item() for i in mine for parameter in net[i].parameters())]


def gpipe():
    return pipeline(schedules.ScheduleGPipe, 1, 4)


def one_forward_one_backward():
    return pipeline(schedules.Schedule1F1B, 1, 6)


def interleaved():
    return pipeline(ScheduleInterleaved1F1B, 2, 2 * dist.get_world_size())


def zero_bubble():
    return pipeline(schedules.ScheduleInterleavedZeroBubble, 2, 2 * dist.get_world_size())


def zero_bubble_v():
    return pipeline(schedules.ScheduleZBVZeroBubble, 2, 2 * dist.get_world_size())


def given(shape=(5,), dtype=torch.float64):
    rank = dist.get_rank()
    return (torch.arange(torch.Size(shape).numel()).reshape(shape) * 3 + 7 * rank + 1).to(dtype)


OPS = ("SUM", "AVG", "PRODUCT", "MIN", "MAX", "BAND", "BOR", "BXOR")


def reduced(collective, asynchronous):
    results = []
    for name in OPS:
        for dtype in (torch.float64, torch.float32, torch.int64):
            if ("B" in name) != (dtype == torch.int64 and "B" in name):
                continue
            if name == "AVG":
                continue  # gloo has none for all
            x = collective(given(dtype=dtype), getattr(dist.ReduceOp, name), asynchronous)
            results += x.double().tolist()
    return results


def done(work, asynchronous):
    if asynchronous:
        work.wait()


def all_reduces(asynchronous=False):
    def call(x, op, asynchronous):
        done(dist.all_reduce(x, op, async_op=asynchronous), asynchronous)
        return x

    return reduced(call, asynchronous)


def reduces(asynchronous=False):
    def call(x, op, asynchronous):
        done(dist.reduce(x, 1, op, async_op=asynchronous), asynchronous)
        return x if dist.get_rank() == 1 else torch.zeros(1)

    return reduced(call, asynchronous)


def reduce_scatters(asynchronous=False):
    ranks = dist.get_world_size()

    def whole(x, op, asynchronous):
        part = torch.zeros(2, dtype=x.dtype)
        lots = torch.cat([x[:2] + i for i in range(ranks)])
        done(dist.reduce_scatter_tensor(part, lots, op, async_op=asynchronous), asynchronous)
        return part

    def listed(x, op, asynchronous):
        part = torch.zeros(2, dtype=x.dtype)
        done(
            dist.reduce_scatter(part, [x[:2] * (i + 1) for i in range(ranks)], op, async_op=asynchronous), asynchronous
        )
        return part

    return reduced(whole, asynchronous) + reduced(listed, asynchronous)


def reduce_scatters_async():
    return reduce_scatters(True)


def movers(asynchronous=False):
    rank, ranks = dist.get_rank(), dist.get_world_size()
    results = []

    def take(work, *tensors):
        done(work, asynchronous)
        for tensor in tensors:
            results.extend(tensor.double().flatten().tolist())

    x = given()
    take(dist.broadcast(x, 1, async_op=asynchronous), x)
    gathered = [torch.zeros(5, dtype=torch.float64) for _ in range(ranks)]
    take(dist.all_gather(gathered, given(), async_op=asynchronous), *gathered)
    flat = torch.zeros(5 * ranks, dtype=torch.float64)
    take(dist.all_gather_into_tensor(flat, given(), async_op=asynchronous), flat)
    part = torch.zeros(2, dtype=torch.float64)
    take(dist.reduce_scatter_tensor(part, given((2 * ranks,)), async_op=asynchronous), part)
    inbox = [torch.zeros(5, dtype=torch.float64) for _ in range(ranks)] if rank == 0 else None
    take(dist.gather(given(), inbox, 0, async_op=asynchronous), *(inbox or ()))
    out = torch.zeros(3, dtype=torch.float64)
    lots = [given((3,)) + i for i in range(ranks)] if rank == 1 else None
    take(dist.scatter(out, lots, 1, async_op=asynchronous), out)
    boxes = [torch.zeros(2, dtype=torch.float64) for _ in range(ranks)]
    take(dist.all_to_all(boxes, [given((2,)) + i for i in range(ranks)], async_op=asynchronous), *boxes)
    target = torch.zeros(2 * ranks, dtype=torch.float64)
    take(dist.all_to_all_single(target, given((2 * ranks,)), async_op=asynchronous), target)
    sizes = [1 + (rank + peer) % 3 for peer in range(ranks)]
    target = torch.zeros(sum(sizes), 2, dtype=torch.float64)
    take(dist.all_to_all_single(target, given((sum(sizes), 2)), sizes, sizes, async_op=asynchronous), target)
    return results


def all_reduces_async():
    return all_reduces(True)


def reduces_async():
    return reduces(True)


def movers_async():
    return movers(True)


def coalesced():
    first, second = given((3,)), given((4,))
    dist.all_reduce_coalesced([first, second])
    return [*first.tolist(), *second.tolist()]


def objects():
    rank, ranks = dist.get_rank(), dist.get_world_size()
    gathered = [None] * ranks
    dist.all_gather_object(gathered, {"rank": rank, "list": list(range(rank))})
    shared = [f"from {rank}", rank]
    dist.broadcast_object_list(shared, 1)
    received = [None]
    dist.scatter_object_list(received, [[i] for i in range(ranks)], 0)
    inbox = [None] * ranks if rank == 0 else None
    dist.gather_object(rank, inbox, 0)
    return [gathered, shared, received, inbox]


def messages():
    rank, ranks = dist.get_rank(), dist.get_world_size()
    after, before = (rank + 1) % ranks, (rank - 1) % ranks
    box = torch.zeros(5, dtype=torch.float64)
    works = dist.batch_isend_irecv([dist.P2POp(dist.isend, given(), after), dist.P2POp(dist.irecv, box, before)])
    for work in works:
        work.wait()
    total = torch.zeros(5, dtype=torch.float64)
    if rank == 0:
        sources = []
        for _ in range(ranks - 1):
            one = torch.zeros(5, dtype=torch.float64)
            sources.append(dist.recv(one))
            total += one
        return [box.tolist(), total.tolist(), sorted(sources)]
    dist.send(given(), 0)
    return [box.tolist()]


def functionals():
    group = dist.group.WORLD
    ranks = dist.get_world_size()
    results = functional.all_reduce(given(), "sum", group).tolist()
    results += functional.all_gather_tensor(given(), 0, group).tolist()
    results += functional.reduce_scatter_tensor(given((2 * ranks,)), "sum", 0, group).tolist()
    results += functional.broadcast(given(), 1, group).tolist()
    results += functional.all_to_all_single(given((2 * ranks,)), None, None, group).tolist()
    return results


def groups():
    rank = dist.get_rank()
    pair = dist.new_group([0, 1])
    x = given()
    if rank < 2:
        dist.all_reduce(x, group=pair)
    mine, _ = dist.new_subgroups_by_enumeration([[i] for i in range(dist.get_world_size())])
    dist.all_reduce(x, group=mine)
    return x.tolist()


def barriers():
    dist.barrier()
    dist.monitored_barrier(timeout=timedelta(seconds=60))
    return []


def works():
    work = dist.all_reduce(x := given(), async_op=True)
    value = work.get_future().wait()[0].sum().item()
    work.wait()
    return [value, x.sum().item(), work.is_completed(), work.is_success(), work.exception() is None]


class Sometimes(nn.Module):
    """Has a buffer, and a layer that is not always used."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.other = model(2), nn.BatchNorm1d(WIDTH).double(), model(1)

    def forward(self, x):
        x = self.norm(self.first(x))
        return self.other(x) if x[0, 0] > 0 else x


def doubled_and_halved(state, bucket):
    work = dist.all_reduce(bucket.buffer() * 2, async_op=True)
    return torch.futures.collect_all([work.get_future()]).then(
        lambda all_of_them: all_of_them.value()[0].value()[0] / 2
    )


def uneven():
    rank, results = dist.get_rank(), []
    for net, options, hook in (
        (model(), {}, None),
        (model(), {"divide_by_initial_world_size": False}, None),
        (model(), {}, doubled_and_halved),
        (Sometimes(), {}, None),
    ):
        unused = isinstance(net, Sometimes)
        net = DistributedDataParallel(net, bucket_cap_mb=0.001, find_unused_parameters=unused)
        if hook is not None:
            net.register_comm_hook(None, hook)
        with net.join(**options):
            train(net, torch.optim.SGD(net.parameters(), lr=0.01), steps=1 + 2 * rank)
        results.append(sum(parameter.sum().item() for parameter in net.parameters()))
    return results


def uneven_with_zero():
    net = DistributedDataParallel(model())
    optimizer = ZeroRedundancyOptimizer(net.parameters(), torch.optim.Adam, lr=0.01)
    with Join([net, optimizer]):
        return train(net, optimizer, steps=1 + dist.get_rank())[:1]


def uneven_to_the_first_end():
    net = DistributedDataParallel(model())
    try:
        with net.join(throw_on_early_termination=True):
            train(net, steps=2 + dist.get_rank())
    except RuntimeError as error:
        return "exhausted all inputs" in str(error)


def unused_and_accumulated():
    net = DistributedDataParallel(Sometimes(), find_unused_parameters=True)
    for step in range(4):
        with net.no_sync() if step % 2 else nullcontext():
            net(batch(10 * step + dist.get_rank())).square().mean().backward()
    return [parameter.grad.sum().item() for parameter in net.parameters()]


def static_graph():
    net = DistributedDataParallel(model(), static_graph=True, bucket_cap_mb=0.001)
    return train(net)


def futures():
    first, second = given(), given((3,))
    one, two = (dist.all_reduce(x, async_op=True).get_future() for x in (first, second))
    both = torch.futures.collect_all([two.then(lambda it: 2 * it.value()[0]), one])
    later = both.then(lambda it: it.value()[0].wait().sum().item())
    seen = []
    three = dist.all_reduce(third := given(), async_op=True)
    three.get_future().then(lambda it: seen.append(it.value()[0].sum().item()))
    three.wait()
    four = dist.all_reduce(given(), async_op=True).get_future()
    while not four.done():
        pass
    return [later.wait(), one.wait()[0].tolist(), third.tolist(), seen, four.value()[0].tolist()]


def methods():
    """A group's own, in the forms that leave options out."""
    group, ranks = dist.group.WORLD, dist.get_world_size()
    x, y, box = given(), given(), [given() for _ in range(ranks)]
    group.allreduce(x).wait()
    group.allreduce([x], dist.ReduceOp.MAX).wait()
    group.broadcast(y, 1).wait()
    group.allgather(box, y + dist.get_rank()).wait()
    group.reduce_scatter(z := given(), box).wait()
    group.barrier().wait()
    future = group.allreduce(given()).get_future()
    return [it.tolist() for it in (x, y, *box, z, future.wait()[0])]


CASES = [
    ddp, fsdp2, fsdp2_of_the_root, zero, tensor_parallel, gpipe, one_forward_one_backward, interleaved, zero_bubble,
    zero_bubble_v, all_reduces, all_reduces_async, reduces, reduces_async,
    reduce_scatters, reduce_scatters_async, movers, movers_async, coalesced, objects,
    messages, functionals, groups, barriers, works, uneven, uneven_with_zero, uneven_to_the_first_end,
    unused_and_accumulated, static_graph, futures, methods,
]  # fmt: skip


def main():
    dist.init_process_group("gloo")
    wanted = sys.argv[1:]
    for case in CASES:
        if wanted and case.__name__ not in wanted:
            continue
        try:
            result = case()
        except (RuntimeError, NotImplementedError, ValueError, TypeError, AttributeError) as error:
            result = f"{type(error).__name__}: {error}"
        sys.stdout.write(json.dumps([dist.get_rank(), case.__name__, result]) + "\n")
        sys.stdout.flush()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
