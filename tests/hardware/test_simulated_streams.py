"""Streams: what the host issues ahead runs when its stream comes to it, for unmodified programs of torch."""

import pytest
import torch
import torch.distributed as dist
from simulated_ranks import compute_for, execute, results
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe
from torch.nn.parallel import DistributedDataParallel

from hardware.simulated.compute import Fixed, Roofline
from hardware.simulated.network.topologies import Switch

STREAMS = Fixed("none", streams=True, seconds_per_sample=1.0)
HOST = Fixed("none", streams=False, seconds_per_sample=1.0)
FORWARD_S, BACKWARD_S, LAYERS = 2.0, 5.0, 4
PARAMETERS = 2**17  # 1 MiB of float64: a bucket of DistributedDataParallel


def on_streams(body, num_workers=1, **options):
    return results(body, num_workers, compute=STREAMS, **options)


def test_the_host_issues_ahead_and_waits_only_when_it_synchronizes():
    def body(worker):
        compute_for(worker, 3.0)
        issued_s = worker.clock.now()
        torch.cpu.synchronize()
        return issued_s, worker.clock.now()

    assert on_streams(body) == [(0.0, 3.0)]


def test_two_streams_run_side_by_side_and_meet_at_an_event():
    def body(worker):
        side = torch.cpu.Stream()
        with torch.cpu.stream(side):
            compute_for(worker, 3.0)
            event = side.record_event()
            compute_for(worker, 100.0)
        compute_for(worker, 1.0)
        torch.cpu.current_stream().wait_event(event)
        compute_for(worker, 1.0)
        torch.cpu.current_stream().synchronize()
        return worker.clock.now()

    assert on_streams(body) == [4.0]


def test_a_stream_waits_for_another():
    def body(worker):
        side = torch.cpu.Stream()
        compute_for(worker, 3.0)
        side.wait_stream(torch.cpu.current_stream())
        with torch.cpu.stream(side):
            compute_for(worker, 2.0)
        assert not side.query()
        side.synchronize()
        assert side.query()
        return worker.clock.now()

    assert on_streams(body) == [5.0]


def test_events_measure_milliseconds():
    def body(worker):
        begin, end, never = torch.cpu.Event(), torch.cpu.Event(), torch.cpu.Event()
        begin.record()
        compute_for(worker, 3.0)
        end.record()
        assert begin.query() and not end.query() and never.query()
        never.wait()
        return begin.elapsed_time(end)

    assert on_streams(body) == [3000.0]


def test_reading_a_value_waits_for_the_stream_that_makes_it():
    compute = Roofline("none", True, {"float64": 1.0}, 1e30, 0.25, None)  # a second an element

    def body(worker):
        x = torch.zeros(4, dtype=torch.float64)  # 0.25 s to launch, 4 s to run
        issued_s = worker.clock.now()
        assert x[0].item() == 0.0
        return issued_s, worker.clock.now()

    assert results(body, 1, compute=compute) == [(0.25, 4.25)]


def test_a_collective_waits_for_its_stream_and_the_stream_for_it():
    def body(worker):
        x = torch.ones(2, dtype=torch.float64)
        compute_for(worker, 3.0 + worker.rank)
        dist.all_reduce(x)  # 2 x (0.5 s latency + 1 s)
        issued_s = worker.clock.now()
        compute_for(worker, 1.0)
        torch.cpu.synchronize()
        return x.tolist(), issued_s, worker.clock.now()

    assert on_streams(body, 2) == [([2.0, 2.0], 0.0, 8.0)] * 2


@pytest.mark.parametrize("async_op", [False, True])
def test_a_barrier_blocks_the_host_until_all_streams_have_come(async_op):
    """As ProcessGroupNCCL's: what comes after it on the host can be timed."""

    def body(worker):
        compute_for(worker, 3.0 + worker.rank)
        work = dist.barrier(async_op=async_op)
        if async_op:
            assert worker.clock.now() == 0.0
            work.wait()
        return worker.clock.now()

    assert on_streams(body, 2) == [4.5] * 2  # and half a second to tell


