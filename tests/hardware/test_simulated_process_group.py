import contextlib
from functools import partial

import pytest
import torch
import torch.distributed as dist
from simulated_ranks import NCCL, compute_for, execute, results
from torch.distributed import ReduceOp
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

from hardware.simulated.compute import Roofline
from hardware.simulated.network.topologies import Switch
from harness.errors import WorkerFailed

RANKS = [2, 3, 4, 7]
FAST = Switch({}, {}, 1e-6, 1e9)


def given(rank, size=6):
    return torch.randn(size, generator=torch.Generator().manual_seed(rank), dtype=torch.float64)


def everyones(num_ranks, size=6):
    return torch.stack([given(rank, size) for rank in range(num_ranks)])


REDUCED = {
    ReduceOp.SUM: lambda x: x.sum(0),
    ReduceOp.AVG: lambda x: x.mean(0),
    ReduceOp.PRODUCT: lambda x: x.prod(0),
    ReduceOp.MIN: lambda x: x.amin(0),
    ReduceOp.MAX: lambda x: x.amax(0),
}


def check(ranks, body, expected, **options):
    """`expected(rank)` is plain torch; rtol 1e-14: a few roundings of float64 in another order."""
    for rank, value in enumerate(results(body, ranks, network=FAST, **options)):
        torch.testing.assert_close(value, expected(rank), rtol=1e-14, atol=1e-15)


def finish(work):
    if work is not None:
        work.wait()


both = pytest.mark.parametrize("async_op", [False, True])
on_ranks = pytest.mark.parametrize("ranks", RANKS)


@on_ranks
@pytest.mark.parametrize("made", [float, lambda factor: torch.tensor([factor], dtype=torch.float64)])
def test_a_sum_of_multiples_has_a_factor_for_each_rank(ranks, made):
    def body(worker):
        op = dist._make_nccl_premul_sum(made(0.5 + worker.rank))
        whole, mine = given(worker.rank, 2 * ranks), torch.empty(2, dtype=torch.float64)
        dist.reduce_scatter_single(mine, whole, op)
        dist.all_reduce(whole, op)
        return torch.cat([whole, mine])

    def expected(rank):
        factors = torch.arange(ranks, dtype=torch.float64)[:, None] + 0.5
        total = (everyones(ranks, 2 * ranks) * factors).sum(0)
        return torch.cat([total, total.chunk(ranks)[rank]])

    check(ranks, body, expected, protocol=NCCL)


@pytest.mark.parametrize("call", [dist.all_reduce, lambda x: dist.broadcast(x, 0), lambda x: dist.reduce(x, 1)])
def test_autograd_does_not_see_what_a_collective_writes(call):  # nor does it with gloo
    def body(worker):
        x = torch.ones(3, requires_grad=True)
        y = x.exp()
        version = y._version
        call(y)
        return y._version == version

    assert results(body, 2) == [True, True]


@both
@on_ranks
@pytest.mark.parametrize("op", REDUCED, ids=str)
def test_all_reduce(ranks, op, async_op):
    def body(worker):
        x = given(worker.rank)
        finish(dist.all_reduce(x, op, async_op=async_op))
        return x

    check(ranks, body, lambda rank: REDUCED[op](everyones(ranks)))


@on_ranks
def test_all_reduce_is_bitwise_equal_on_all_ranks(ranks):
    def body(worker):
        x = given(worker.rank, 1000)
        dist.all_reduce(x)
        return x

    first, *others = results(body, ranks)
    assert all(torch.equal(first, other) for other in others)


@both
@on_ranks
def test_all_reduce_coalesced(ranks, async_op):
    def body(worker):
        x, y = given(worker.rank), given(worker.rank, 3).float()
        with dist._coalescing_manager(async_ops=async_op) as manager:
            dist.all_reduce(x)
            dist.all_reduce(y)
        manager.wait()
        return torch.cat([x, y.double()])

    def expected(rank):
        y = torch.stack([given(rank, 3).float() for rank in range(ranks)]).cumsum(0)[-1]
        return torch.cat([everyones(ranks).sum(0), y.double()])

    for rank, value in enumerate(results(body, ranks, network=FAST)):
        torch.testing.assert_close(value, expected(rank), rtol=1e-6, atol=1e-6)  # one of the two is float32


