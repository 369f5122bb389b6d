"""Additions that are lost: as many as counters lack, in virtual time to the last one."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from composed import setup
from simulated_ranks import KERNELS_ALONE, NUMA_WITH_LOCKS, execute, results

from harness.build import build
from harness.cli import composed
from harness.kernels.access import LOCKING, Access, lock_words
from harness.kernels.base import SplitModel
from harness.kernels.sparse_linear import LOGISTIC, SparseLinearKernel
from harness.problems.synthetic import sparse_rows
from tests.counting import CountKernel

CONF = Path(__file__).parents[2] / "conf"
LINES = ("same_socket", "cross_socket", "local_memory", "remote_memory")
FREE = replace(NUMA_WITH_LOCKS, **{f"{name}_s": 0.0 for name in LINES})
ROWS = [[0, 1, 2], [0, 30], [1, 2, 3, 31], [40]]  # of 64 coordinates, some of them on one line


def counted(workers, locking="none", memory=NUMA_WITH_LOCKS, samples=None, block=1, dtype=torch.float64):
    """Every worker takes the rows in an order of its own. Returns the additions made, those found, and the metrics."""
    kernel, words = CountKernel(ROWS, 64, block), lock_words(locking, 64)
    found = {}

    def body(worker):
        model = worker.shared("model", torch.zeros(64 * block, dtype=dtype))
        access = Access(locking, worker.shared("locks", words) if len(words) else words)
        order = torch.from_numpy(np.random.default_rng(worker.rank).integers(0, 4, 3000, dtype=np.int32))
        for part in order.split(100):
            worker.run(kernel, model, part, 1.0, access)
        worker.meet()
        found[worker.rank] = model.sum().item(), kernel.nonzeros(order) * block

    done = execute(body, workers, memory=memory, compute=KERNELS_ALONE)
    assert done.failure is None
    return sum(made for _, made in found.values()), found[0][0], done.metrics


PRESETS = sorted(path.stem for path in (CONF / "hardware" / "memory").glob("*.yaml"))


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("locking", LOCKING)
def test_what_is_lost_with_the_costs_of_a_device_file_is_what_counters_lack(locking, preset):
    memory = build(composed([f"hardware/memory={preset}", "hardware=sim_numa2"]).hardware, "hardware").memory
    made, found, metrics = counted(16, locking, memory=memory)
    assert metrics["async/lost_frac"] == (made - found) / made
    assert (found < made) == (locking == "none")


@pytest.mark.parametrize("workers", [1, 2, 3, 16])
@pytest.mark.parametrize("locking", LOCKING)
def test_what_is_lost_is_what_counters_lack(locking, workers):
    made, found, metrics = counted(workers, locking)
    assert metrics["async/lost_frac"] == (made - found) / made
    assert (found < made) == (locking == "none" and workers > 1)


@pytest.mark.parametrize("memory", [FREE, NUMA_WITH_LOCKS])
@pytest.mark.parametrize("locking", LOCKING)
def test_one_worker_is_sequential_bit_for_bit(locking, memory):
    rows, labels = sparse_rows(500, 300, 10, 0.1, 0)
    kernel, words = SparseLinearKernel(rows, labels, LOGISTIC), lock_words(locking, 300)
    order = torch.randperm(500, generator=torch.Generator().manual_seed(0)).int()

    def body(worker):
        model = worker.shared("model", torch.zeros(300, dtype=rows.values.dtype))
        access = Access(locking, worker.shared("locks", words) if len(words) else words)
        for part in order.split(70):
            worker.run(kernel, model, part, 0.5, access)
        return model.clone()

    native = torch.zeros(300, dtype=rows.values.dtype)
    kernel(native, order, 0.5)
    (model,) = results(body, 1, memory=memory, compute=KERNELS_ALONE)
    assert torch.equal(model, native) and native.abs().max() > 0.5


@pytest.mark.parametrize("block", [3, 16])
def test_blocks_are_lost_whole(block):
    made, found, metrics = counted(4, block=block)
    assert 0 < metrics["async/lost_frac"] == pytest.approx((made - found) / made, rel=1e-12)


@pytest.mark.parametrize("locking", [each for each in LOCKING if each != "none"])
def test_locks_lose_no_block(locking):
    made, found, metrics = counted(4, locking, block=3)
    assert made == found and metrics["async/lost_frac"] == 0.0


@pytest.mark.parametrize("locking", [each for each in LOCKING if each != "none"])
def test_locks_lose_nothing_of_a_model_whose_hottest_blocks_are_replicated(locking):
    kernel, words = CountKernel(ROWS, 64, 2), lock_words(locking, 64)
    slots = torch.full((128,), -1, dtype=torch.int32)
    slots[[2, 3, 60, 61]] = torch.arange(4, dtype=torch.int32)  # of the coordinates 1 and 30

    def body(worker):
        model = worker.shared("model", torch.zeros(128, dtype=torch.float64))
        split = SplitModel(model, torch.zeros(4, dtype=torch.float64), slots)
        access = Access(locking, worker.shared("locks", words) if len(words) else words)
        order = torch.from_numpy(np.random.default_rng(worker.rank).integers(0, 4, 500, dtype=np.int32))
        worker.run(kernel, split, order, 1.0, access)
        worker.meet()
        return model.sum().item(), split.hot.sum().item(), 2 * kernel.nonzeros(order)

    found = results(body, 3, memory=NUMA_WITH_LOCKS, compute=KERNELS_ALONE)
    assert found[0][0] + sum(hot for _, hot, _ in found) == sum(made for _, _, made in found)


@pytest.mark.parametrize("locking", ["atomic", "per_coordinate"])
def test_empty_rows_hold_up_nobody(locking):
    kernel, words = CountKernel([[], [0, 1], []], 2), lock_words(locking, 2)
    samples = torch.tensor([0, 1, 2] * 20, dtype=torch.int32)

    def body(worker):
        model = worker.shared("model", torch.zeros(2, dtype=torch.float64))
        access = Access(locking, worker.shared("locks", words) if len(words) else words)
        worker.run(kernel, model, samples, 1.0, access)
        worker.meet()
        return model.tolist()

    assert results(body, 2, memory=NUMA_WITH_LOCKS, compute=KERNELS_ALONE) == [[40.0, 40.0]] * 2
    native = torch.zeros(2, dtype=torch.float64)
    kernel(native, samples, 1.0, Access(locking, words))
    assert native.tolist() == [20.0, 20.0]


@pytest.mark.parametrize("workers", [2, 16])
def test_memory_that_costs_nothing_loses_nothing(workers):
    made, found, metrics = counted(workers, memory=FREE)
    assert made == found and metrics["async/lost_frac"] == 0.0
    assert metrics["async/conflict_frac"] > 0.4  # though they update the same coordinates


def test_a_coordinate_that_nobody_shares_is_not_lost():
    kernel = CountKernel([[0], [16]], 32)  # float32: on lines of their own

    def body(worker):
        model = worker.shared("model", torch.zeros(32))
        worker.run(kernel, model, torch.full((500,), worker.rank, dtype=torch.int32), 1.0)
        worker.meet()
        return model[[0, 16]].tolist()

    assert results(body, 2, memory=NUMA_WITH_LOCKS, compute=KERNELS_ALONE) == [[500, 500]] * 2


def test_the_later_store_overwrites_the_earlier_one():
    """Both read at 0. Rank 0 has the line at 80 ns, computes for 1, loads at 81, and has it alone 120 later, at 201.

    Rank 1, on the other socket, has it at 140 and loads at 141, before that. The line is on its way to rank 0 until
    201, and then for 120 to rank 1, which stores at 321: 1, on what it has loaded.
    """
    kernel = CountKernel([[0]], 64)

    def body(worker):
        model = worker.shared("model", torch.zeros(64))
        worker.run(kernel, model, torch.zeros(1, dtype=torch.int32), 1.0)
        stored_s = worker.clock.now()
        worker.meet()
        return stored_s, model[0].item()

    (first_s, count), (second_s, same) = results(body, 2, memory=NUMA_WITH_LOCKS, compute=KERNELS_ALONE)
    assert (first_s, second_s) == pytest.approx((201e-9, 321e-9), rel=1e-9) and count == same == 1.0
    assert execute(body, 2, memory=NUMA_WITH_LOCKS, compute=KERNELS_ALONE).metrics["async/lost_frac"] == 0.5


@pytest.mark.parametrize(("dtype", "in_line"), [(torch.float32, 16), (torch.float64, 8)])
def test_sixteen_locks_of_coordinates_share_a_line_whatever_the_model_is(dtype, in_line):
    """Two workers on coordinates of their own, on lines of their own but for the locks of those less than 16 apart."""

    def run_s(apart):
        kernel, words = CountKernel([[0], [apart]], 128), lock_words("per_coordinate", 128)

        def body(worker):
            model = worker.shared("model", torch.zeros(128, dtype=dtype))
            access = Access("per_coordinate", worker.shared("locks", words))
            worker.run(kernel, model, torch.full((100,), worker.rank, dtype=torch.int32), 1.0, access)

        return execute(body, 2, memory=NUMA_WITH_LOCKS, compute=KERNELS_ALONE).run_s

    assert run_s(16) == run_s(64) < run_s(15) / 3
    assert in_line == 16 or run_s(8) / 3 > run_s(16)


def test_hot_coordinates_of_replicas_meet_nobody():
    hot = ["algorithm=hogwild", "algorithm.sharing=hot_replica", "hardware=sim_numa2", "problem.synthetic_samples=1000"]
    few = ["problem.synthetic_features=100", "problem.synthetic_nonzeros_per_sample=10", "tracking=none"]

    def metrics(count):
        run = setup(*hot, *few, "budget.epochs=1", f"algorithm.hot_coordinates={count}")
        return run.hardware.execute(run.program(), lambda samples: None).metrics

    some, none = metrics(20), metrics(100)
    assert some["async/conflict_frac"] > 0 and some["async/lost_frac"] > 0
    assert none["async/conflict_frac"] == none["async/lost_frac"] == 0.0
