"""CUDA devices as hardware: what is refused and planned without one, and on one what runs and is measured."""

import time
from dataclasses import replace
from threading import Thread
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from composed import execution, options, setup

from hardware.base import Execution, WorkerReport
from hardware.real import cuda, metered_group, staging, stopwatch
from hardware.real.breakdown import Ledger, break_down
from hardware.real.fork_server import start_fork_server
from hardware.real.gpus import Gpus
from hardware.real.meter import ASIDE, BLOCKED, NEVER, Meter
from hardware.real.metered_group import MeteredGroup, init_metered_group
from hardware.real.segment import Segment
from hardware.real.stopwatch import SettledStopwatch, StreamStopwatch
from harness.errors import UserError
from harness.metrics import summarise

MLP = ["problem=digits_mlp", "problem.dtype=float64", "budget.epochs=0.5", "budget.observations=3", "tracking=none"]
STEP = "algorithm.learning_rate=0.1"
CPU = torch.device("cpu")


@pytest.fixture
def machine(monkeypatch):
    """Pretends that this machine has so many devices."""

    def pretend(count, nccl=True):
        monkeypatch.setattr(cuda, "devices", lambda: [cuda.CudaDevice("Pretended", 2**30, "9.0")] * count)
        monkeypatch.setattr(cuda, "has_nccl", lambda: nccl)

    return pretend


def gpus(workers, backend="nccl"):
    return Gpus(workers, backend, intra_op_threads=1, timeout_s=60.0)


@pytest.mark.parametrize(
    ("count", "nccl", "workers", "backend", "sentence"),
    [
        (2, True, 3, "nccl", r"hardware.num_workers must be at most 2, .*gloo.*, got 3"),
        (2, False, 2, "nccl", r"hardware.backend=nccl: this torch was built without NCCL: set hardware.backend=gloo"),
    ],
)
def test_what_the_machine_lacks_is_refused(machine, count, nccl, workers, backend, sentence):
    machine(count, nccl)
    with pytest.raises(UserError, match=sentence):
        gpus(workers, backend).check()


def test_a_machine_without_a_device_is_refused_before_data_is_loaded(machine, monkeypatch):
    machine(0, True)
    monkeypatch.setattr("harness.problems.mlp.DigitsMLP.num_samples", None)
    with pytest.raises(
        UserError, match=r"hardware=gpus needs a CUDA device, and torch .* sees none .*hardware=sim_dgx"
    ):
        setup("algorithm=fsdp", "problem=digits_mlp", "hardware=gpus", "tracking=none")


def test_another_library_is_refused():
    with pytest.raises(UserError, match=r"hardware\.backend must be one of nccl, gloo, got 'mpi'"):
        gpus(1, "mpi")


@pytest.mark.parametrize("algorithm", ["hogwild", "sgd"])
def test_native_kernels_and_shared_models_are_refused(algorithm):
    with pytest.raises(UserError, match=r"which hardware=gpus does not (have|run)"):
        setup(f"algorithm={algorithm}", "algorithm.batch_size=1", "hardware=gpus", "tracking=none")


def test_servers_over_nccl_are_refused_before_devices_are_counted(machine):
    machine(2)
    with pytest.raises(UserError, match=r"algorithm=parameter_server sends messages, .*set hardware\.backend=gloo"):
        setup(*MLP, "algorithm=parameter_server", "hardware=gpus", "hardware.num_workers=2")


def test_messages_over_nccl_are_refused():
    group = SimpleNamespace(_name="nccl", _library=SimpleNamespace(send=None))
    group._message = lambda *arguments: MeteredGroup._message(group, *arguments)
    with pytest.raises(UserError, match=r"set hardware\.backend=gloo"):
        MeteredGroup.send(group, [torch.zeros(1)], 1, 0)


def test_a_collective_without_a_handle_is_over_when_the_stream_has_left_it():
    meter = Meter()
    group = SimpleNamespace(_meter=meter, _log=metered_group.Log(), _alone=False, _staged=False)
    opts = SimpleNamespace(asyncOp=False)
    assert MeteredGroup._collective(group, lambda *arguments: None, [torch.zeros(2)], opts, [torch.zeros(2)]) is None
    assert np.isfinite(group._log.table()).all() and meter.sent_bytes == 8


