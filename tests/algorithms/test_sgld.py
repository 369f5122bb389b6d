"""SGLD walks through the posterior: with a constant step, through the distribution that is known exactly for Gaussians.

On least squares e = w - w* obeys e <- (I - eta A_i) e - eta g_i + noise, with A_i = x_i x_i' + l2 R_i, R_i the rarities
on the support of x_i, and g_i = A_i w* - y_i x_i. Samples drawn with replacement make its stationary covariance the
solution of S = E (I - eta A_i) S (I - eta A_i)' + eta^2 E g_i g_i' + (2 eta T / n) I: Mandt, Hoffman, Blei (JMLR 2017,
section 3), without their approximations. As eta goes to 0 it becomes the posterior's, T/n H^-1, H = E A_i.
"""

from functools import cache

import numpy as np
import pytest
import torch
from composed import execution, setup
from simulated_ranks import KERNELS_ALONE, NUMA_WITH_LOCKS, results

from harness.errors import UserError
from harness.kernels.langevin import LangevinKernel
from harness.kernels.numbers import hashed, normal
from harness.kernels.sparse_linear import SQUARES, SparseLinearKernel
from harness.problems.synthetic import sparse_rows

COUNT, FEATURES, L2, TEMPERATURE = 40, 6, 0.2, 0.7
CHUNK = 50  # updates between two looks at the weights


@cache
def linear():
    rows, _ = sparse_rows(COUNT, FEATURES, 3, 0.0, seed=1)
    labels = torch.randn(COUNT, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return SparseLinearKernel(rows, labels, SQUARES, L2)


@cache
def moments():
    """A_i, w*, g_i and H."""
    rows, labels = linear().rows, linear().labels.numpy()
    x = np.zeros((COUNT, FEATURES))
    x[np.repeat(np.arange(COUNT), rows.indptr.diff()), rows.indices.numpy()] = rows.values.numpy()
    assert (x != 0).any(0).all() and (x == 0).any(0).all(), "every feature is in some rows, and not in all"
    rarity = COUNT / (x != 0).sum(0)
    a = np.array([np.outer(row, row) + L2 * np.diag((row != 0) * rarity) for row in x])
    optimum = np.linalg.solve(a.mean(0), (labels[:, None] * x).mean(0))
    return a, optimum, a @ optimum - labels[:, None] * x, a.mean(0)


def stationary(step):
    a, _, g, _ = moments()
    keep = np.eye(FEATURES) - step * a
    spread = np.mean([np.kron(k, k) for k in keep], 0)
    source = step**2 * np.einsum("ni,nj->ij", g, g) / COUNT + 2 * step * TEMPERATURE / COUNT * np.eye(FEATURES)
    return np.linalg.solve(np.eye(FEATURES**2) - spread, source.ravel()).reshape(FEATURES, FEATURES)


def posterior():
    return TEMPERATURE / COUNT * np.linalg.inv(moments()[3])


def drawn(looks, seed):
    """Samples with replacement, a chunk for each look."""
    numbers = np.random.default_rng(seed).integers(0, COUNT, (looks, CHUNK), dtype=np.int32)
    return torch.from_numpy(numbers)


def variance_and_error(walk):
    """Mean of |w - w*|^2 over a walk, and its standard error, from 40 parts of the walk that are nearly independent."""
    squares = ((walk - moments()[1]) ** 2).sum(1)
    parts = squares[len(squares) // 20 :]  # what remembers the start is left out
    means = parts[: len(parts) // 40 * 40].reshape(40, -1).mean(1)
    return means.mean(), means.std(ddof=1) / 40**0.5


@pytest.mark.parametrize("step", [0.2, 0.01])
def test_one_worker_has_the_stationary_variance(step):
    kernel, weights = LangevinKernel(linear(), TEMPERATURE), torch.zeros(FEATURES, dtype=torch.float64)
    walk = []
    for look, samples in enumerate(drawn(30_000, seed=0)):
        kernel(weights, samples, step, salt=look * CHUNK)
        walk.append(weights.numpy().copy())
    variance, error = variance_and_error(np.array(walk))
    expected = np.trace(stationary(step))
    assert error < 0.02 * expected
    assert abs(variance - expected) < 4 * error
    bias = expected / np.trace(posterior()) - 1
    assert bias > 0.5 if step == 0.2 else bias < 0.05


def test_two_workers_on_one_model_have_it_too():
    """A gradient that is one update late changes the variance by about eta |H| = 2%."""
    step, looks = 0.02, 6_000

    def body(worker):
        kernel, walk = LangevinKernel(linear(), TEMPERATURE), []
        model = worker.shared("model", torch.zeros(FEATURES, dtype=torch.float64))
        for samples in drawn(looks, seed=worker.rank):
            worker.run(kernel, model, samples, step)
            walk.append(model.numpy().copy())
        return np.array(walk)

    first, second = results(body, 2, memory=NUMA_WITH_LOCKS, compute=KERNELS_ALONE)
    assert (first != second).any()
    variance, error = variance_and_error(first)
    expected = np.trace(stationary(step))
    assert error < 0.03 * expected
    assert abs(variance - expected) < 4 * error + 0.02 * expected


def test_dense_noise_by_torch_has_the_posterior_variance():
    """Without noise in the data gradients vanish at w*; for H = I the variance is T/n / (1 - eta/2) per coordinate."""
    rows = ["problem=least_squares", "problem.samples=40", "problem.features=2", "problem.condition=1"]
    walk = [
        "problem.noise=0",
        "problem.dtype=float64",
        "budget.epochs=400",
        "budget.observations=4000",
        "tracking=none",
    ]
    options = ["algorithm=sgld", "algorithm.batch_size=4", "algorithm.learning_rate=0.05", "hardware.num_workers=1"]
    composed = setup("hardware=cpu", *rows, *walk, *options)
    execution = composed.hardware.execute(composed.program(), lambda samples: None)
    assert execution.failure is None
    seen = np.array([o.parameters.numpy() for o in execution.observations])[300:]
    variance = ((seen - composed.problem.optimum.numpy()) ** 2).sum(1).mean()
    # 3,700 steps, each of which forgets 5%, and two coordinates: about 370 independent squares, 4 standard errors
    assert variance == pytest.approx(2 / 40 / (1 - 0.05 / 2), rel=4 * (2 / 370) ** 0.5)


def test_random_numbers_are_standard_normal_and_those_of_their_update():
    count = 100_000

    def drawn(coordinate):
        return np.array([normal(np.uint64(hashed(np.uint64(salt), coordinate))) for salt in range(count)])

    numbers = drawn(3)
    assert abs(numbers.mean()) < 5 / count**0.5
    assert abs(numbers.var() - 1) < 5 * (2 / count) ** 0.5
    assert abs((numbers**4).mean() - 3) < 5 * (96 / count) ** 0.5
    assert abs((numbers[1:] * numbers[:-1]).mean()) < 5 / count**0.5
    assert abs((drawn(4) * numbers).mean()) < 5 / count**0.5
    assert normal(np.uint64(0)) == pytest.approx((64 * np.log(2)) ** 0.5, rel=1e-15)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["algorithm.temperature=0"], "algorithm.temperature must be > 0"),
        (["algorithm.precision=int8", "algorithm.locking=atomic"], "algorithm.precision must be full"),
        (["algorithm.merge=average", "algorithm.sharing=hot_replica"], "algorithm.merge must be delta_sum or ring"),
    ],
)
def test_what_would_have_another_variance_is_refused(options, message):
    with pytest.raises(UserError, match=message):
        setup("algorithm=sgld", "hardware=cpu", "tracking=none", *options)


