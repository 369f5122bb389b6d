"""PowerSGD: exact where there is little to say, the best of its rank where there is more, and nothing is lost."""

import pytest
import torch
from simulated_ranks import execute, results

from algorithms.compression.power_sgd import MeanOfMatrices, PowerSGD

WORKERS = 3
SHAPES = (12, 9), (7,), (6, 2, 5)  # of a layer's weights and biases, and of a convolution
SIZE = 12 * 9 + 7 + 6 * 10


def drawn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def averages(compression, vectors):
    """What every worker had after each average, and what it still owes.

    Args:
        vectors: of each worker and step, shape (WORKERS, steps, SIZE).
    """

    def body(worker):
        averaging = MeanOfMatrices(compression, SHAPES, worker)
        for vector in (own := vectors[worker.rank].clone()):
            averaging.average_(vector)
        return own, averaging.feedback.residual if averaging.feedback else None

    return results(body, WORKERS)


def low_rank(rank, seed):
    """A vector whose matrices have that rank."""
    first = drawn(12, rank, seed=seed) @ drawn(rank, 9, seed=seed + 1)
    return torch.cat([first.view(-1), drawn(7, seed=seed), (drawn(6, rank, seed=seed) @ drawn(rank, 10)).view(-1)])


def test_it_is_exact_where_the_mean_has_no_higher_rank():
    vectors = torch.stack([low_rank(1, seed=10 * worker) for worker in range(WORKERS)])[:, None]
    ((mean, residual), *_) = averages(PowerSGD(3, True, True), vectors)
    torch.testing.assert_close(
        mean[0], vectors[:, 0].mean(0), rtol=1e-9, atol=1e-10
    )  # orthonormal to 1e-15 * condition
    assert residual.norm() > 1e-3  # what each worker had to say alone was more


def test_of_full_rank_it_is_the_mean():
    """A matrix whose factors would be no smaller is sent whole."""
    vectors = drawn(WORKERS, 3, SIZE)
    for mean, residual in averages(PowerSGD(6, True, True), vectors):
        torch.testing.assert_close(mean, vectors.mean(0), rtol=1e-12, atol=1e-13)
        assert not residual.any()


def test_vectors_are_sent_whole():
    vectors = drawn(WORKERS, 1, SIZE)
    ((mean, _), *_) = averages(PowerSGD(1, True, True), vectors)
    torch.testing.assert_close(mean[0, 108:115], vectors[:, 0, 108:115].mean(0), rtol=1e-12, atol=1e-13)


def test_warm_starts_find_the_best_approximation():
    """Subspace iteration on a matrix that stays the same converges to the leading singular vectors."""
    vectors = drawn(WORKERS, 1, SIZE).expand(-1, 60, -1)
    left, values, right = torch.linalg.svd(vectors.mean(0)[0, :108].view(12, 9))
    best = left[:, :2] * values[:2] @ right[:2]
    ((warm, _), *_) = averages(PowerSGD(2, True, False), vectors)
    ((cold, _), *_) = averages(PowerSGD(2, False, False), vectors)
    error = (values[2] / values[1]) ** (2 * 59)  # of the subspace, times a constant
    assert (warm[-1, :108].view(12, 9) - best).norm() < 100 * error * best.norm() + 1e-9
    assert (cold[-1, :108].view(12, 9) - best).norm() > 0.01 * best.norm()


@pytest.mark.parametrize("warm_start", [True, False])
def test_error_feedback_telescopes(warm_start):
    vectors = drawn(WORKERS, 20, SIZE)
    ends = averages(PowerSGD(1, warm_start, True), vectors)
    owed = torch.stack([residual for _, residual in ends])
    assert not owed[:, 108:115].any()  # nothing is left out of what is whole
    # float64: 20 sums of numbers of about 1 to 10
    torch.testing.assert_close(ends[0][0].sum(0) + owed.mean(0), vectors.sum(1).mean(0), rtol=1e-12, atol=1e-12)


def test_nothing_is_said_of_nothing_and_something_afterwards():
    vectors = torch.cat([torch.zeros(WORKERS, 1, SIZE, dtype=torch.float64), drawn(WORKERS, 1, SIZE)], dim=1)
    ((mean, _), *_) = averages(PowerSGD(2, True, False), vectors)
    assert not mean[0].any() and torch.isfinite(mean).all() and mean[1, :108].norm() > 1


def test_factors_are_sent_in_two_messages():
    def body(worker):
        MeanOfMatrices(PowerSGD(2, True, True), SHAPES, worker).average_(drawn(SIZE))

    numbers = 2 * (12 + 9) + 7 + 2 * (6 + 10)
    assert [report.sent_bytes for report in execute(body, WORKERS).workers] == [8 * numbers] * WORKERS