@both
@on_ranks
def test_broadcast(ranks, async_op):
    def body(worker):
        x = given(worker.rank)
        finish(dist.broadcast(x, src=1, async_op=async_op))
        return x

    check(ranks, body, lambda rank: given(1))


@both
@on_ranks
def test_reduce(ranks, async_op):
    def body(worker):
        x = given(worker.rank)
        finish(dist.reduce(x, dst=1, async_op=async_op))
        return x

    check(ranks, body, lambda rank: everyones(ranks).sum(0) if rank == 1 else given(rank))


@both
@on_ranks
def test_all_gather(ranks, async_op):
    def body(worker):
        parts = [torch.empty(6, dtype=torch.float64) for _ in range(ranks)]
        finish(dist.all_gather(parts, given(worker.rank), async_op=async_op))
        return torch.stack(parts)

    check(ranks, body, lambda rank: everyones(ranks))


@both
@on_ranks
def test_all_gather_single(ranks, async_op):
    def body(worker):
        whole = torch.empty(ranks * 2, 3, dtype=torch.float64)
        finish(dist.all_gather_single(whole, given(worker.rank).view(2, 3), async_op=async_op))
        return whole

    check(ranks, body, lambda rank: everyones(ranks).view(-1, 3))


@both
@on_ranks
@pytest.mark.parametrize("op", [ReduceOp.SUM, ReduceOp.AVG], ids=str)
def test_reduce_scatter(ranks, op, async_op):
    def body(worker):
        part = torch.empty(2, dtype=torch.float64)
        finish(dist.reduce_scatter(part, list(given(worker.rank, 2 * ranks).chunk(ranks)), op, async_op=async_op))
        return part

    check(ranks, body, lambda rank: REDUCED[op](everyones(ranks, 2 * ranks)).chunk(ranks)[rank])


@both
@on_ranks
def test_reduce_scatter_single(ranks, async_op):
    def body(worker):
        part = torch.empty(2, dtype=torch.float64)
        finish(dist.reduce_scatter_single(part, given(worker.rank, 2 * ranks), async_op=async_op))
        return part

    check(ranks, body, lambda rank: everyones(ranks, 2 * ranks).sum(0).chunk(ranks)[rank])


@both
@on_ranks
def test_gather(ranks, async_op):
    def body(worker):
        parts = [torch.zeros(6, dtype=torch.float64) for _ in range(ranks)] if worker.rank == 1 else None
        finish(dist.gather(given(worker.rank), parts, dst=1, async_op=async_op))
        return torch.stack(parts) if parts else torch.zeros(1)

    check(ranks, body, lambda rank: everyones(ranks) if rank == 1 else torch.zeros(1))


@both
@on_ranks
def test_scatter(ranks, async_op):
    def body(worker):
        part = torch.empty(2, dtype=torch.float64)
        parts = list(given(1, 2 * ranks).chunk(ranks)) if worker.rank == 1 else None
        finish(dist.scatter(part, parts, src=1, async_op=async_op))
        return part

    check(ranks, body, lambda rank: given(1, 2 * ranks).chunk(ranks)[rank])


@on_ranks
def test_all_to_all_single(ranks):
    def body(worker):
        out = torch.empty(2 * ranks, dtype=torch.float64)
        dist.all_to_all_single(out, given(worker.rank, 2 * ranks))
        return out

    def expected(rank):
        return everyones(ranks, 2 * ranks).view(ranks, ranks, 2)[:, rank].reshape(-1)

    check(ranks, body, expected)


@on_ranks
def test_messages_around_a_ring(ranks):
    def body(worker):
        box = torch.empty(6, dtype=torch.float64)
        sending = dist.isend(given(worker.rank), (worker.rank + 1) % ranks)
        dist.recv(box, (worker.rank - 1) % ranks)
        sending.wait()
        return box

    check(ranks, body, lambda rank: given((rank - 1) % ranks))


def test_receive_from_anyone_takes_the_earliest():
    def body(worker):
        if worker.rank == 0:
            box = torch.zeros(1)
            return [(dist.recv(box), float(box)) for _ in range(3)]
        compute_for(worker, 10 - worker.rank)
        dist.send(torch.full((1,), float(worker.rank)), 0)

    assert results(body, 4)[0] == [(3, 3.0), (2, 2.0), (1, 1.0)]