WALK = ["algorithm=sgld", "problem=logistic_regression", "problem.synthetic_samples=600", "problem.l2=0.01"]
WALK += ["problem.dtype=float64", "budget.epochs=2", "budget.observations=1", "tracking=none"]


@pytest.mark.parametrize("hardware", ["cpu", "sim_numa2"])
@pytest.mark.parametrize("data", ["partitioned", "sharded_per_node", "replicated_per_node"])
def test_one_worker_walks_the_same_wherever_rows_lie(hardware, data):
    one = [*WALK, f"hardware={hardware}", "hardware.num_workers=1"]
    still, moved = execution(*one), execution(*one, f"data={data}", "data.order=permuted")
    assert moved.failure is None
    assert torch.equal(still.observations[-1].parameters, moved.observations[-1].parameters)


@pytest.mark.parametrize("hardware", ["cpu", "sim_numa2"])
def test_a_padded_model_gets_the_noise_of_its_places(hardware):
    """Noise apart, padding changes nothing: at a temperature near 0 the walks are one, at 1 they are not."""
    one = [*WALK, f"hardware={hardware}", "hardware.num_workers=1"]
    cold, cold_padded, padded, warm = (
        execution(*one, f"algorithm.temperature={temperature}", f"algorithm.layout={layout}")
        .observations[-1]
        .parameters
        for temperature, layout in ((1e-30, "as_given"), (1e-30, "padded"), (1.0, "padded"), (1.0, "as_given"))
    )
    torch.testing.assert_close(cold_padded, cold, rtol=1e-9, atol=1e-12)  # the noise is below 1e-15 a step
    assert not torch.allclose(padded, warm, rtol=1e-3)
    assert float(padded.var()) == pytest.approx(float(warm.var()), rel=0.3)  # of thousands of weights


@pytest.mark.parametrize("options", [["data=sharded_per_node", "data.order=permuted"], ["algorithm.layout=padded"]])
def test_two_simulated_workers_walk_on_moved_rows(options):
    done = execution(*WALK, "hardware=sim_numa2", "hardware.num_workers=2", *options)
    assert done.failure is None
    assert done.observations[-1].samples == 1080  # two epochs of what is not held out
