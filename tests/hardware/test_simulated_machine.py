import functools
import gzip
import json
import random
import re
import threading
import time
from dataclasses import replace
from pathlib import Path

import composed
import pytest
import torch
import torch.distributed as dist
from composed import setup
from omegaconf import OmegaConf
from simulated_ranks import compute_for, execute, program, shared_memory
from simulated_ranks import machine as simulated

from hardware.simulated.account import Account
from hardware.simulated.network.topologies import Switch
from harness.build import build
from harness.errors import Diverged, UserError
from harness.kernels.access import Access, lock_words
from harness.kernels.sparse_linear import LOGISTIC, SparseLinearKernel
from harness.kernels.sparse_rows import SparseRows

CONF = Path(__file__).parents[2] / "conf" / "hardware"
FILES = [CONF / f"{name}.yaml" for name in ("sim_cpu", "sim_numa2", "sim_numa4", "sim_ethernet", "sim_dgx")]
KEYS = re.compile(r"memory\.\w+|num_workers|compute\.nonzero_s")  # test_simulated_knobs.py moves the others


def machine(path, **changes):
    """The hardware of a YAML file; `changes` maps dotted keys to values."""
    node = composed.node(f"hardware/{path.stem}")
    for key, value in changes.items():
        OmegaConf.update(node, key, value)
    return build(node, "hardware")


def numbers(path):
    """Dotted keys of a YAML file whose values are numbers that native kernels and shared memory make use of."""

    def walk(node, prefix):
        for key, value in node.items():
            if isinstance(value, dict):
                yield from walk(value, f"{prefix}{key}.")
            elif KEYS.fullmatch(f"{prefix}{key}") and isinstance(value, (int, float)) and not isinstance(value, bool):
                yield f"{prefix}{key}"

    return list(walk(OmegaConf.to_container(composed.node(f"hardware/{path.stem}")), ""))


def everything(worker):
    """Computes, communicates, and updates a shared model where there is one."""
    torch.ones(400, 400) @ torch.ones(400, 400)
    dist.all_reduce(torch.ones(1000))
    worker._place.add("updates", 1)
    if worker._place._machine.compute.kernel is not None:
        update(worker)
    worker._place.settle()


def update(worker):
    """Runs a native kernel."""
    indices = torch.arange(0, 4096, 16, dtype=torch.int32).repeat(8)  # on four pages
    rows = SparseRows(torch.arange(0, 2049, 256), indices, torch.ones(2048), 4096)
    sparse = kernels.setdefault("kernel", SparseLinearKernel(rows, torch.ones(8), LOGISTIC))
    shares = worker._place._machine.models is not None
    model = worker.shared("model", torch.zeros(4096)) if shares else torch.zeros(4096)
    locks = lock_words("global_mutex", 1)
    words = worker.shared("locks", locks) if shares else locks
    for locking in ("none", "atomic", "global_spin", "global_mutex") if shares else ("none",):
        dist.barrier()
        worker.run(sparse, model, torch.arange(8, dtype=torch.int32), 0.1, Access(locking, words))
    dist.barrier()
    if shares:
        far = torch.tensor([0, 2**18], dtype=torch.int32).repeat(8)  # 1 MiB apart: both want one place in the cache
        rows = SparseRows(torch.arange(0, 17, 2), far, torch.ones(16), 2**18 + 1)
        wide = SparseLinearKernel(rows, torch.ones(8), LOGISTIC)
        worker.run(wide, torch.zeros(2**18 + 1), torch.arange(8, dtype=torch.int32), 0.1)
    for visited, samples in worker.visits(sparse, 1):  # as they are stored
        worker.run(visited, model, samples, 0.1)


kernels: dict = {}

OTHERS = {  # where twice as much is impossible, or of no effect
    "num_workers": 3,
    "memory.sequential_rows": 0.1,
    "sim_cpu memory.spin_s": 1e-6,  # on one socket nobody waits for twice as long
    "memory.doze_s": 1e-3,
    "memory.local_memory_s": 1.2e-7,  # no more than from the other socket
    "memory.same_socket_s": 1e-5,  # twice as much is hidden behind rows on four sockets
}

WITHOUT_EFFECT = {
    "sim_numa2 memory.cores_per_socket",  # a limit on workers, nothing else
    "sim_cpu memory.cores_per_socket",
    "sim_cpu memory.cross_socket_s",  # it has one socket
    "sim_cpu memory.remote_memory_s",
    "sim_cpu memory.remote_bytes_per_s",
    "sim_cpu memory.local_bytes_per_s",  # nor are rows permuted here
    "sim_numa4 memory.cores_per_socket",
    "sim_numa2 memory.futex_s",
    "sim_numa4 memory.futex_s",  # who waits for a mutex of another socket is asleep by the time it is let go
}