def test_messages_match_by_tag():
    def body(worker):
        if worker.rank == 0:
            works = [dist.isend(torch.tensor([float(tag)]), 1, tag=tag) for tag in (5, 6)]
        else:
            boxes = [torch.zeros(1), torch.zeros(1)]
            works = [dist.irecv(box, 0, tag=tag) for box, tag in zip(boxes, (6, 5), strict=True)]
        for work in works:
            work.wait()
        return [float(box) for box in boxes] if worker.rank else None

    assert results(body, 2)[1] == [6.0, 5.0]


def test_subgroups_are_apart():
    def body(worker):
        pairs = [dist.new_group([0, 1]), dist.new_group([2, 3])]
        x = given(worker.rank)
        dist.all_reduce(x, group=pairs[worker.rank // 2])
        return x

    check(4, body, lambda rank: given(rank) + given(rank ^ 1))


def test_a_collective_begins_with_the_last_rank():
    def body(worker):
        compute_for(worker, worker.rank)
        dist.all_reduce(torch.zeros(2, dtype=torch.float64))
        return worker.clock.now()

    execution_s = 2.0 + 2 * 2 * (0.5 + (16 / 3) / 8)
    assert results(body, 3) == pytest.approx([execution_s] * 3)
    idle = [report.idle_s for report in execute(body, 3).workers]
    assert idle == [2.0, 1.0, 0.0]


@pytest.mark.parametrize(("computing_s", "end_s"), [(1, 2.0), (2, 2.0), (5, 5.0)])
def test_asynchronous_communication_hides_behind_computation(computing_s, end_s):
    def body(worker):
        work = dist.all_reduce(torch.zeros(1, dtype=torch.float64), async_op=True)  # 2 (0.5 s + 0.5 s)
        compute_for(worker, computing_s)
        work.wait()
        return worker.clock.now()

    assert results(body, 2) == [end_s] * 2
    for report in execute(body, 2).workers:
        assert report.compute_s == computing_s
        assert report.comm_s == end_s - computing_s
        assert report.idle_s == 0.0


def test_completion_can_be_asked_for():
    def body(worker):
        work = dist.all_reduce(torch.zeros(1, dtype=torch.float64), async_op=True)
        compute_for(worker, 1)
        early = work.is_completed()
        compute_for(worker, 3)
        return early, work.is_completed()

    assert results(body, 2) == [(False, True)] * 2


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: dist.all_reduce(torch.zeros(4)), "all_reduce(SUM) of float32[4]"),
        (lambda: dist.all_reduce(torch.zeros(3, dtype=torch.int32)), "all_reduce(SUM) of int32[3]"),
        (lambda: dist.all_reduce(torch.zeros(3), ReduceOp.MAX), "all_reduce(MAX) of float32[3]"),
        (lambda: dist.broadcast(torch.zeros(3), 1), "broadcast(root 1) of float32[3]"),
        (dist.barrier, "barrier"),
    ],
)
def test_disagreement_names_both_ranks_and_calls(call, words):
    def body(worker):
        if worker.rank == 1:
            call()
        else:
            dist.all_reduce(torch.zeros(3))

    failure = execute(body, 2).failure
    assert isinstance(failure, WorkerFailed)
    line = body.__code__.co_firstlineno
    here = "tests/hardware/test_simulated_process_group.py"
    assert str(failure).startswith(
        "ranks disagree on collective 0 of ranks [0, 1]: rank 0 calls all_reduce(SUM) of float32[3], "
        f"rank 1 calls {words} (rank 0, at {here}:{line + 4}; rank 1, at {here}:"
    )


def test_disagreement_on_the_size_of_a_part_names_both_places():
    def body(worker):
        if worker.rank == 0:
            dist.all_to_all_single(torch.zeros(3), torch.zeros(3), [1, 2], [1, 2])
        else:
            dist.all_to_all_single(torch.zeros(4), torch.zeros(4), [3, 1], [3, 1])

    here, line = "tests/hardware/test_simulated_process_group.py", body.__code__.co_firstlineno
    assert str(execute(body, 2).failure) == (
        "ranks disagree on all_to_all_single of float32 in parts: rank 1 of the group sends 3 elements to rank 0, at "
        f"{here}:{line + 4}; that expects 2, at {here}:{line + 2}"
    )


