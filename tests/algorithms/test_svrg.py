"""SVRG converges linearly to the optimum, at least as fast as its theorem says."""

from functools import cache

import numpy as np
import pytest
import torch
from composed import setup
from scipy.optimize import minimize

from harness.data import Replicated
from harness.errors import UserError
from harness.kernels.sparse_linear import LOGISTIC, SparseLinearKernel
from harness.kernels.variance_reduced import FullGradientKernel, VarianceReducedKernel
from harness.problems.synthetic import sparse_rows
from harness.trial import evaluate

L2 = 0.1
ROWS = [
    "problem=logistic_regression",
    "problem.dtype=float64",
    "problem.synthetic_samples=1200",
    "problem.synthetic_features=20",
    "problem.synthetic_nonzeros_per_sample=8",
    "problem.test_fraction=0",
    f"problem.l2={L2}",
]
SVRG = ["algorithm=svrg", "tracking=none", "algorithm.learning_rate=0.15", "algorithm.inner_epochs=1"]


@cache
def optimum():
    """f at the optimum: full Newton steps, until they change nothing."""
    problem = setup(*ROWS, *SVRG).problem
    dense = torch.zeros(len(problem.rows), problem.rows.num_features, dtype=torch.float64)
    row = torch.repeat_interleave(torch.arange(len(dense)), problem.rows.indptr.diff())
    dense[row, problem.rows.indices.long()] = problem.rows.values
    x, y = dense.numpy(), problem.labels.numpy()

    def value(w):
        return np.logaddexp(0, -y * (x @ w)).mean() + L2 / 2 * w @ w

    def slope(w):
        return -x.T @ (y / (1 + np.exp(y * (x @ w)))) / len(y) + L2 * w

    best = minimize(value, np.zeros(x.shape[1]), jac=slope, method="BFGS", options={"gtol": 1e-10})
    assert np.linalg.norm(slope(best.x)) ** 2 / (2 * L2) < 1e-16  # f - f* is at most that
    return best.fun


def gaps(*overrides, epochs, observations, data=None):
    """f - f* at every observation."""
    composed = setup(*ROWS, *SVRG, f"budget.epochs={epochs}", f"budget.observations={observations}", *overrides)
    program = composed.program()
    if data is not None:
        object.__setattr__(program, "data", data)
    execution = composed.hardware.execute(program, lambda samples: None)
    assert execution.failure is None
    losses = [values["train/loss"] for values in evaluate(composed.problem, 0, execution.observations)]
    return np.array(losses) - optimum(), composed


def test_the_gap_falls_linearly_and_faster_than_the_theorem_says():
    """Johnson and Zhang, Theorem 1: a round multiplies the expected gap by at most `alpha`, here 0.38; seen: 0.001."""
    after, composed = gaps("hardware=cpu", "hardware.num_workers=1", epochs=16, observations=8)
    rarity = float(composed.problem.kernel.rarity.max())
    smoothness, step, updates = 0.25 + L2 * rarity, 0.15, composed.problem.num_samples
    contraction = 1 - 2 * smoothness * step
    alpha = 1 / (L2 * step * contraction * updates) + 2 * smoothness * step / contraction
    assert alpha < 0.6, "the theorem must promise something here"
    above_rounding = after[after > 1e-13]
    assert len(above_rounding) >= 4
    start = np.log(2) - optimum()
    rates = above_rounding / np.concatenate([[start], above_rounding[:-1]])
    assert rates.max() < alpha, rates
    assert after[-1] < 1e-12


@pytest.mark.parametrize("hardware", ["cpu", "sim_numa2"])
@pytest.mark.parametrize(
    "options",
    [
        ["locking=none"],
        ["locking=per_coordinate"],
        ["locking=round_robin"],
        ["sharing=replica_per_worker", "merge_every=20"],
        ["sharing=replica_per_worker", "merge_every=20", "merge=ring"],
        ["sharing=hot_replica", "hot_coordinates=5", "merge_every=20"],
        ["batch_size=40", "learning_rate=3.0"],
    ],
    ids=" ".join,
)
def test_two_workers_converge_to_the_optimum(hardware, options):
    options = [f"algorithm.{option}" for option in options]
    after, _ = gaps(f"hardware={hardware}", "hardware.num_workers=2", *options, epochs=30, observations=1)
    assert after[-1] < 1e-8