@functools.cache
def everything_s(path, **changes):
    """Virtual seconds of everything on the hardware of a YAML file, changed."""
    kernels.clear()
    done = machine(path, **changes).execute(program(everything), lambda samples: None)
    assert done.failure is None
    return done.run_s


@pytest.mark.parametrize(
    ("path", "key"),
    [pytest.param(path, key, id=f"{path.stem}-{key}") for path in FILES for key in numbers(path)],
)
def test_every_number_of_the_yaml_moves_the_answer(path, key):
    before = OmegaConf.select(composed.node(f"hardware/{path.stem}"), key)
    after = OTHERS.get(f"{path.stem} {key}") or OTHERS.get(key, before * 2 or 1e-3)
    moves = everything_s(path, **{key: after}) != everything_s(path)
    assert moves == (f"{path.stem} {key}" not in WITHOUT_EFFECT)


def sequence(worker):
    """Collectives, messages and updates; host time is wasted at random, and must not matter."""
    model = worker.shared("model", torch.zeros(64, dtype=torch.float64))
    times = []
    for step in range(10):
        time.sleep(random.random() * 1e-3)
        x = torch.randn(64, generator=worker.generator, dtype=torch.float64)
        work = dist.all_reduce(x, async_op=True)
        model.add_(x.sin(), alpha=0.1)
        if step % 3 == worker.rank % 3:
            torch.ones(100, 100) @ torch.ones(100, 100)
        work.wait()
        worker.observe(model, samples=1)
        times.append(worker.clock.now())
    seen[worker.rank] = times


seen: dict = {}


def test_runs_are_identical_whatever_the_host_does():
    def observe():
        done = machine(CONF / "sim_numa2.yaml").execute(
            program(sequence, budget=40, milestones=[5, 17, 40]), lambda samples: None
        )
        assert done.failure is None
        values = [(o.time_s, o.samples, o.updates, o.parameters.tolist()) for o in done.observations]
        return values, done.workers, dict(seen)

    quiet = observe()
    stop = threading.Event()

    def load():
        while not stop.is_set():
            sum(range(1000))

    noise = threading.Thread(target=load)
    noise.start()
    try:
        assert observe() == quiet
    finally:
        stop.set()
        noise.join()
    assert len(quiet[0]) == 3


def hogwild(*overrides):
    """An execution of Hogwild! on sim_numa2."""
    composed = setup("algorithm=hogwild", "hardware=sim_numa2", "tracking=none", *overrides)
    done = composed.hardware.execute(composed.program(), lambda samples: None)
    assert done.failure is None
    return done


def test_native_hogwild_is_identical_every_time():
    def observe():
        done = hogwild("problem=logistic_regression", "problem.synthetic_samples=2000", "budget.epochs=1")
        values = [(o.time_s, o.samples, o.updates, o.parameters.tolist()) for o in done.observations]
        staleness = {key: value for key, value in done.metrics.items() if key.startswith("async/")}
        return values, done.workers, staleness

    first = observe()
    assert first == observe()
    assert len(first[0]) > 1 and first[2]["async/staleness_mean"] > 0


def test_hogwild_through_autograd_pays_for_crossing_sockets():
    near, far = (
        hogwild("problem=digits_mlp", "budget.epochs=1", f"hardware.memory.cross_socket_s={cross_s}").run_s
        for cross_s in (1e-7, 1e-3)
    )
    assert far > 2 * near


def test_time_is_accounted_for():
    def body(worker):
        for _ in range(5):
            compute_for(worker, 1 + worker.rank)
            dist.all_reduce(torch.zeros(8))

    done = execute(body, 3)
    for report in done.workers:
        assert report.compute_s == pytest.approx(5 * (1 + report.rank), rel=1e-12)
        assert report.compute_s + report.comm_s + report.idle_s == pytest.approx(report.finish_s, rel=1e-12)
    assert done.workers[0].idle_s > done.workers[1].idle_s > done.workers[2].idle_s == 0.0
    assert done.run_s == done.workers[2].finish_s