def test_what_is_sent_may_be_overwritten_once_the_sender_has_waited():
    def body(worker):
        x = torch.full((2,), 7.0, dtype=torch.float64)
        if worker.rank == 0:
            dist.send(x, 1)
            x.zero_()
        else:
            compute_for(worker, 1.0)
            torch.cpu.synchronize()
            x.zero_()
            dist.recv(x, 0)
        torch.cpu.synchronize()
        return x.tolist(), worker.clock.now()

    assert on_streams(body, 2) == [([0.0, 0.0], 3.5), ([7.0, 7.0], 3.5)]


def test_messages_to_and_from_a_peer_do_not_wait_for_each_other():
    def body(worker):
        mine, theirs = torch.ones(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
        peer = 1 - worker.rank
        for work in dist.batch_isend_irecv([dist.P2POp(dist.isend, mine, peer), dist.P2POp(dist.irecv, theirs, peer)]):
            work.wait()
        torch.cpu.synchronize()
        return theirs.tolist(), worker.clock.now()

    assert on_streams(body, 2) == [([1.0, 1.0], 2.5)] * 2


def test_outside_the_simulation_and_on_a_host_the_calls_do_nothing():
    before = torch.cpu.Stream, torch.cpu.current_stream, torch.cpu.synchronize

    def body(worker):
        with torch.cpu.stream(torch.cpu.Stream()):
            compute_for(worker, 3.0)
        torch.cpu.synchronize()
        return worker.clock.now()

    assert results(body, 1) == [3.0]
    on_streams(lambda worker: torch.cpu.Stream())
    assert (torch.cpu.Stream, torch.cpu.current_stream, torch.cpu.synchronize) == before


class Spend(torch.autograd.Function):
    """The identity on `x`, which takes time in both directions."""

    @staticmethod
    def forward(ctx, x, weight, worker):
        ctx.worker, ctx.weight_shape = worker, weight.shape
        compute_for(worker, FORWARD_S)
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        compute_for(ctx.worker, BACKWARD_S)
        return gradient, torch.ones(ctx.weight_shape, dtype=gradient.dtype), None


class Layer(nn.Module):
    def __init__(self, worker):
        super().__init__()
        self.worker = worker
        self.weight = nn.Parameter(torch.zeros(PARAMETERS, dtype=torch.float64))

    def forward(self, x):
        return Spend.apply(x, self.weight, self.worker)


def layers(worker):
    return nn.Sequential(*(Layer(worker) for _ in range(LAYERS)))


def third_step_s(worker, model):
    """The time of the third step: DistributedDataParallel has its buckets in order then."""
    x = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    for _ in range(3):
        torch.cpu.synchronize()
        begin_s = worker.clock.now()
        model(x).sum().backward()
        torch.cpu.synchronize()
    return worker.clock.now() - begin_s


def all_reduce_taking(seconds):
    """A network on which the all-reduce of a layer by two ranks takes so long."""
    return Switch({}, {}, 0.0, PARAMETERS * 8 / seconds)


@pytest.mark.parametrize("communication_s", [0.5, 4.0, 5.0, 8.0, 20.0])
def test_buckets_of_data_parallelism_overlap_with_the_backward_pass(communication_s):
    def body(worker):
        return third_step_s(worker, DistributedDataParallel(layers(worker), bucket_cap_mb=1))

    end_s = 0.0
    for bucket in range(1, LAYERS + 1):
        end_s = max(end_s, bucket * BACKWARD_S) + communication_s
    expected = [LAYERS * FORWARD_S + end_s] * 2
    assert on_streams(body, 2, network=all_reduce_taking(communication_s)) == pytest.approx(expected, rel=1e-9)


def sharded(worker):
    model = layers(worker)
    for layer in model:
        fully_shard(layer)
    return fully_shard(model)


@pytest.mark.parametrize("gather_s", [0.5, 1.0, 2.0])
def test_fully_sharded_layers_prefetch(gather_s):
    """All hides but the first all-gather and the last reduce-scatter.

    The host is ahead: the first all-gather of the backward pass runs under the last layer's forward pass. Behind a
    layer's backward pass are the all-gather of the one before and the reduce-scatter of the one after.
    """

    def body(worker):
        return third_step_s(worker, sharded(worker))

    expected = [gather_s + LAYERS * (FORWARD_S + BACKWARD_S) + gather_s] * 2
    assert on_streams(body, 2, network=all_reduce_taking(2 * gather_s)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("gather_s", [0.5, 2.0, 3.0, 4.5, 6.0, 20.0])
def test_fully_sharded_layers_that_wait_for_the_network_take_the_time_of_its_queue(gather_s):
    """All-gathers and reduce-scatters are of one group: they queue up in the order in which they are issued."""

    def body(worker):
        return third_step_s(worker, sharded(worker))

    network_s = computed_s = 0.0
    for _ in range(LAYERS):
        network_s += gather_s
        computed_s = max(computed_s, network_s) + FORWARD_S
    network_s = gathered_s = network_s + gather_s  # of the last layer, for its backward pass
    for layer in reversed(range(LAYERS)):
        computed_s = max(computed_s, gathered_s) + BACKWARD_S
        if layer:
            network_s = gathered_s = network_s + gather_s  # of the layer before, issued before the reduce-scatter
        network_s = max(network_s, computed_s) + gather_s
    expected = [network_s] * 2
    assert on_streams(body, 2, network=all_reduce_taking(2 * gather_s)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("gather_s", [0.5, 3.0])
def test_without_streams_all_is_in_a_row(gather_s):
    def body(worker):
        return third_step_s(worker, sharded(worker))

    expected = LAYERS * (2 * gather_s + FORWARD_S + BACKWARD_S + gather_s)
    times = results(body, 2, compute=HOST, network=all_reduce_taking(2 * gather_s))
    assert times == pytest.approx([expected] * 2, rel=1e-9)


@pytest.mark.parametrize("message_s", [0.0, 0.25, 0.75])
@pytest.mark.parametrize(("schedule", "waited_for"), [(ScheduleGPipe, 8), (Schedule1F1B, 5)])
def test_a_pipeline_waits_for_what_it_receives_and_not_for_what_it_sends(schedule, waited_for, message_s):
    """Torch receives behind what the current stream has been given: two stages see every message they receive.

    GPipe: F + m (c + F), then B + m (c + B). 1F1B: the second stage F + m (c + F + B), then the first c + B.
    """
    microbatches = 4

    def body(worker):
        stage = PipelineStage(Layer(worker), worker.rank, 2, torch.device("cpu"))
        runner = schedule(stage, microbatches, loss_fn=lambda out, _: out.sum())
        x = torch.zeros(microbatches, 1, dtype=torch.float64)
        for _ in range(3):  # in the first the stages agree on shapes
            torch.cpu.synchronize()
            begin_s = worker.clock.now()
            runner.step(x) if worker.rank == 0 else runner.step(target=x)
            torch.cpu.synchronize()
        return worker.clock.now() - begin_s

    network = Switch({}, {}, 0.0, 8 / message_s if message_s else 1e30)
    took_s, _ = on_streams(body, 2, network=network)
    expected_s = (microbatches + 1) * (FORWARD_S + BACKWARD_S) + waited_for * message_s
    assert took_s == pytest.approx(expected_s, rel=1e-9)


def test_hidden_communication_is_accounted_as_computing():
    def body(worker):
        work = dist.all_reduce(torch.ones(2, dtype=torch.float64), async_op=True)  # 3 s
        compute_for(worker, 2.0)
        work.wait()
        compute_for(worker, 1.0)

    for report in execute(body, 2, compute=STREAMS).workers:
        assert (report.compute_s, report.comm_s, report.idle_s, report.finish_s) == (3.0, 1.0, 0.0, 4.0)


@pytest.mark.parametrize("read", [torch.Tensor.tolist, torch.Tensor.numpy, lambda x: x.sum().item()])
def test_reading_values_waits_for_the_stream(read):
    def body(worker):
        x = torch.ones(4)
        compute_for(worker, 7.0)
        getattr(x, read.__name__, lambda: read(x))()
        return worker.clock.now()

    assert results(body, 1, compute=Fixed("none", streams=True, seconds_per_sample=1.0)) == [7.0]


def test_a_host_that_issues_is_not_idle():
    def body(worker):
        x = torch.zeros(10)
        for _ in range(3):
            x.add_(1)  # a second to issue, 40 bytes read and 40 written: a second to run

    compute = Roofline("none", True, {"float32": 1e30}, 80.0, operator_overhead_s=1.0, nonzero_s=None)
    (report,) = execute(body, 1, compute=compute).workers
    # zeros is issued for a second and writes for half of one
    assert (report.finish_s, report.compute_s, report.comm_s, report.idle_s) == (5.0, 3.5, 0.0, 0.0)


def test_a_device_that_waits_for_another_is_idle_whatever_its_host_issues_meanwhile():
    """The second rank's device waits 8 s for a message; its host issues 5 operators of a second each behind that."""

    def body(worker):
        x = torch.zeros(10)
        if worker.rank == 0:
            for _ in range(8):
                x.add_(1)
            dist.send(x, 1)
        else:
            dist.recv(x, 0)
            for _ in range(5):
                x.add_(1)
        torch.cpu.synchronize()

    compute = Roofline("none", True, {"float32": 1e30}, 1e30, operator_overhead_s=1.0, nonzero_s=None)
    sender, receiver = execute(body, 2, compute=compute, network=Switch({}, {}, 0.0, 1e30)).workers
    # zeros, 8 operators and the message are issued; the receiver has nothing to wait for until its own 2 s are over
    assert (sender.finish_s, sender.idle_s) == pytest.approx((10.0, 0.0), rel=1e-9)
    assert (receiver.finish_s, receiver.idle_s) == pytest.approx((10.0, 8.0), rel=1e-9)


def test_an_exchange_costs_its_host_a_launch():
    compute = Roofline("none", True, {"float32": 1e9}, 1e9, 0.5, None)

    def body(worker):
        tensor = torch.ones(1)
        begin_s = worker.clock.now()
        dist.all_reduce(tensor, async_op=True)
        return worker.clock.now() - begin_s

    assert results(body, 2, compute=compute) == [0.5, 0.5]


def step_of(kind, tensors=4, **options):
    """Seconds in which a host issues a step while its device is busy for 100 s, a second a launch; the parameters."""

    def body(worker):
        parameters = [nn.Parameter(torch.ones(10)) for _ in range(tensors)]
        for parameter in parameters:
            parameter.grad = torch.ones(10)
        optimizer = kind(parameters, lr=0.5, **options)
        optimizer.step()  # makes its state
        torch.cpu.synchronize()
        torch.zeros(1500).add_(1)  # 6,000 bytes written, 12,000 read and written
        begin_s = worker.clock.now()
        optimizer.step()
        issued_s = worker.clock.now() - begin_s
        return issued_s, [parameter.tolist() for parameter in parameters]

    compute = Roofline("none", True, {"float32": 1e30}, 180.0, operator_overhead_s=1.0, nonzero_s=None)
    return results(body, 1, compute=compute)[0]


def test_an_optimizer_launches_once_for_all_its_tensors():
    once, one_by_one = step_of(torch.optim.SGD), step_of(torch.optim.SGD, foreach=False)
    assert (once[0], one_by_one[0]) == pytest.approx((1.0, 4.0))
    assert once[1] == one_by_one[1]


def test_a_host_knows_how_many_steps_it_has_taken():
    """Adam reads its counters, which the device does not have: the host goes on ahead of 100 s of computing."""
    issued_s, parameters = step_of(torch.optim.AdamW)
    assert issued_s < 100.0
    assert parameters == step_of(torch.optim.AdamW, foreach=False)[1]