def test_workers_share_devices_in_turn_and_that_is_said(machine):
    machine(2)
    hardware = gpus(5, "gloo")
    assert hardware.check() == ["hardware.num_workers=5: 5 workers share 2 CUDA devices, and their speed says little"]
    assert hardware._crew.devices == [0, 1, 0, 1, 0]
    assert [hardware._crew.device(rank).index for rank in range(3)] == [0, 1, 0]
    assert [device["workers"] for device in hardware._facts()["devices"]] == [[0, 2, 4], [1, 3]]


def test_there_are_as_many_workers_as_devices(machine):
    machine(3)
    assert (gpus(None).workers_offered, gpus(None).check()) == (3, [])


@pytest.mark.parametrize("name", ["digits_mlp", "least_squares", "matrix_completion"])
def test_a_loss_reads_nothing_that_does_not_move(name):
    """Tensors of two devices do not mix, and `meta` is one that every machine has."""
    small = ["problem.synthetic_users=50", "problem.synthetic_items=40", "problem.synthetic_ratings=900"]
    small = small if name == "matrix_completion" else []
    problem, meta = setup(f"problem={name}", *small, "tracking=none").problem, torch.device("meta")
    loss = problem.to(meta).loss(problem.build_model(meta, 0), torch.arange(4, dtype=torch.int32, device=meta))
    assert loss.device == meta
    assert problem.loss(problem.build_model(CPU, 0), torch.arange(4)).device == CPU  # it is as it was


@pytest.mark.parametrize("name", [name for name in options("problem") if name in ("logistic_regression", "svm")])
def test_sparse_rows_move(name):
    problem = setup(f"problem={name}", "problem.synthetic_samples=50", "tracking=none").problem
    moved = problem.to(torch.device("meta"))
    assert {part.device.type for part in (moved.rows.indptr, moved.rows.values, moved.labels)} == {"meta"}
    assert problem.rows.indptr.device == CPU


class Device:
    """Executes what it is given in order, at times of its own."""

    def __init__(self):
        self.end_s = 0.0  # of what it was given so far
        self.now_s = 0.0  # how far it has come

    def compute(self, seconds):
        self.end_s += seconds

    def record(self):
        return SimpleNamespace(at_s=self.end_s, query=lambda at_s=self.end_s: at_s <= self.now_s, elapsed_time=None)

    def settle(self):
        self.now_s = self.end_s


def stream_stopwatch(device):
    def record():
        event = device.record()
        event.elapsed_time = lambda end: (end.at_s - event.at_s) * 1e3
        return event

    return StreamStopwatch(record, device.settle)


def test_notes_of_a_stream_are_when_the_device_gets_there():
    device = Device()
    begin_s = time.perf_counter()
    watch = stream_stopwatch(device)
    end_s = time.perf_counter()
    notes = [watch.now()]
    for seconds in (10.0, 5.0):
        device.compute(seconds)
        notes.append(watch.now())
    assert device.now_s == 0  # nobody has waited for it
    times = watch.seconds(np.array([*notes, NEVER, ASIDE]))
    assert begin_s <= times[0] <= end_s
    assert times[1:3] - times[0] == pytest.approx([10.0, 15.0])
    assert np.isnan(times[3]) and times[4] == ASIDE


def test_many_notes_are_told_while_the_run_goes_on(monkeypatch):
    monkeypatch.setattr(stopwatch, "MAX_PENDING", 4)
    device = Device()
    watch = stream_stopwatch(device)
    notes = []
    for step in range(40):
        device.compute(1.0)
        notes.append(watch.now())
        if step == 20:
            device.settle()
    assert len(watch._pending) < 40
    assert np.diff(watch.seconds(np.array(notes))) == pytest.approx(np.ones(39))


def test_a_backward_pass_waits_for_the_worker_in_a_thread_of_the_device(monkeypatch):
    meter, log = Meter(), metered_group.Log()
    places = [meter.start(log, 0) for _ in range(2)]

    def elsewhere(place):
        thread = Thread(target=meter.finish, args=(log, place, 1.0))
        thread.start()
        thread.join()

    elsewhere(places[0])
    monkeypatch.setattr(torch._C, "_current_graph_task_id", lambda: 7)
    elsewhere(places[1])
    assert log.table()[:, BLOCKED].tolist() == [ASIDE, 1.0]


