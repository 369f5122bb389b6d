"""Coordinate descent ends where liblinear does."""

import os
from functools import cache

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from composed import setup
from simulated_ranks import results, shared_memory
from sklearn.linear_model import LogisticRegression
from sklearn.svm import LinearSVC

from algorithms.coordinate_descent import features_of
from hardware.simulated.compute import Roofline
from harness.errors import UserError
from harness.kernels.coordinate_descent import DualKernel, logistic_dual
from harness.kernels.sparse_linear import LOGISTIC, SparseLinearKernel
from harness.problems.synthetic import sparse_rows
from harness.trial import evaluate

L2 = 0.01
ROWS = [
    "problem.dtype=float64",
    "problem.synthetic_samples=400",
    "problem.synthetic_features=60",
    "problem.synthetic_nonzeros_per_sample=10",
    "problem.test_fraction=0",
    f"problem.l2={L2}",
    "tracking=none",
    "budget.observations=1",
]
LOSSES = {
    "logistic": ["problem=logistic_regression"],
    "hinge": ["problem=svm"],
    "squared hinge": ["problem=svm", "problem.squared=true"],
}
DUAL, PRIMAL = "algorithm=dual_coordinate_descent", "algorithm=coordinate_descent"
METHODS = [*((DUAL, loss) for loss in LOSSES), *((PRIMAL, loss) for loss in LOSSES if loss != "hinge")]
FOUR = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 4, reason="needs 4 cores")
WORKERS = [("cpu", 2), pytest.param("cpu", 4, marks=FOUR), ("sim_numa2", 2), ("sim_numa2", 4)]


def value(problem, weights):
    model = problem.build_model(torch.device("cpu"), 0)
    torch.nn.utils.vector_to_parameters(torch.as_tensor(weights), model.parameters())
    return problem.evaluate(model)["train/loss"]


@cache
def liblinear(loss):
    """The objective where liblinear ends."""
    problem = setup(DUAL, *LOSSES[loss], *ROWS).problem
    rows, labels = problem.rows, problem.labels.numpy()
    matrix = sp.csr_matrix((rows.values.numpy(), rows.indices.numpy(), rows.indptr.numpy()))
    same = {"C": 1 / (len(rows) * L2), "fit_intercept": False, "tol": 1e-10, "max_iter": 10**6, "random_state": 0}
    if loss == "logistic":
        fitted = LogisticRegression(solver="liblinear", **same).fit(matrix, labels)
    else:
        fitted = LinearSVC(loss=loss.replace(" ", "_"), dual=True, **same).fit(matrix, labels)
    return value(problem, fitted.coef_[0])


def relative_gap(loss, *overrides):
    composed = setup(*LOSSES[loss], *ROWS, *overrides)
    execution = composed.hardware.execute(composed.program(), lambda samples: None)
    assert execution.failure is None
    (last,) = evaluate(composed.problem, 0, execution.observations)
    return last["train/loss"] / liblinear(loss) - 1


@pytest.mark.parametrize(("algorithm", "loss"), METHODS)
def test_one_worker_reaches_the_optimum_of_liblinear(algorithm, loss):
    gap = relative_gap(loss, algorithm, "hardware=cpu", "hardware.num_workers=1", "budget.epochs=400")
    assert abs(gap) < 1e-8, gap


@pytest.mark.parametrize(("hardware", "workers"), WORKERS)
@pytest.mark.parametrize("locking", ["atomic", "per_coordinate"])
@pytest.mark.parametrize(("algorithm", "loss"), [(DUAL, "hinge"), (DUAL, "logistic"), (PRIMAL, "logistic")])
def test_workers_that_lose_nothing_reach_it_too(algorithm, loss, locking, hardware, workers):
    options = [f"hardware={hardware}", f"hardware.num_workers={workers}", f"algorithm.locking={locking}"]
    epochs = 2000 if hardware == "cpu" else 200  # a thread may sleep for 10 ms, with what it read 100 epochs ago
    gap = relative_gap(loss, algorithm, *options, f"budget.epochs={epochs}")
    assert abs(gap) < 1e-6, gap


@pytest.mark.parametrize("sharing", ["replica_per_worker", "hot_replica"])
def test_replicas_reach_it_too(sharing):
    """Deltas of 20 samples are small beside the 400 that share a model, so that their sum does not overshoot."""
    options = ["hardware=sim_numa2", "hardware.num_workers=2", f"algorithm.sharing={sharing}"]
    options += ["algorithm.merge_every=20", "algorithm.hot_coordinates=5", "budget.epochs=100"]
    assert abs(relative_gap("logistic", DUAL, *options)) < 1e-6


