"""Models whose coordinates are blocks of parameters, for real and simulated: the rows of a completed matrix."""

from dataclasses import replace
from functools import cache
from itertools import product

import numpy as np
import pytest
import torch
from composed import setup
from simulated_ranks import execute, results, shared_memory

from algorithms.shared_memory.layout import hottest, parameters_of
from algorithms.shared_memory.precision import encode
from hardware.simulated.compute import Roofline
from harness.kernels.access import LOCKING, Access, lock_words
from harness.kernels.base import SplitModel
from harness.kernels.factorization import FactorizationKernel
from harness.trial import evaluate

NONZERO_S = 1e-9
COMPUTE = Roofline("none", False, {"float32": 1e30, "float64": 1e30}, 1e30, 0.0, NONZERO_S)  # operators are free
FREE = shared_memory(outstanding_misses=10)
SLOW = replace(FREE, same_socket_s=50e-9, cross_socket_s=50e-9, outstanding_misses=1)
ROWS, SAMPLES = 40, 300
ENTRIES = ["synthetic_users=60", "synthetic_items=40", "synthetic_ratings=1000", "synthetic_rank=2"]
SMALL = ["problem=matrix_completion", "problem.rank=5", *(f"problem.{entry}" for entry in ENTRIES)]
ONCE = ["budget.epochs=2", "budget.observations=2", "tracking=none", "problem.dtype=float64"]


def factorization(rows=None, width=5, dtype=torch.float64, l2=1e-3):
    """A kernel over the given pairs of rows, or random ones."""
    random = np.random.default_rng(0)
    if rows is None:
        rows = np.stack([random.integers(0, 25, SAMPLES), random.integers(25, ROWS, SAMPLES)], axis=1)
    values = torch.from_numpy(random.standard_normal(len(rows))).to(dtype)
    return FactorizationKernel(torch.tensor(np.array(rows), dtype=torch.int32), values, ROWS, width, l2)


def start(kernel):
    random = torch.Generator().manual_seed(0)
    return 0.5 * torch.randn(ROWS * kernel.block, generator=random, dtype=torch.float64).to(kernel.values.dtype)


def row_s(kernel):
    return kernel.block * kernel.relative_cost * NONZERO_S