def test_where_the_time_of_a_stream_went():
    """Two devices all-reduce after 1 s and 3 s, in 2 s, and compute 1 s more; hosts have issued all at once."""
    ledgers, start_s = [], time.perf_counter()
    for computing_s in (1.0, 3.0):
        device = Device()
        meter = Meter(stream_stopwatch(device))
        log = meter.collectives.setdefault("0", metered_group.Log())
        device.compute(computing_s)
        place = meter.start(log, 8)
        device.end_s = 3.0 + 2.0
        meter.finish(log, place, log.times[place])
        device.compute(1.0)
        table = meter.stopwatch.seconds(log.table())
        ledgers.append(Ledger(start_s + 6.0, np.inf, [], {"0": table}, np.zeros((0, 4)), np.zeros((0, 2)), 8, None, 99))
    early, late = break_down(ledgers, start_s, [1.0, 0.0]).workers
    within = {"abs": 0.05}  # of host seconds that passed between the makings of the two
    assert (early.compute_s, early.idle_s, early.comm_s) == pytest.approx((2, 2, 2), **within)
    assert (late.compute_s, late.idle_s, late.comm_s) == pytest.approx((4, 0, 2), **within)
    assert early.device_peak_bytes == 99


def test_a_settled_stopwatch_waits_before_it_looks():
    waited = []
    watch = SettledStopwatch(lambda: waited.append(time.perf_counter()))
    assert watch.now() >= waited[0]


def test_staging_gives_back_what_is_written_alone():
    outputs, inputs = [[torch.zeros(2), torch.zeros(2)]], [torch.ones(2)]
    staged = staging.Staging((outputs, inputs, "options"))
    copies, given, other = staged.arguments
    copies[0][1].fill_(7.0)
    given[0].fill_(8.0)
    assert [each.tolist() for each in staged.give_back()] == [[0, 0], [7, 7]]
    assert (outputs[0][1].tolist(), inputs[0].tolist(), other) == ([7, 7], [1, 1], "options")


def operations(rank, segment, ranks, place, backend):
    """Every collective and, over gloo, messages; an exit code other than 0 if one is wrong."""
    device = torch.device(place)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    store = dist.FileStore(f"/proc/self/fd/{segment.fd}", ranks)
    meter = init_metered_group(store, rank, ranks, 60.0, device, backend)
    dist.distributed_c10d._get_default_group()._staged = backend == "gloo"  # on the CPU too
    each = [torch.tensor([1.0, 2.0], device=device) + 10 * other for other in range(ranks)]
    own, total = each[rank], torch.stack(each).sum(0)
    dist.all_reduce(summed := own.clone())
    work = dist.all_reduce(later := own.clone(), async_op=True)
    work.wait()
    dist.broadcast(sent := own.clone(), ranks - 1)
    dist.all_gather(gathered := [torch.zeros_like(own) for _ in each], own)
    dist.all_gather_single(flat := own.new_zeros(2 * ranks), own)
    dist.reduce_scatter_single(part := own.new_zeros(1), own.repeat(ranks)[:ranks])
    dist.barrier()
    parallel = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(2, 1, bias=False, device=device))
    parallel(own).sum().backward()
    right = [
        (summed, total), (later, total), (sent, each[-1]), (torch.stack(gathered), torch.stack(each)),
        (flat, torch.cat(each)), (part, total.repeat(ranks)[rank : rank + 1]),
        (next(parallel.parameters()).grad[0], total / ranks),
    ]  # fmt: skip
    if backend == "gloo" and ranks > 1:
        works = [dist.irecv(heard := torch.zeros_like(own), 1 - rank), dist.isend(own, 1 - rank)]
        for work in works:
            work.wait()
        right.append((heard, each[1 - rank]))
        if rank == 0:
            source = dist.recv(first := torch.zeros_like(own))
            right.append((first, each[source]))
        else:
            dist.send(own, 0)
    assert all(torch.equal(found, wanted) for found, wanted in right), right
    for log in (*meter.collectives.values(), meter.messages):
        table = meter.stopwatch.seconds(log.table())
        waited = table[~np.isnan(table[:, 2])]
        assert (np.diff(waited[:, :3]) >= 0).all(), table  # called, then blocked, then released
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("ranks", "place", "backend"),
    [
        (2, "cpu", "gloo"),
        pytest.param(2, "cuda:0", "gloo", marks=pytest.mark.gpu),
        pytest.param(1, "cuda:0", "nccl", marks=pytest.mark.gpu),
    ],
)
def test_every_operation_is_right_and_measured(ranks, place, backend):
    context, segment = start_fork_server([]), Segment()
    processes = [
        context.Process(target=operations, args=(rank, segment, ranks, place, backend)) for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60.0)
        process.kill()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * ranks
    for process in processes:
        process.close()