@pytest.mark.parametrize(("old", "margin", "quadratic"), [(0.0, 0.3, 2.0), (1.0, -900.0, 1e-3), (0.7, 40.0, 1e6)])
def test_the_logistic_dual_step_ends_where_the_derivative_is_zero(old, margin, quadratic):
    """b solves b = sigmoid(-margin - quadratic (b - old)), in float64 to a few roundings of its argument."""
    best = logistic_dual(old, margin, quadratic)
    assert 0.0 <= best <= 1.0
    argument = -margin - quadratic * (best - old)
    rounding = 4e-16 * (abs(margin) + quadratic)  # of the argument, whose slope is at most 1/4 in b
    assert abs(best - 1 / (1 + np.exp(-np.clip(argument, -700, 700)))) < max(rounding, 1e-15)


def test_a_dual_step_is_the_formula():
    problem = setup(DUAL, *LOSSES["hinge"], *ROWS).problem
    rows, labels, count = problem.rows, problem.labels, problem.num_samples
    dual, weights = torch.zeros(count, dtype=torch.float64), torch.zeros(rows.num_features, dtype=torch.float64)
    DualKernel(problem.kernel, dual)(weights, torch.tensor([3, 7, 3], dtype=torch.int32), 0.5)
    expected, a = torch.zeros_like(weights), torch.zeros_like(dual)
    for i in (3, 7, 3):
        x = torch.zeros_like(weights)
        part = slice(int(rows.indptr[i]), int(rows.indptr[i + 1]))
        x[rows.indices[part].long()] = rows.values[part]
        best = (a[i] + (1 - labels[i] * (x @ expected)) * L2 * count / (x @ x)).clamp(0, 1)
        change = 0.5 * (best - a[i])
        expected, a[i] = expected + change * labels[i] * x / (L2 * count), a[i] + change
    torch.testing.assert_close(weights, expected, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(dual, a, rtol=1e-12, atol=1e-15)
    assert 0 < a[3] < 1


def test_features_stand_for_samples_evenly():
    for num_samples, num_features in ((7, 3), (3, 7), (5, 5), (4, 1)):
        samples = torch.randperm(num_samples, dtype=torch.int32)
        parts = [
            features_of(samples[:2], num_samples, num_features),
            features_of(samples[2:], num_samples, num_features),
        ]
        assert sorted(torch.cat(parts).tolist()) == list(range(num_features))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([DUAL, "problem.l2=0"], r"problem.l2 must be > 0 \(such as 1e-4\) with algorithm=dual_coordinate_descent"),
        ([DUAL, "problem=digits_mlp"], "coordinate descent needs a linear model on rows"),
        ([DUAL, "algorithm.batch_size=2"], "algorithm.batch_size must be 1"),
        ([DUAL, "algorithm.learning_rate=1.5"], r"algorithm.learning_rate must be in \(0, 1\]"),
        ([DUAL, "algorithm.precision=int8"], "algorithm.precision must be full"),
        (
            [DUAL, "algorithm.merge=average", "algorithm.sharing=replica_per_worker"],
            "algorithm.merge must be delta_sum or ring",
        ),
        ([PRIMAL, "problem=digits_mlp"], "or `problem=svm problem.squared=true`, or"),
        ([PRIMAL, "problem=svm"], "algorithm=coordinate_descent needs a smooth loss"),
        ([PRIMAL, "algorithm.sharing=replica_per_worker"], "algorithm.sharing must be shared"),
    ],
)
def test_what_cannot_be_done_is_refused(options, message):
    problem = [] if any(option.startswith("problem=") for option in options) else LOSSES["logistic"]
    rows = [] if "problem=digits_mlp" in options else ROWS
    with pytest.raises(UserError, match=message):
        setup(*problem, *rows, *options)


@pytest.mark.parametrize("shared", [True, False])
def test_the_root_of_a_logistic_dual_costs_its_sample(shared):
    """By itself, on a model of its own or on one that could be shared, where no line travels."""
    rows, labels = sparse_rows(30, 20, 5, 0.1, seed=0)
    kernel = DualKernel(SparseLinearKernel(rows, labels, LOGISTIC, 0.1), torch.zeros_like(labels))
    compute = Roofline("none", False, {"float64": 1e30}, 1e30, 0.0, 1e-9)

    def body(worker):
        weights = torch.zeros(20, dtype=torch.float64)
        before_s = worker.clock.now()
        worker.run(kernel, worker.shared("w", weights) if shared else weights, torch.arange(30).int(), 1.0)
        return worker.clock.now() - before_s

    (time_s,) = results(body, 1, memory=shared_memory(), compute=compute)
    own_s = 1e-9 * (kernel.relative_sample_cost * 30 + kernel.relative_cost * len(rows.indices))
    assert kernel.relative_sample_cost > 0
    assert time_s == pytest.approx(own_s, rel=1e-9)