def test_disagreement_on_a_message_names_both_ranks_and_places():
    def body(worker):
        if worker.rank == 0:
            dist.send(torch.zeros(2), 1, tag=4)
        else:
            dist.recv(torch.zeros(3), 0, tag=4)

    here, line = "tests/hardware/test_simulated_process_group.py", body.__code__.co_firstlineno
    assert str(execute(body, 2).failure) == (
        "ranks disagree on a message, tag 4: rank 0 sends float32[2], rank 1 receives float32[3] "
        f"(rank 0, at {here}:{line + 2}; rank 1, at {here}:{line + 4})"
    )


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: dist.monitored_barrier(group=dist.group.WORLD), "monitored_barrier"),
        (
            lambda: dist.all_to_all_single(torch.zeros(3), torch.zeros(3), [1, 2], [1, 2]),
            "rank 1 of the group sends 1 elements",
        ),
    ],
)
def test_what_is_missing_says_so(call, words):
    failure = execute(lambda worker: call(), 2).failure
    assert isinstance(failure, WorkerFailed) and words in str(failure)


def test_sent_bytes_are_the_payload_handed_in():
    def body(worker):
        x = torch.zeros(2, dtype=torch.float64)
        dist.all_reduce(x)
        dist.broadcast(x, 0)
        dist.reduce(x, 0)
        (dist.send if worker.rank == 1 else dist.recv)(x, 1 - worker.rank)

    assert [report.sent_bytes for report in execute(body, 2).workers] == [32, 48]


def test_alone_nothing_is_sent_and_nothing_waited_for():
    def body(worker):
        x = torch.ones(2)
        dist.all_reduce(x)
        dist.barrier()
        assert torch.equal(x, torch.ones(2))

    (report,) = execute(body, 1).workers
    assert (report.finish_s, report.sent_bytes) == (0.0, 0)


def test_distributed_data_parallel_runs_unmodified_and_overlaps():
    """Buckets of one layer hide more communication than one bucket for all layers but the last two."""

    def body(bucket_mb):
        def train(worker):
            layers = [torch.nn.Linear(256, 256, dtype=torch.float64) for _ in range(6)]
            for layer in layers:
                torch.nn.init.eye_(layer.weight)
            model = DistributedDataParallel(torch.nn.Sequential(*layers), bucket_cap_mb=bucket_mb)
            for _ in range(3):  # the first pass uses one bucket and learns the order of gradients
                model(torch.full((4, 256), float(worker.rank), dtype=torch.float64)).square().mean().backward()
            return layers[0].weight.grad.clone()

        return train

    options = {
        "network": Switch({}, {}, 1e-5, 1e8),
        "compute": Roofline("none", False, {"float64": 1e8}, 1e9, 1e-6, 1e-9),
    }
    first, *others = results(body(0.5), 3, **options)
    assert first.abs().sum() > 0 and all(torch.equal(first, other) for other in others)
    assert execute(body(0.5), 3, **options).run_s < execute(body(100.0), 3, **options).run_s


def test_a_future_overlaps_until_somebody_waits_for_it():
    def body(worker):
        x = torch.ones(4, dtype=torch.float64)  # 1.5 s a step of two
        doubled = dist.all_reduce(x, async_op=True).get_future().then(lambda future: 2 * future.value()[0])
        compute_for(worker, 10.0)
        value = doubled.wait()
        return worker.clock.now(), value.tolist()

    assert results(body, 2) == [(10.0, [4.0] * 4)] * 2


def waiting_hook(state, bucket):
    """Waits inside the backward pass."""
    tensor = bucket.buffer() / dist.get_world_size()
    summed = dist.all_reduce(tensor, async_op=True).get_future().wait()[0]
    future = torch.futures.Future()
    future.set_result(summed)
    return future


@pytest.mark.parametrize("hook", ["waiting", "power_sgd", "fp16"])
def test_communication_hooks(hook):
    def body(worker):
        torch.manual_seed(0)
        model = DistributedDataParallel(torch.nn.Linear(8, 8))
        if hook == "waiting":
            model.register_comm_hook(None, waiting_hook)
        elif hook == "fp16":
            model.register_comm_hook(None, default_hooks.fp16_compress_hook)
        else:
            state = powerSGD_hook.PowerSGDState(None, matrix_approximation_rank=8, start_powerSGD_iter=2)
            model.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
        for _ in range(4):
            model.zero_grad()
            model(torch.full((2, 8), 1.0 + worker.rank)).square().mean().backward()
        return model.module.weight.grad

    def alone():
        torch.manual_seed(0)
        model = torch.nn.Linear(8, 8)
        sum(model(torch.full((2, 8), 1.0 + rank)).square().mean() / 2 for rank in range(2)).backward()
        return model.weight.grad

    expected = alone()
    for gradient in results(body, 2):
        torch.testing.assert_close(gradient, expected, rtol=1e-2, atol=1e-2)