def run(hardware, algorithm, *overrides):
    done = execution(*MLP, STEP, f"hardware={hardware}", f"algorithm={algorithm}", *overrides)
    assert done.failure is None
    return done


def parameters(done):
    return torch.stack([observation.parameters for observation in done.observations])


def test_peak_memory_of_devices_is_in_the_summary():
    worker = WorkerReport(0, finish_s=1.0, compute_s=1.0, comm_s=0.0, idle_s=0.0, sent_bytes=0)
    rows = [{"time/run_s": 1.0, "progress/sample": 1, "progress/update": 1}]
    for peaks, expected in (((None, None), None), ((5, 7), 7)):
        done = Execution(workers=[replace(worker, device_peak_bytes=peak) for peak in peaks])
        assert summarise(done, rows, 1, 2, None).get("mem/device_peak_bytes_max") == expected


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["nccl", "gloo"])
@pytest.mark.parametrize("algorithm", ["sgd", "all_reduce"])
def test_one_device_equals_the_cpu(algorithm, backend):
    """To rtol 1e-12: sums are in another order, exponentials and logarithms another library's."""
    chosen = (algorithm, "algorithm.batch_size=24", "hardware.num_workers=1")
    device, host = run("gpus", *chosen, f"hardware.backend={backend}"), run("cpu", *chosen)
    torch.testing.assert_close(parameters(device), parameters(host), rtol=1e-12, atol=1e-12)


@pytest.mark.gpu
def test_two_workers_on_one_device_equal_the_cpu():
    chosen = ("all_reduce", "algorithm.batch_size=12", "hardware.num_workers=2")
    device, host = run("gpus", *chosen, "hardware.backend=gloo"), run("cpu", *chosen)
    torch.testing.assert_close(parameters(device), parameters(host), rtol=1e-12, atol=1e-12)


@pytest.mark.gpu
@pytest.mark.parametrize(("workers", "backend"), [(1, "nccl"), (2, "gloo")])
def test_accounts_for_time_and_memory(workers, backend):
    done = run("gpus", "all_reduce", f"hardware.num_workers={workers}", f"hardware.backend={backend}")
    rows = [{"time/run_s": done.run_s, "progress/sample": 1, "progress/update": 1}]
    summary = summarise(done, rows, 1, workers, None)
    assert sum(summary[f"perf/{part}_frac"] for part in ("compute", "comm", "idle", "other")) == pytest.approx(1)
    assert 0 < summary["perf/compute_frac"] < 1 and summary["perf/comm_frac"] > 0
    assert summary["mem/device_peak_bytes_max"] > 3 * done.observations[0].parameters.nbytes
    assert done.facts["devices"][0]["workers"] == list(range(workers))
    assert {"cuda", "driver", "backend"} <= set(done.facts)


@pytest.mark.gpu
def test_notes_of_a_real_stream():
    """Of 20 ms asleep; another clock says how long that is."""
    device = torch.device("cuda", 0)
    watch = stopwatch.stopwatch_of(device, "nccl")
    torch.cuda._sleep(1000)
    torch.cuda.synchronize()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin_s, first = time.perf_counter(), watch.now()
    begin.record()
    torch.cuda._sleep(40_000_000)
    end.record()
    second, issued_s = watch.now(), time.perf_counter()
    times = watch.seconds(np.array([first, second]))
    end_s = time.perf_counter()
    slack_s = 1e-3  # the host's way to the device and back, and its clock's error
    assert begin_s - slack_s <= times[0] and times[1] <= end_s + slack_s
    assert times[1] - times[0] == pytest.approx(begin.elapsed_time(end) * 1e-3, abs=slack_s)
    assert issued_s < times[1]  # the host did not wait
