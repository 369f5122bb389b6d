"""Averages with neighbours who hear compressed differences go to the true mean, on directed graphs too."""

import pytest
import torch
from simulated_ranks import results

from algorithms.compression.compressor import Uncompressed
from algorithms.compression.gossip import CompressedAveraging
from algorithms.compression.quantization import QSGD, Half, Sign
from algorithms.compression.sparsification import RandomK, TopK
from algorithms.mixing.graphs import Exponential, Ring, Star

WORKERS, SIZE = 5, 40
COMPRESSORS = [Uncompressed(), TopK(True, 0.2), RandomK(True, 0.2, False), Sign(True), QSGD(True, 4, False)]
COMPRESSORS += [Half(False, "float16")]
DIRECTED = [Exponential("uniform"), Star("uniform")]  # the weights of a star's workers differ too


def after(compressor, steps, mixing=Ring("metropolis"), step=0.3, workers=WORKERS):  # noqa: B008 - which is frozen
    """Of every worker, one row each: start, sums, weights, and what others know of the sums."""
    start = torch.randn(workers, SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def average(worker):
        total, weight = torch.zeros(SIZE, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
        (row,) = mixing.rows(workers, worker.rank)
        averaging = CompressedAveraging(total, row, compressor, step, worker.generator, whole=weight)
        total += start[worker.rank]
        for _ in range(steps):
            averaging.begin().finish()
        return total, weight, averaging.known

    return start, *(torch.stack(each) for each in zip(*results(average, workers), strict=True))


@pytest.mark.parametrize("compressor", COMPRESSORS, ids=str)
def test_everyone_comes_to_the_true_mean(compressor):
    start, totals, weights, known = after(compressor, 400)
    mean = start.mean(dim=0)
    # the mean is kept at every step, up to rounding
    torch.testing.assert_close(totals.mean(dim=0), mean, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(weights, torch.ones_like(weights), rtol=1e-12, atol=0)  # columns and rows sum to 1
    assert (totals - mean).norm() < 1e-3 * (start - mean).norm()
    assert (known - totals).norm() < 1e-3 * (start - mean).norm()  # errors are fed back until nothing is left


@pytest.mark.parametrize("mixing", DIRECTED, ids=["exponential", "star"])
@pytest.mark.parametrize("compressor", [TopK(True, 0.2), Sign(True), QSGD(True, 4, False)], ids=str)
def test_push_sum_of_compressed_differences_comes_to_the_true_mean(compressor, mixing):
    start, totals, weights, _ = after(compressor, 400, mixing, step=0.1)
    mean = start.mean(dim=0)
    torch.testing.assert_close(totals.mean(dim=0), mean, rtol=1e-10, atol=1e-12)
    assert weights.sum().item() == pytest.approx(WORKERS, rel=1e-12)
    assert (weights.max() > 1.5) == isinstance(mixing, Star)  # there the sums alone would go elsewhere
    assert (totals / weights - mean).norm() < 1e-3 * (start - mean).norm()


@pytest.mark.parametrize("mixing", [Ring("metropolis"), *DIRECTED], ids=["ring", "exponential", "star"])
def test_whole_steps_of_whole_messages_are_steps_of_the_matrix(mixing):
    start, totals, weights, _ = after(Uncompressed(), 6, mixing, step=1.0)
    power = torch.matrix_power(torch.from_numpy(mixing.matrices(WORKERS)[0]), 6)
    torch.testing.assert_close(totals, power @ start, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(weights, power @ torch.ones_like(weights), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("compressor", COMPRESSORS, ids=str)
def test_a_step_is_that_of_the_matrix_on_what_is_known(compressor):
    """The feedback telescopes: the messages sum to what is known, on both sides, after any number of steps."""
    mixing, step = Star("uniform"), 0.3
    _, before, _, _ = after(compressor, 6, mixing, step)
    _, totals, _, known = after(compressor, 7, mixing, step)
    laplacian = torch.from_numpy(mixing.matrices(WORKERS)[0]) - torch.eye(WORKERS, dtype=torch.float64)
    torch.testing.assert_close(totals, before + step * laplacian @ known, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("compressor", COMPRESSORS, ids=str)
def test_who_is_alone_keeps_its_vector_to_the_last_bit(compressor):
    start, totals, weights, _ = after(compressor, 3, workers=1)
    assert torch.equal(totals, start) and weights.item() == 1