def test_parts_of_different_sizes_arrive():
    """As NCCL moves them; gloo refuses lists of different sizes."""

    def body(worker):
        rank, sizes = worker.rank, [1, 2, 3]
        parts = [torch.zeros(size) for size in sizes]
        dist.all_gather(parts, torch.full((sizes[rank],), float(rank)))
        boxes = [torch.zeros(1 + (rank + peer) % 3) for peer in range(3)]
        dist.all_to_all(boxes, [torch.full_like(box, float(rank)) for box in boxes])
        return [part.tolist() for part in (*parts, *boxes)]

    for rank, found in enumerate(results(body, 3)):
        boxes = [[float(peer)] * (1 + (rank + peer) % 3) for peer in range(3)]
        assert found == [[0.0], [1.0, 1.0], [2.0, 2.0, 2.0], *boxes]


def test_lists_of_equal_parts_take_the_plan_of_equal_parts():
    def body(worker, call):
        call([torch.zeros(2, dtype=torch.float64) for _ in range(3)])
        return worker.clock.now()

    def listed(parts):
        dist.all_to_all([part.clone() for part in parts], parts)

    def single(parts):
        dist.all_to_all_single(torch.cat(parts), torch.cat(parts))

    assert results(partial(body, call=listed), 3) == results(partial(body, call=single), 3)


ONES = torch.ones(2)
INTEGERS = torch.ones(2, dtype=torch.int32)
REFUSED = [
    (lambda rank: dist.reduce(ONES, -1), r"reduce: invalid root rank -1: the group has ranks 0 to 2"),
    (lambda rank: dist.broadcast(ONES, 99), r"broadcast: invalid root rank 99"),
    (lambda rank: dist.scatter(ONES, None, 7), r"scatter: invalid root rank 7"),
    (lambda rank: dist.gather(ONES, None, 7), r"gather: invalid root rank 7"),
    (lambda rank: dist.send(ONES, 17), r"there is no rank 17 to exchange a message with: the group has 3"),
    (lambda rank: dist.recv(ONES, -5), r"there is no rank -5"),
    (lambda rank: dist.isend(ONES, (rank + 1) % 3, tag=-1), r"Tag must be nonnegative, got -1"),
    (lambda rank: dist.all_gather([ONES] * 2, ONES), r"all_gather: its list must have 3 tensors"),
    (lambda rank: dist.all_gather([torch.ones(3)] * 3, ONES), r"float32\[2\] does not fit float32\[3\]"),
    (lambda rank: dist.all_gather_single(torch.ones(5), ONES), r"3 times float32\[2\] does not fit float32\[5\]"),
    (lambda rank: dist.all_gather_single(torch.ones(6, dtype=torch.int32), ONES), r"does not fit int32\[6\]"),
    (lambda rank: dist.reduce_scatter(ONES.clone(), [ONES] * 2), r"reduce_scatter: its list must have 3 tensors"),
    (lambda rank: dist.reduce_scatter(ONES.clone(), [torch.ones(3)] * 3), r"does not fit float32\[2\]"),
    (lambda rank: dist.reduce_scatter_single(ONES.clone(), torch.ones(5)), r"does not fit float32\[5\]"),
    (lambda rank: dist.reduce_scatter_single(INTEGERS.clone(), torch.ones(6)), r"int32\[2\] does not fit float32\[6\]"),
    (lambda rank: dist.all_to_all([ONES] * 2, [ONES] * 2), r"its input list must have 3 tensors"),
    (lambda rank: dist.all_to_all_single(torch.ones(5), torch.ones(5)), r"dim 0 does not divide equally"),
    (lambda rank: dist.all_to_all_single(torch.ones(6), torch.ones(3)), r"float32\[3\] does not fit float32\[6\]"),
    (lambda rank: dist.all_to_all_single(torch.ones(6), torch.ones(6), [3, 3], [3, 3]), r"must be the group's size 3"),
    (lambda rank: dist.all_to_all_single(torch.ones(6), torch.ones(6), [1, 2, 2], [2, 2, 1]), r"must sum to dim 0"),
    (lambda rank: dist.all_reduce(ONES, ReduceOp.BAND), r"Cannot use ReduceOp.BAND with non-integral dtype"),
    (lambda rank: dist.reduce(ONES, 0, ReduceOp.BXOR), r"Cannot use ReduceOp.BXOR with non-integral dtype"),
    (lambda rank: dist.all_reduce(INTEGERS, ReduceOp.AVG), r"Cannot use ReduceOp.AVG with gloo and integers"),
    (lambda rank: dist.all_reduce(ONES, dist._make_nccl_premul_sum(2.0)), r"Cannot use ReduceOp.PREMUL_SUM with gloo"),
    (lambda rank: dist.all_reduce(torch.eye(3).to_sparse(), ReduceOp.MAX), r"must be ReduceOp.SUM of one COO tensor"),
]


