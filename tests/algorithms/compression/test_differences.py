"""What listeners know of a vector follows it, and is the same for all."""

import pytest
import torch

from algorithms.compression.compressor import Uncompressed
from algorithms.compression.differences import KnownWhole, known
from algorithms.compression.quantization import QSGD, Half, Sign
from algorithms.compression.sparsification import RandomK, TopK

SIZE = 50
LOSSY = [TopK(True, 0.2), RandomK(True, 0.2, False), Sign(True), QSGD(True, 4, False), Half(False, "float16")]


def told(compressor, vectors, pull=None):
    """What their sender and a listener know after these vectors, one after the other, zero being known at first."""
    start, generator = torch.zeros_like(vectors[0]), torch.Generator().manual_seed(1)
    own, listener = known(compressor, start), known(compressor, start)
    for vector in vectors:
        listener.hear(own.say(vector, generator).clone())
        if pull is not None:
            own.pulled(pull)
            listener.pulled(pull)
    return own.vector, listener.vector


def steps(number):
    return torch.randn(number, SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).cumsum(dim=0)


@pytest.mark.parametrize("compressor", LOSSY, ids=str)
def test_both_sides_know_the_same_and_come_to_the_vector(compressor):
    vectors = torch.cat([steps(5), steps(5)[-1:].expand(200, SIZE)])  # which moves, and then stays
    own, listener = told(compressor, vectors)
    assert torch.equal(own, listener)
    torch.testing.assert_close(listener, vectors[-1], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("compressor", LOSSY, ids=str)
def test_pulls_leave_what_is_owed_as_it_is(compressor):
    """A vector that all know to be pulled is as well known as one that is not: differences are of its own steps."""
    vectors, pull = steps(8), torch.full((SIZE,), 0.3, dtype=torch.float64)
    pulls = pull * torch.arange(8, dtype=torch.float64)[:, None]
    _, still = told(compressor, vectors)
    _, moved = told(compressor, vectors - pulls, pull)
    # rounding: a pull is taken from the vector and from what is known of it
    torch.testing.assert_close(moved, still - 8 * pull, rtol=1e-9, atol=1e-11)


def test_what_is_sent_whole_is_not_remembered():
    vectors = steps(3)
    assert isinstance(known(Uncompressed(), vectors[0]), KnownWhole)
    _, listener = told(Uncompressed(), vectors, pull=vectors[0])
    assert torch.equal(listener, vectors[-1])
