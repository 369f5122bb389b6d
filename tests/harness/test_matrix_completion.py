import numpy as np
import pytest
import torch
from composed import node

from harness.build import build
from harness.errors import UserError
from harness.kernels.base import SplitModel
from harness.kernels.factorization import FactorizationKernel, predictions
from harness.problems.synthetic import low_rank_ratings

CPU = torch.device("cpu")
SMALL = {"synthetic_users": 40, "synthetic_items": 30, "synthetic_ratings": 500, "rank": 5, "dtype": "float64"}
PLANTED = {
    "synthetic_users": 100,
    "synthetic_items": 80,
    "synthetic_ratings": 4000,
    "synthetic_rank": 2,
    "synthetic_noise": 0.0,
}


def completion(**settings):
    composed = node("problem/matrix_completion")
    composed.update(settings)
    return build(composed, "problem")


def flat(model):
    return torch.nn.utils.parameters_to_vector(model.parameters()).detach().clone()


@pytest.mark.parametrize("rank", [1, 5, 8, 30, 33])
@pytest.mark.parametrize("l2", [0.0, 0.01])
def test_an_update_is_the_step_of_autograd(rank, l2):
    """Both rows move from what both were before: an update that sees its own half of the work is off by far more."""
    p = completion(**SMALL | {"rank": rank, "l2": l2})
    model = p.build_model(CPU, seed=3)
    for part in model.parameters():
        part.data *= 3
    for sample in (7, 0, 7, 449):
        weights = flat(model)
        p.kernel(weights, torch.tensor([sample], dtype=torch.int32), 0.3)
        model.zero_grad()
        p.loss(model, torch.tensor([sample])).backward()
        moved = [part.detach() - 0.3 * part.grad for part in model.parameters()]
        expected = torch.cat([part.view(-1) for part in moved])
        assert int((weights != flat(model)).sum()) == 2 * rank
        torch.testing.assert_close(weights, expected, rtol=1e-12, atol=1e-15)


def test_updates_follow_the_objective_in_the_mean():
    p = completion(**SMALL, l2=1e-3)
    model = p.build_model(CPU, seed=0)
    p.loss(model, torch.arange(p.num_samples)).backward()
    weights, total = flat(model), torch.zeros_like(flat(model))
    for sample in torch.arange(p.num_samples, dtype=torch.int32):
        after = weights.clone()
        p.kernel(after, sample.view(1), 1.0)
        total += weights - after
    gradient = torch.cat([part.grad.view(-1) for part in model.parameters()])
    assert gradient.abs().min() > 0  # no row is without a rating
    torch.testing.assert_close(total / p.num_samples, gradient, rtol=1e-9, atol=1e-14)


def test_the_objective_is_equation_5_divided_by_twice_the_ratings():
    p = completion(**SMALL, l2=1e-3)
    model = p.build_model(CPU, seed=0)
    left, right = (part.detach() for part in model.parameters())
    complete, u, v = left @ right.T, p.rows[:, 0].long(), p.rows[:, 1].long() - p.num_users
    mu = 2 * p.num_samples * 1e-3
    equation = (complete[u, v] - p.values).square().sum() + mu / 2 * (left.square().sum() + right.square().sum())
    assert p.evaluate(model)["train/loss"] == pytest.approx(float(equation) / (2 * p.num_samples), rel=1e-12)