@pytest.mark.parametrize(("call", "words"), REFUSED)
def test_what_torch_refuses_is_refused_at_the_call_on_every_rank(call, words):
    def body(worker):
        with pytest.raises(RuntimeError, match=words):
            call(worker.rank)
        dist.barrier()
        return True

    assert results(body, 3) == [True] * 3


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: dist.scatter(torch.ones(2), [ONES] * 2), "scatter: its list must have 3 tensors"),
        (lambda: dist.scatter(torch.ones(2), [torch.ones(3)] * 3), "expected float32[2], got float32[3]"),
        (lambda: dist.gather(ONES, [torch.ones(2)] * 2), "gather: its list must have 3 tensors"),
        (lambda: dist.gather(ONES, [torch.ones(3)] * 3), "expected float32[2], got float32[3]"),
    ],
)
def test_lists_that_only_the_root_gives_are_refused_there(call, words):
    def body(worker):
        if worker.rank == 0:
            call()

    failure = execute(body, 3).failure
    assert str(failure).startswith("rank 0 failed: RuntimeError: ") and words in str(failure)


@pytest.mark.parametrize(
    "call", [lambda x: dist.all_reduce(x), lambda x: dist.broadcast(x, 0), lambda x: dist.isend(x, 0)]
)
def test_tensors_without_values_are_refused(call):
    def body(worker):
        with pytest.raises(ValueError, match=r"must be given tensors on cpu, .* float32\[2\] on meta"):
            call(torch.ones(2, device="meta"))

    assert execute(body, 2).failure is None


def test_nccl_averages_integers():
    def body(worker):
        x = torch.tensor([2 + worker.rank, -2 - worker.rank])
        dist.all_reduce(x, ReduceOp.AVG)
        return x.tolist()

    assert results(body, 2, protocol=NCCL) == [[2, -2]] * 2


def test_any_error_of_a_collective_ends_the_run_and_names_the_call():
    def body(worker):
        with contextlib.suppress(Exception):
            dist.all_reduce(torch.ones(2, dtype=torch.complex64), ReduceOp.SUM)
            reduce_all = dist.group.WORLD.allreduce
            options = dist.AllreduceOptions()
            options.reduceOp = ReduceOp.MAX
            reduce_all([torch.ones(2, dtype=torch.complex64)], options).wait()

    failure = execute(body, 3).failure
    words = "all_reduce(MAX) of complex64[2], collective 1 of ranks [0, 1, 2] cannot be computed: RuntimeError: "
    assert isinstance(failure, WorkerFailed) and str(failure).startswith(words)


def sparse(rank):
    """Rows that overlap, with one twice."""
    rows = torch.tensor([[rank, rank + 1, rank]])
    return torch.sparse_coo_tensor(rows, given(rank, 6).view(3, 2), (6, 2), check_invariants=True)


@on_ranks
def test_sparse_tensors_are_summed(ranks):
    def body(worker):
        x = sparse(worker.rank % 4)
        finish(dist.all_reduce(x, async_op=bool(worker.rank)))
        return x.to_dense()

    check(ranks, body, lambda rank: torch.stack([sparse(one % 4).to_dense() for one in range(ranks)]).sum(0))


def test_sparse_tensors_cost_what_everyone_sends_to_everyone():
    def body(worker):
        rows = torch.arange(1 + worker.rank)[None]  # a row has 8 bytes of index and 8 of value
        ones = torch.ones(1 + worker.rank, dtype=torch.float64)
        dist.all_reduce(torch.sparse_coo_tensor(rows, ones, (4,), check_invariants=True))
        return worker.clock.now()

    assert results(body, 2) == [0.5 + 32 / 8] * 2
    assert [report.sent_bytes for report in execute(body, 2).workers] == [16, 32]


