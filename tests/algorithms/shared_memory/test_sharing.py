"""How workers share a model: what is promised to be lost by nobody is not."""

import os
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from composed import execution, setup
from oracle import oracle_weights
from patience import impatient
from simulated_ranks import KERNELS_ALONE, NUMA_WITH_LOCKS, results

from algorithms.shared_memory.precision import PRECISIONS, decode, encode
from algorithms.shared_memory.replicas import MERGES, SHARING, Merged
from harness.kernels.access import LOCKING, Access, lock_words
from harness.kernels.sparse_linear import LOGISTIC, SparseLinearKernel
from harness.problems.synthetic import sparse_rows
from tests.counting import CountKernel

UPDATES = 50_000
IN_TURN = 2_000  # each waits for a certain other worker, and for the core that this one needs
LOSSLESS = [locking for locking in LOCKING if locking != "none"]
ROWS = ["problem=logistic_regression", "problem.synthetic_samples=2000", "problem.synthetic_features=500"]
ONCE = ["budget.epochs=2", "budget.observations=2", "tracking=none", "problem.dtype=float64"]


def count(locking, updates):
    """A body in which every worker adds so many times 1 to two coordinates of three."""
    kernel = CountKernel([[0, 2]], 3)
    samples = torch.zeros(1000, dtype=torch.int32)
    words = lock_words(locking, 3)

    def body(worker):
        model = worker.shared("model", torch.zeros(3, dtype=torch.float64))
        access = Access(locking, worker.shared("locks", words) if len(words) else words)
        worker.meet()
        for _ in range(updates // 1000):
            worker.run(kernel, model, samples, 1.0, access)
        worker.meet()
        return model.tolist()

    return body


@pytest.mark.parametrize("locking", LOSSLESS)
def test_simulated_counters_are_exact(locking):
    for counts in results(count(locking, 5000), 4, memory=NUMA_WITH_LOCKS, compute=KERNELS_ALONE):
        assert counts == [4 * 5000, 0, 4 * 5000]


@pytest.mark.parametrize("locking", LOCKING)
def test_real_counters_are_exact_under_every_lock_also_of_more_workers_than_cores(locking):
    """Who spins for a lock gives up the core, which its holder may need: else each look would last a time slice."""
    workers = len(os.sched_getaffinity(0)) + 2
    composed = setup("algorithm=hogwild", "hardware=cpu", f"hardware.num_workers={workers}", *ROWS, *ONCE)
    found, updates = [], IN_TURN if locking == "round_robin" else UPDATES

    class Counting(type(composed.algorithm)):
        def train(self, worker, problem):
            found.append(count(locking, updates)(worker))

        def warm_up(self, problem):
            words = lock_words(locking, 3)
            CountKernel([[0, 2]], 3).warm_up(torch.zeros(3, dtype=torch.float64), Access(locking, words))

    program = composed.program()
    object.__setattr__(program, "algorithm", Counting(**vars(composed.algorithm)))
    execution = composed.hardware.execute(program, impatient())
    assert execution.failure is None
    first, second, third = found[0]
    if locking == "none":
        assert updates <= first <= workers * updates and second == 0 and updates <= third <= workers * updates
        assert "async/lost_frac" not in execution.metrics
    else:
        assert found == [[workers * updates, 0, workers * updates]] * workers
        assert execution.metrics["async/lost_frac"] == 0.0


@cache
def of_one_worker(hardware):
    """Hogwild! with one worker, in float64 and in the order of the rows; and what scikit-learn makes of that."""
    ordered = ["data.order=storage", "algorithm.merge_every=300", "algorithm.hot_coordinates=50"]
    composed = setup(
        "algorithm=hogwild", f"hardware={hardware}", "hardware.num_workers=1", *ROWS, *ONCE, *ordered, "budget.epochs=1"
    )
    problem = composed.problem
    step = composed.algorithm.learning_rate
    return composed, oracle_weights(problem.rows, problem.labels, "log_loss", step)


SHARINGS = [
    ("shared", "delta_sum"),
    *((sharing, merge) for sharing in SHARING if sharing != "shared" for merge in MERGES),
]


def way(sharing, merge, locking):
    """Every lock on the shared model and every merge under one lock; all of both when asked for."""
    marks = () if sharing == "shared" or locking == "per_coordinate" else pytest.mark.slow
    return pytest.param(sharing, merge, locking, marks=marks)


@pytest.mark.parametrize("hardware", ["cpu", "sim_numa2"])
@pytest.mark.parametrize(
    ("sharing", "merge", "locking"), [way(*sharing, locking) for sharing in SHARINGS for locking in LOCKING]
)
def test_one_worker_equals_scikit_learn(hardware, sharing, merge, locking):
    composed, oracle = of_one_worker(hardware)
    algorithm = replace(composed.algorithm, sharing=sharing, merge=merge, locking=locking)
    execution = composed.hardware.execute(replace(composed.program(), algorithm=algorithm), lambda samples: None)
    assert execution.failure is None and execution.metrics.get("async/lost_frac", 0.0) == 0.0
    weights = execution.observations[-1].parameters
    # 1,800 updates and 6 merges of weights below 4, each rounded to 2^-53 of the weight: at worst 8e-13 apart
    assert oracle.abs().max() > 0.5
    torch.testing.assert_close(weights, oracle, rtol=0, atol=8e-13)


@pytest.mark.parametrize(("workers", "known"), [(2, {"async/lost_frac": 0.0}), (4, {})])
def test_nobody_knows_what_the_merging_of_a_node_s_replica_overwrites(workers, known):
    """Workers of the node go on with it; one that has it for itself loses nothing."""
    options = ["hardware=numa2", f"hardware.num_workers={workers}", "algorithm.locking=global_mutex", "budget.epochs=1"]
    composed = setup("algorithm=hogwild", *ROWS, *ONCE, *options, "algorithm.sharing=replica_per_node")
    execution = composed.hardware.execute(composed.program(), lambda samples: None)
    assert execution.failure is None and execution.metrics == known


@pytest.mark.parametrize("hardware", ["cpu", "numa2", "sim_numa2"])
@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("sharing", [sharing for sharing in SHARING if sharing != "shared"])
def test_replicas_learn_what_sequential_sgd_learns(hardware, sharing, merge):
    options = [f"hardware={hardware}", "hardware.num_workers=2", "algorithm.merge_every=100", "budget.epochs=6"]
    composed = setup(
        "algorithm=hogwild", *ROWS, *ONCE, *options, f"algorithm.sharing={sharing}", f"algorithm.merge={merge}"
    )
    execution = composed.hardware.execute(composed.program(), lambda samples: None)
    assert execution.failure is None
    last = execution.observations[-1]
    assert last.samples == 6 * composed.problem.num_samples
    model = composed.problem.build_model(torch.device("cpu"), 0)

    def loss(weights):
        torch.nn.utils.vector_to_parameters(weights, model.parameters())
        return composed.problem.evaluate(model)["train/loss"]

    assert loss(last.parameters) < 0.5 < loss(torch.zeros_like(last.parameters))


@pytest.mark.parametrize(("merge", "share"), [("delta_sum", 1.0), ("ring", 1.0), ("average", 1 / 3)])
def test_merged_replicas_lose_nothing(merge, share):
    """Three workers add 1 to their replicas 100 times each; `average` keeps a third of it, all others everything."""

    def body(worker):
        replica = Merged(
            worker, torch.zeros(4), Access(), worker.rank, worker.num_workers, merge, every=7 + worker.rank
        )
        for _ in range(100):
            replica.model += 1
            replica.processed(1)
        replica.finish()
        worker.meet()
        return replica.common.tolist()

    for common in results(body, 3, memory=NUMA_WITH_LOCKS, budget=300, milestones=(300,)):
        np.testing.assert_allclose(common, [300 * share] * 4, rtol=1e-5)  # sums of float32


@pytest.mark.parametrize("precision", PRECISIONS)
def test_stored_weights_mean_what_they_meant(precision):
    weights = torch.tensor([0.0, 0.5, -3.0, 7.9375])
    assert torch.equal(decode(encode(weights, precision, 0.0625), precision, 0.0625), weights)


@pytest.mark.parametrize(("precision", "quantum"), [("bfloat16", 2.0**-7), ("int8", 0.0625)])
def test_stochastic_rounding_is_right_in_the_mean(precision, quantum):
    """20,000 coordinates at 1.5 each get 0.3 quanta, once: a binomial share of 0.3 moves up, within 5 deviations."""
    count = 20_000
    kernel = CountKernel([list(range(count))], count)
    model = encode(torch.full((count,), 1.5), precision, quantum)
    kernel(model, torch.zeros(1, dtype=torch.int32), 0.3 * quantum, Access(quantum=quantum), salt=7)
    moved = (decode(model, precision, quantum) - 1.5) / quantum
    assert set(moved.tolist()) == {0.0, 1.0}
    assert abs(float(moved.mean()) - 0.3) < 5 * (0.3 * 0.7 / count) ** 0.5


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
@pytest.mark.parametrize("hardware", ["cpu", "sim_numa2"])
def test_rounded_models_learn(hardware, precision):
    composed = setup(
        "algorithm=hogwild",
        f"hardware={hardware}",
        "hardware.num_workers=2",
        *ROWS,
        *ONCE,
        f"algorithm.precision={precision}",
    )
    execution = composed.hardware.execute(composed.program(), lambda samples: None)
    assert execution.failure is None
    model = composed.problem.build_model(torch.device("cpu"), 0)
    weights = execution.observations[-1].parameters
    torch.nn.utils.vector_to_parameters(weights.double(), model.parameters())
    assert composed.problem.evaluate(model)["train/loss"] < 0.6  # log 2 = 0.69 at the start


def test_a_regularised_step_is_the_formula():
    rows, labels = sparse_rows(50, 40, 5, 0.1, 0)
    weights = torch.linspace(-1, 1, 40, dtype=torch.float64)
    kernel, expected = SparseLinearKernel(rows, labels, LOGISTIC, l2=0.1), weights.clone()
    present = torch.bincount(rows.indices, minlength=40)
    for i in (3, 7, 3):
        part = slice(int(rows.indptr[i]), int(rows.indptr[i + 1]))
        j, x = rows.indices[part].long(), rows.values[part]
        slope = -labels[i] / (1 + torch.exp(labels[i] * (x @ expected[j])))
        expected[j] -= 0.2 * (slope * x + 0.1 * 50 / present[j].double() * expected[j])
    kernel(weights, torch.tensor([3, 7, 3], dtype=torch.int32), 0.2)
    torch.testing.assert_close(weights, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("settings", "ways"),
    [
        (["sharing=replica_per_node"], ["algorithm.merge=average", "a smaller algorithm.merge_every"]),
        (["sharing=replica_per_node", "merge=average"], []),
        (["sharing=shared"], []),
    ],
)
def test_deltas_that_sum_up_are_steadied_by_merging_otherwise(settings, ways):
    chosen = setup("algorithm=hogwild", "hardware=sim_numa4", *(f"algorithm.{each}" for each in settings))
    assert chosen.algorithm.steadies() == [*ways, "a smaller algorithm.learning_rate"]


THREE = [
    "problem=logistic_regression",
    "problem.synthetic_samples=4",
    "problem.test_fraction=0.25",
    "problem.dtype=float64",
]
THREE += ["problem.synthetic_features=40", "problem.synthetic_nonzeros_per_sample=5", "budget.epochs=2"]


@pytest.mark.parametrize("hardware", ["cpu", "sim_numa2"])
@pytest.mark.parametrize("sharing", ["shared", "replica_per_worker"])
def test_more_workers_than_rows_share_them(hardware, sharing):
    chosen = [f"hardware={hardware}", "hardware.num_workers=6", f"algorithm.sharing={sharing}"]
    done = execution("algorithm=hogwild", *THREE, *chosen)
    assert done.failure is None and done.observations[-1].samples == 2 * 3
    assert done.observations[-1].parameters.abs().sum() > 0