def test_a_full_gradient_is_full_whatever_the_order_of_samples():
    """Three workers, of which each draws from all samples on its own, and chunks that do not divide an epoch."""
    sharing = ["hardware=sim_numa2", "hardware.num_workers=3"]
    after, _ = gaps(*sharing, epochs=24, observations=7, data=Replicated("index"))
    assert after[-1] < 1e-8


def test_a_full_gradient_costs_virtual_time_and_samples_but_no_update():
    alone = ["hardware=sim_cpu", "hardware.num_workers=1"]
    composed = setup(*ROWS, *SVRG, *alone, "budget.epochs=4", "budget.observations=4")
    seen = composed.hardware.execute(composed.program(), lambda samples: None).observations
    samples = composed.problem.num_samples
    assert [o.samples for o in seen] == [samples, 2 * samples, 3 * samples, 4 * samples]
    assert [o.updates for o in seen] == [0, samples, samples, 2 * samples]
    nonzero_s = composed.hardware.compute.nonzero_s
    pass_s = len(composed.problem.rows.indices) * nonzero_s
    spent_s = np.diff([0.0, *(o.time_s for o in seen)])
    assert (spent_s[[0, 2]] > pass_s).all()  # and some torch operators
    steps_s = VarianceReducedKernel.relative_cost * pass_s
    steps_s += VarianceReducedKernel.relative_sample_cost * samples * nonzero_s
    np.testing.assert_allclose(spent_s[[1, 3]], steps_s, rtol=0.2)


def test_a_step_is_the_formula():
    rows, labels = sparse_rows(50, 40, 5, 0.1, 0)
    linear = SparseLinearKernel(rows, labels, LOGISTIC, l2=0.1)
    snapshot, weights = torch.linspace(1, -1, 40, dtype=torch.float64), torch.linspace(-1, 1, 40, dtype=torch.float64)
    slopes, gradient, expected = torch.zeros(50, dtype=torch.float64), torch.zeros_like(weights), weights.clone()
    FullGradientKernel(linear, snapshot, slopes)(gradient, torch.arange(50, dtype=torch.int32), 1 / 50)

    def slope(w, i):
        return -labels[i] / (1 + torch.exp(labels[i] * (dense[i] @ w)))

    dense = torch.zeros(50, 40, dtype=torch.float64)
    dense[torch.repeat_interleave(torch.arange(50), rows.indptr.diff()), rows.indices.long()] = rows.values
    full = sum(slope(snapshot, i) * dense[i] for i in range(50)) / 50
    torch.testing.assert_close(gradient, full, rtol=1e-12, atol=1e-15)
    for i in (3, 7, 3):
        rarity = (dense[i] != 0) * 50 / (dense != 0).double().sum(0)
        difference = slope(expected, i) - slope(snapshot, i)
        expected = expected - 0.2 * (difference * dense[i] + rarity * (full + 0.1 * expected))
    VarianceReducedKernel(linear, gradient, slopes)(weights, torch.tensor([3, 7, 3], dtype=torch.int32), 0.2)
    torch.testing.assert_close(weights, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("hardware", ["cpu", "sim_numa2"])
def test_a_rounded_model_comes_near_the_optimum(hardware):
    """bfloat16 keeps 8 bits, so that 20 weights below 1 are each off by 2^-9, and f by a few times 20 * 2^-18."""
    composed = setup(*ROWS, *SVRG, f"hardware={hardware}", "algorithm.precision=bfloat16", "hardware.num_workers=2")
    execution = composed.hardware.execute(composed.program(), lambda samples: None)
    assert execution.failure is None
    model = composed.problem.build_model(torch.device("cpu"), 0)
    weights = execution.observations[-1].parameters.double()
    torch.nn.utils.vector_to_parameters(weights, model.parameters())
    assert 0 < composed.problem.evaluate(model)["train/loss"] - optimum() < 1e-3


def test_the_hinge_is_refused():
    with pytest.raises(UserError, match="algorithm=svrg needs a smooth loss"):
        setup(*ROWS, *SVRG, "problem=svm")