def every(kernel):
    return torch.arange(len(kernel.values), dtype=torch.int32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("width", [1, 5, 16, 30, 65])
def test_one_simulated_worker_is_the_native_kernel_bit_for_bit(width, dtype):
    kernel = factorization(width=width, dtype=dtype)
    native = start(kernel)
    kernel(native, every(kernel), 0.1)

    def body(worker):
        model = worker.shared("model", start(kernel))
        worker.run(kernel, model, every(kernel), 0.1)
        return model.clone(), worker.clock.now()

    ((model, time_s),) = results(body, 1, memory=FREE, compute=COMPUTE)
    assert torch.equal(model, native) and not torch.equal(model, start(kernel))
    assert time_s == pytest.approx(2 * SAMPLES * row_s(kernel), rel=1e-12)


def test_a_private_model_costs_the_same():
    kernel = factorization()

    def body(worker):
        worker.run(kernel, start(kernel), every(kernel), 0.1)
        return worker.clock.now()

    expected_s = 2 * SAMPLES * row_s(kernel)
    assert results(body, 1, memory=FREE, compute=COMPUTE)[0] == pytest.approx(expected_s, rel=1e-12)


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_rounded_rows_are_the_native_kernel_s_bit_for_bit(precision):
    kernel, access = factorization(dtype=torch.float32), Access(quantum=1 / 64)
    native = encode(start(kernel), precision, 1 / 64)

    def body(worker):
        model = worker.shared("model", native)
        before = worker._salt
        worker.run(kernel, model, every(kernel), 0.1, access)
        return model.clone(), before

    ((model, salt),) = results(body, 1, memory=FREE, compute=COMPUTE)
    assert not torch.equal(model, native)
    kernel(native, every(kernel), 0.1, access, salt)
    assert torch.equal(model, native)


def test_a_slope_of_the_read_meets_the_rows_of_the_write():
    """Two workers in step read e of the same rows; rank 1 then multiplies it with the rows that rank 0 has changed."""
    kernel = factorization([(0, 1)], width=1, l2=0.0)

    def body(worker):
        model = worker.shared("model", torch.full((ROWS,), 2.0, dtype=torch.float64))
        worker.run(kernel, model, torch.zeros(1, dtype=torch.int32), 0.1)
        worker.meet()
        return model.tolist()[:2]

    left = right = 2.0
    error = 4.0 - float(kernel.values[0])
    for _ in range(2):
        left, right = left - 0.1 * error * right, right - 0.1 * error * left
    assert results(body, 2, memory=FREE, compute=COMPUTE)[0] == pytest.approx([left, right], rel=1e-12)


def repeated(kernel, sample_of, count=100):
    """A body in which every rank visits one entry again and again."""

    def body(worker):
        model = worker.shared("model", start(kernel))
        worker.run(kernel, model, torch.full((count,), sample_of(worker.rank), dtype=torch.int32), 0.01)

    return body


def test_conflicts_are_of_rows_not_of_lines():
    """Rows 0 to 3 of 3 float64 lie on two lines; who shares a line meets nobody, who shares a row does."""
    kernel = factorization([(0, 2), (1, 3), (1, 2)], width=3)
    apart = execute(repeated(kernel, lambda rank: rank), 2, memory=FREE, compute=COMPUTE)
    assert apart.metrics["async/conflict_frac"] == 0.0
    together = execute(repeated(kernel, lambda rank: 1 + rank), 2, memory=FREE, compute=COMPUTE)
    assert together.metrics["async/conflict_frac"] == 199 / 200  # all but the very first write


@pytest.mark.parametrize(
    ("width", "lines"),
    [(8, 2), (16, 4), (9, 4), (30, 9)],  # of 8 float64; row 0 begins a line, row 9 may lie across
)
def test_every_line_of_a_row_travels(width, lines):
    """Two workers in turn on the same rows: each update lacks every line of both of them."""
    kernel = factorization([(0, 9)], width=width)
    first, last = 9 * width // 8, (10 * width - 1) // 8
    assert lines == -(-width // 8) + last - first + 1

    def moved_s(memory):
        return execute(repeated(kernel, lambda rank: 0), 2, memory=memory, compute=COMPUTE).run_s

    extra_s = moved_s(SLOW) - moved_s(FREE)
    # An update fetches the lines the other one wrote, or takes them back from it, or both.
    assert 0.9 * 100 * lines * 50e-9 < extra_s < 2.1 * 100 * lines * 50e-9


def test_rows_that_are_replicated_are_on_no_shared_line():
    """The same entry, its rows once on lines that both workers write, once in a replica of each."""
    kernel, width = factorization([(3, 9)]), 5
    hot = torch.cat([torch.arange(15, 20), torch.arange(45, 50)])

    def body(worker):
        cold = worker.shared("model", start(kernel))
        slots = torch.full((ROWS * width,), -1, dtype=torch.int32)
        slots[hot] = torch.arange(10, dtype=torch.int32)
        split = SplitModel(cold, cold[hot].clone(), slots)
        worker.run(kernel, split, torch.zeros(100, dtype=torch.int32), 0.01)
        return worker.clock.now(), torch.equal(cold, start(kernel)), split.hot.clone()

    alone = start(kernel)
    kernel(alone, torch.zeros(100, dtype=torch.int32), 0.01)
    for time_s, untouched, replica in results(body, 2, memory=SLOW, compute=COMPUTE):
        assert time_s == pytest.approx(100 * 2 * row_s(kernel), rel=1e-12) and untouched
        torch.testing.assert_close(replica, alone[hot], rtol=1e-12, atol=0)


def test_an_atomic_addition_is_paid_for_every_parameter():
    kernel = factorization([(0, 9)])
    memory = replace(FREE, atomic_s=1e-6)

    def body(worker):
        model = worker.shared("model", start(kernel))
        worker.run(kernel, model, torch.zeros(1, dtype=torch.int32), 0.01, Access("atomic"))
        return worker.clock.now()

    assert results(body, 1, memory=memory, compute=COMPUTE)[0] == pytest.approx(10e-6, rel=1e-2)


def test_a_row_has_one_lock():
    """An atomic operation to take it, for each of two rows; to let go is a store."""
    kernel = factorization([(0, 9)])
    memory = replace(FREE, atomic_s=1e-6)

    def body(worker):
        words = worker.shared("locks", lock_words("per_coordinate", kernel.num_coordinates))
        model = worker.shared("model", start(kernel))
        worker.run(kernel, model, torch.zeros(1, dtype=torch.int32), 0.01, Access("per_coordinate", words))
        return worker.clock.now()

    assert results(body, 1, memory=memory, compute=COMPUTE)[0] == pytest.approx(2e-6, rel=1e-2)


def test_the_hottest_are_all_parameters_of_the_most_visited_rows():
    kernel = factorization([(0, 9), (1, 9), (1, 9), (2, 30)], width=3)
    assert parameters_of(kernel, hottest(kernel, 2)).tolist() == [27, 28, 29, 3, 4, 5]
    assert sorted(parameters_of(kernel, hottest(kernel, 1000)).tolist()) == list(range(3 * ROWS))


def executed(*overrides):
    composed = setup("algorithm=hogwild", *SMALL, *ONCE, *overrides)
    execution = composed.hardware.execute(composed.program(), lambda samples: None)
    assert execution.failure is None
    return composed, execution


@cache
def sequential():
    return executed("algorithm=sgd", "hardware=cpu", "hardware.num_workers=1")[1].observations[-1].parameters


@pytest.mark.parametrize("hardware", ["cpu", "sim_numa2"])
@pytest.mark.parametrize(
    ("sharing", "locking"),
    [*product(["shared", "hot_replica"], LOCKING), ("replica_per_worker", "none"), ("replica_per_node", "none")],
)
def test_one_worker_is_sequential_sgd(sharing, locking, hardware):
    one = ["hardware.num_workers=1", f"hardware={hardware}", "algorithm.merge_every=300"]
    options = [f"algorithm.sharing={sharing}", f"algorithm.locking={locking}", "algorithm.hot_coordinates=10"]
    weights = executed(*one, *options)[1].observations[-1].parameters
    # a merge rounds every weight once more, and a replica of the hottest rows is summed in another order
    torch.testing.assert_close(weights, sequential(), rtol=0, atol=0 if sharing == "shared" else 1e-12)


@pytest.mark.parametrize(
    ("algorithm", "hardware", "workers"),
    [("sgd", "cpu", 1), ("hogwild", "cpu", 2), ("hogwild", "sim_numa2", 2), ("hogwild", "sim_cpu", 4)],
)
def test_a_planted_matrix_is_recovered(algorithm, hardware, workers):
    """Noise-free entries of deviation 1; those held out are off by less than 1e-6, and begin at about 1."""
    planted = ["problem.rank=2", "problem.synthetic_noise=0", "problem.l2=0", "problem.synthetic_ratings=1200"]
    run = [f"algorithm={algorithm}", f"hardware={hardware}", f"hardware.num_workers={workers}"]
    composed, execution = executed(*run, *planted, "budget.epochs=150", "algorithm.learning_rate=0.05")
    assert evaluate(composed.problem, 0, execution.observations)[-1]["eval/rmse"] < 1e-6


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
@pytest.mark.parametrize("hardware", ["cpu", "sim_numa2"])
def test_rounded_factors_learn(hardware, precision):
    options = ["problem.dtype=float32", "problem.l2=0", "budget.epochs=40", "algorithm.learning_rate=0.05"]
    rounded = [f"algorithm.precision={precision}", "algorithm.quantum=0.02", "hardware.num_workers=2"]
    composed, execution = executed(f"hardware={hardware}", *options, *rounded)
    losses = [metrics["train/loss"] for metrics in evaluate(composed.problem, 0, execution.observations)]
    assert losses[-1] < 0.2  # 0.55 at the start


@pytest.mark.parametrize("hardware", ["cpu", "sim_ethernet"])
def test_all_reduce_is_sequential_minibatch_sgd(hardware):
    """Two workers with batches of 15 are one with batches of 30, but for the order of sums and who deals what."""
    options = ["algorithm=all_reduce", f"hardware={hardware}", "algorithm.learning_rate=1.0", "problem.l2=1e-3"]
    both, one = (
        executed(*options, f"hardware.num_workers={workers}", f"algorithm.batch_size={30 // workers}")[1]
        for workers in (2, 1)
    )
    torch.testing.assert_close(
        both.observations[-1].parameters, one.observations[-1].parameters, rtol=1e-10, atol=1e-12
    )
