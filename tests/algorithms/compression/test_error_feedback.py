"""Error feedback: nothing is lost, only late."""

import pytest
import torch

from algorithms.compression.error_feedback import ErrorFeedback
from algorithms.compression.quantization import QSGD, Half, Sign
from algorithms.compression.sparsification import RandomK, TopK
from harness.errors import UserError

LOSSY = [TopK(True, 0.1), RandomK(True, 0.1, False), Sign(True), QSGD(True, 2, False), QSGD(True, 4, False)]
LOSSY += [Half(True, "float16"), Half(True, "bfloat16")]
SIZE, STEPS = 40, 25


def vectors(steps=STEPS):
    return torch.randn(steps, SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def said(compressor, sequence):
    """What a sender's messages say, and the sender."""
    sender = compressor.sender(torch.Generator().manual_seed(1))
    return torch.stack([compressor.decode(sender.encode(each), each) for each in sequence]), sender


@pytest.mark.parametrize("compressor", LOSSY, ids=str)
def test_it_telescopes(compressor):
    sequence = vectors()
    heard, sender = said(compressor, sequence)
    # float64: 25 sums of numbers of about 1 to 10
    torch.testing.assert_close(heard.sum(0) + sender.feedback.residual, sequence.sum(0), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("compressor", LOSSY, ids=str)
def test_a_vector_that_is_sent_again_and_again_gets_there(compressor):
    """The mean of T messages is off by the residual / T, which is bounded for a contraction."""
    vector = vectors(1)[0]
    heard, _ = said(compressor, vector.expand(400, SIZE))
    assert (heard.mean(0) - vector).norm() < 0.1 * vector.norm()


def test_without_it_small_entries_never_do():
    vector = torch.tensor([3.0, 1.0])
    heard, sender = said(TopK(False, 0.5), vector.expand(20, 2))
    assert sender.feedback is None and heard.mean(0).tolist() == [3.0, 0.0]
    heard, _ = said(TopK(True, 0.5), vector.expand(20, 2))
    assert heard.mean(0).tolist() == pytest.approx([3.0, 1.0], abs=4.0 / 20)  # at most one sum of both, of 20 messages


def test_vectors_are_left_as_they_are():
    vector, kept = torch.ones(3), torch.ones(3)
    feedback = ErrorFeedback()
    for _ in range(2):
        owed = feedback.corrected(vector)
        feedback.said(owed, torch.zeros(3))
        owed.zero_()
    assert torch.equal(vector, kept) and feedback.residual.tolist() == [2.0] * 3


@pytest.mark.parametrize("make", [lambda: RandomK(True, 0.1, True), lambda: QSGD(True, 4, True)])
def test_errors_of_unbiased_compressors_would_add_up(make):
    rule = r"algorithm\.compression\.unbiased must be false where errors are fed back.*unbiased=false, or, but in choco"
    with pytest.raises(UserError, match=rule):
        make()