def test_overlap_links_and_a_timeline_are_recorded(tmp_path):
    def body(worker):
        work = dist.all_reduce(torch.zeros(1000, dtype=torch.float64), async_op=True)
        compute_for(worker, 1.0)
        work.wait()

    done = execute(body, 2, network=Switch({}, {}, 0.0, 4000.0))  # 8,000 bytes a link, 2 s
    assert done.metrics["perf/overlap_frac"] == pytest.approx(0.5)
    assert done.metrics["sim/busiest_link_frac"] == pytest.approx(1.0)
    assert done.facts["links"][done.metrics["sim/busiest_link"]]["payload_bytes"] == 8000
    done.timeline(tmp_path / "timeline.json.gz")
    events = json.loads(gzip.decompress((tmp_path / "timeline.json.gz").read_bytes()))["traceEvents"]
    assert {"compute", "s", "f"} <= {event["name"] for event in events} | {event["ph"] for event in events}


def test_cost_of_simulating_is_measured():
    metrics = execute(lambda worker: compute_for(worker, 1), 2).metrics
    assert metrics["sim/events_per_s"] > 0 and metrics["sim/slowdown"] > 0
    assert "async/staleness_mean" not in metrics
    assert "sim/slowdown" not in execute(lambda worker: None, 2).metrics  # no virtual time has passed


def test_what_was_observed_before_a_failure_is_kept():
    def body(worker):
        for step in range(4):
            compute_for(worker, 1)
            worker.observe(torch.full((2,), float("nan") if step == 2 else 1.0), samples=1)

    done = execute(body, 1, budget=4, milestones=[1, 2, 3, 4])
    assert isinstance(done.failure, Diverged)
    assert [(o.samples, o.time_s) for o in done.observations] == [(1, 1.0), (2, 2.0), (3, 3.0)]
    assert done.workers == [] and done.run_s == 0.0


def test_budget_is_dealt_once_in_order_of_virtual_time():
    class Hundred:
        num_samples = 100

    dealt = []

    def body(worker):
        for batch in worker.batches(Hundred(), 3):
            dealt.append((worker.rank, batch.tolist()))
            if worker.rank == 0:
                compute_for(worker, 30)  # a slow worker takes fewer batches
            worker.observe(torch.zeros(1), len(batch))

    done = execute(body, 3, budget=100)
    assert sorted(i for _, batch in dealt for i in batch) == list(range(100))
    taken = [sum(len(batch) for rank, batch in dealt if rank == worker) for worker in range(3)]
    assert taken[0] < taken[1] / 5 and done.failure is None


def test_ranks_are_spread_over_sockets():
    memory = shared_memory(cores_per_socket=2)
    assert execute(lambda worker: None, 3, memory=memory).facts == {"sockets": [0, 1, 0]}


def test_ranks_fill_a_socket_before_the_next():
    memory = shared_memory(cores_per_socket=2, pin_policy="fill")
    assert execute(lambda worker: None, 3, memory=memory).facts == {"sockets": [0, 0, 1]}


def test_no_number_of_workers_means_every_core():
    memory = shared_memory(cores_per_socket=3)
    assert simulated(None, memory=memory).workers_offered == 6
    with pytest.raises(UserError, match=r"hardware\.num_workers must be a number where hardware\.memory is null"):
        simulated(None)


@pytest.mark.parametrize("data", composed.options("data"))
def test_virtual_time_is_the_same_whoever_was_the_first_to_look_at_the_data(data):
    chosen = ["algorithm=all_reduce", "hardware=sim_dgx", "budget.epochs=0.05"]
    if data.endswith("per_node"):
        chosen = ["algorithm=hogwild", "hardware=sim_numa2", "problem=least_squares", "budget.epochs=1"]
    at_once = ["data.prefetch=0"] if data == "streamed" else []
    run = setup("problem=digits_mlp", *chosen, f"data={data}", *at_once, "hardware.num_workers=2", "tracking=none")
    program = replace(run, problem=replace(run.problem)).program()  # which nobody has looked at
    before = torch.get_rng_state()
    first, second = (run.machine.execute(program, lambda samples: None) for _ in range(2))
    assert first.failure is second.failure is None
    assert first.run_s == second.run_s and torch.equal(before, torch.get_rng_state())


def test_a_synchronous_run_keeps_no_counts():
    chosen = ["algorithm=all_reduce", "problem=digits_mlp", "hardware=sim_ethernet", "hardware.num_workers=2"]
    done = composed.execution(*chosen, "budget.epochs=0.05", "tracking=none")
    assert done.failure is None and [len(each.counts) for each in done.interleavings] == [0, 0]


def test_what_rounding_leaves_of_a_second_is_no_time():
    account = Account()
    for step in range(1000):
        account.computing.add(step / 3000, (step + 1) / 3000 - 1e-7)
        account.communicating.add((step + 1) / 3000 - 1e-7, (step + 1) / 3000)
    split = account.split(1000 / 3000)
    assert (split.idle_s, split.hidden_s, split.issuing_s) == (0.0, 0.0, 0.0)