def test_held_out_ratings_are_measured_without_the_regulariser():
    p, regularised = completion(**SMALL, l2=0.0), completion(**SMALL, l2=1.0)
    model = p.build_model(CPU, seed=0)
    metrics = p.evaluate(model)
    assert set(metrics) == {"train/loss", "eval/loss", "eval/rmse"}
    assert metrics["eval/rmse"] == pytest.approx((2 * metrics["eval/loss"]) ** 0.5, rel=1e-12)
    assert regularised.evaluate(model)["eval/loss"] == metrics["eval/loss"]
    assert set(completion(**SMALL, test_fraction=0.0).evaluate(model)) == {"train/loss"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_predictions_are_those_of_the_factors(dtype):
    random = torch.Generator().manual_seed(0)
    factors = torch.randn(50, 7, generator=random, dtype=dtype)
    rows = torch.randint(0, 50, (200, 2), generator=random, dtype=torch.int32)
    expected = (factors[rows[:, 0]] * factors[rows[:, 1]]).sum(1)
    # sums of 7 products below 10, in another order
    torch.testing.assert_close(
        predictions(rows, factors.view(-1), 7), expected, rtol=0, atol=torch.finfo(dtype).eps * 40
    )


def test_a_split_model_is_updated_like_a_whole_one():
    p = completion(**SMALL, l2=1e-3)
    whole = flat(p.build_model(CPU, seed=0))
    hot = torch.cat([torch.arange(5 * row, 5 * row + 5) for row in (3, 17, p.num_users + 2)])
    slots = torch.full((len(whole),), -1, dtype=torch.int32)
    slots[hot] = torch.arange(len(hot), dtype=torch.int32)
    split = SplitModel(whole.clone(), whole[hot].clone(), slots)
    samples = torch.arange(p.num_samples, dtype=torch.int32)
    p.kernel(whole, samples, 0.1)
    p.kernel(split, samples, 0.1)
    # one sums in order, the other in vectors
    torch.testing.assert_close(split.cold.index_copy(0, hot, split.hot), whole, rtol=0, atol=1e-12)


def test_coordinates_are_rows_of_both_factors():
    kernel = completion(**SMALL).kernel
    rows = kernel.indices.view(-1, 2)
    assert kernel.block == 5 and kernel.num_coordinates == int(rows.max()) + 1
    assert (rows[:, 0] < rows[:, 1]).all()  # ascending, as locks need it
    assert kernel.nonzeros(torch.tensor([0, 4, 4])) == 6
    assert FactorizationKernel(rows, kernel.values, 70, 30, 0.0).relative_cost < 0.5


@pytest.mark.parametrize(("rank", "epochs", "bound"), [(2, 60, 1e-10), (5, 150, 0.02)])
def test_sequential_sgd_recovers_a_planted_matrix(rank, epochs, bound):
    """Without noise 3,600 entries determine the 2 x 180 numbers, and held-out entries, of deviation 1, with them.

    At the planted rank convergence is linear (1e-12 at the worst of three seeds); above it directions that nothing
    asks for fade slowly (0.011).
    """
    p = completion(**PLANTED, rank=rank, l2=0.0, dtype="float64")
    model = p.build_model(CPU, seed=0)
    weights = flat(model)
    random = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        p.kernel(weights, torch.randperm(p.num_samples, generator=random).int(), 0.05)
    torch.nn.utils.vector_to_parameters(weights, model.parameters())
    assert p.evaluate(model)["eval/rmse"] < bound


def test_synthetic_ratings_are_what_was_asked_for():
    ratings = low_rank_ratings(2000, 500, 30_000, 4, 0.5, 0.375, 0.44, seed=1)
    assert len(ratings) == 30_000 == len(np.unique(ratings.users * 500 + ratings.items))
    # The variance of the 8,000 planted factors and of 30,000 ratings that share them varies by a few per cent.
    assert ratings.values.var() == pytest.approx(1 + 0.5**2, rel=0.1) and abs(ratings.values.mean()) < 0.05
    counts = np.sort(np.bincount(ratings.items, minlength=500))[::-1]
    ranks = np.arange(5, 500)
    slope = np.polyfit(np.log(ranks), np.log(counts[ranks]), 1)[0]
    # Pairs drawn twice count once, and the tail is noise: slopes from -0.432 to -0.441 were seen at four seeds.
    assert slope == pytest.approx(-0.44, abs=0.05)
    hot = np.argsort(-np.bincount(ratings.items, minlength=500))[:20]
    assert np.median(np.abs(np.subtract.outer(hot, hot))[np.triu_indices(20, 1)]) > 50  # of 500; scattered


def test_without_exponents_all_are_equally_popular():
    ratings = low_rank_ratings(100, 100, 5000, 1, 0.0, 0.0, 0.0, seed=0)
    counts = np.bincount(ratings.users, minlength=100)
    assert counts.min() > 25 and counts.max() < 75  # 5 deviations of a hypergeometric count of mean 50


FILE = "".join(f"{user},{item},{(user * item) % 5 + 1}\n" for user in range(10, 20) for item in range(100, 108))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TWINCLOCK_DATA", str(tmp_path))
    (tmp_path / "ratings.csv").write_text("userId,movieId,rating\n" + FILE)
    return tmp_path


def test_a_file_is_centred_and_split(folder):
    p = completion(path="ratings.csv", rank=2)
    assert (p.num_users, p.num_items, p.num_samples) == (10, 8, 72)
    assert abs(float(p.values.double().mean())) < 1e-6  # of float32
    plain = completion(path="ratings.csv", rank=2, center=False)
    assert set(plain.values.tolist()) <= {1.0, 2.0, 3.0, 4.0, 5.0} and torch.equal(plain.rows, p.rows)
    assert p.data_version() and not completion().data_version()
    other = completion(path="ratings.csv", rank=2, seed=1)
    assert not torch.equal(other.rows, p.rows)


def test_ratings_of_the_unknown_are_left_out(folder):
    """Ten users with one rating each: who is held out is not in the training set."""
    (folder / "single").write_text("".join(f"{user} 1 3\n" for user in range(10)))
    p = completion(path="single", test_fraction=0.3)
    assert (p.num_users, p.num_items, p.num_samples) == (7, 1, 7)
    assert "eval/loss" not in p.evaluate(p.build_model(CPU, seed=0))


def test_holding_out_everything_is_refused(folder):
    (folder / "two").write_text("1 1 3\n1 2 4\n")
    with pytest.raises(UserError, match=r"problem\.test_fraction=0\.9 leaves nothing of 2 ratings: lower it"):
        _ = completion(path="two", test_fraction=0.9).num_samples


def test_a_missing_file_names_its_setting():
    with pytest.raises(UserError, match=r"^problem\.path='absent' is at none of "):
        _ = completion(path="absent").num_samples