def test_nccl_refuses_sparse_tensors():
    def body(worker):
        with pytest.raises(RuntimeError, match="all_reduce of sparse tensors must be made by gloo, got nccl"):
            dist.all_reduce(sparse(0))

    assert execute(body, 2, protocol=NCCL).failure is None


def test_distributed_data_parallel_sums_sparse_gradients():
    def body(worker):
        torch.manual_seed(0)
        model = DistributedDataParallel(torch.nn.Embedding(8, 2, sparse=True, dtype=torch.float64))
        model(torch.tensor([worker.rank, 3])).square().sum().backward()
        return model.module.weight.grad.to_dense()

    torch.manual_seed(0)
    alone = torch.nn.Embedding(8, 2, dtype=torch.float64)
    sum(alone(torch.tensor([rank, 3])).square().sum() / 2 for rank in range(2)).backward()
    check(2, body, lambda rank: alone.weight.grad)


def test_a_group_made_anew_gets_nothing_of_the_one_before():
    def body(worker):
        x = torch.zeros(2)
        groups = [dist.new_group([0, 1])]
        if worker.rank == 0:
            dist.isend(torch.full((2,), 111.0), 1, group=groups[0])
        for _ in range(2):
            dist.barrier()
            dist.destroy_process_group(groups.pop())
            dist.distributed_c10d._world.group_count -= 1  # as a destroyed default group does
            groups.append(dist.new_group([0, 1]))
        if worker.rank == 0:
            dist.send(torch.full((2,), 5.0), 1, group=groups[0])
        else:
            dist.recv(x, 0, group=groups[0])
        return x.tolist()

    assert results(body, 2)[1] == [5.0, 5.0]


def test_several_tensors_at_once_as_one_message():
    def body(worker):
        rank, group = worker.rank, dist.group.WORLD
        short, long = torch.full((1,), float(rank)), torch.full((2,), 10.0 + rank)
        rows = [[torch.zeros(1), torch.zeros(2)] for _ in range(3)]
        group.allgather_coalesced(rows, [short, long]).wait()
        wholes = [torch.zeros(3), torch.zeros(6)]
        group.allgather_into_tensor_coalesced(wholes, [short, long]).wait()
        parts = [torch.zeros(1), torch.zeros(2)]
        group.reduce_scatter_tensor_coalesced(parts, [whole * (1 + rank) for whole in wholes], summed).wait()
        for call in (
            group.allgather_into_tensor_coalesced,
            partial(group.reduce_scatter_tensor_coalesced, opts=summed),
        ):
            with pytest.raises(RuntimeError, match="does not fit"):
                call([torch.zeros(2)], [torch.zeros(3)])
        return [tensor.tolist() for tensor in (*rows[2], *wholes, *parts)]

    summed = dist.ReduceScatterOptions()
    for rank, found in enumerate(results(body, 3)):
        gathered = [[0.0, 1.0, 2.0], [10.0, 10.0, 11.0, 11.0, 12.0, 12.0]]
        assert found == [[2.0], [12.0, 12.0], *gathered, [6.0 * rank], [60.0 + 6.0 * rank] * 2]


def test_the_group_of_another_rank_is_refused():
    kept = []

    def body(worker):
        kept.append(dist.group.WORLD)
        dist.barrier()
        dist.all_reduce(torch.ones(1), group=kept[0])

    with pytest.raises(WorkerFailed, match="all_reduce is called on another rank's process group, which a module"):
        results(body, 2)


@pytest.mark.filterwarnings("ignore:torch.distributed.nn.functional.all_reduce is deprecated")
def test_functions_that_are_differentiated():
    def body(worker):
        x = torch.ones(2, requires_grad=True)
        torch.distributed.nn.functional.all_reduce(x).sum().backward()
        return x.grad.tolist()

    assert results(body, 3) == [[3.0, 3.0]] * 3


def test_a_rank_alone_may_have_several_collectives_under_way():
    def body(worker):
        tensors = torch.ones(640), torch.ones(64)
        for work in [dist.broadcast(tensor, 0, async_op=True) for tensor in tensors]:
            work.wait()
        return worker.clock.now()

    assert results(body, 1) == [0.0]
