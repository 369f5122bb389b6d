"""Compressors: what they send, what they say on average, how far they are off."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from algorithms.compression.compressor import Uncompressed
from algorithms.compression.quantization import QSGD, Half, Sign
from algorithms.compression.sparsification import RandomK, TopK

BIASED = [Uncompressed(), Half(False, "float16"), Half(False, "bfloat16"), TopK(True, 0.1), RandomK(True, 0.1, False)]
BIASED += [Sign(True), *(QSGD(True, bits, False) for bits in (2, 4, 8))]
UNBIASED = [RandomK(False, 0.25, True), QSGD(False, 2, True), QSGD(False, 4, True)]
QUANTILE = 4.9  # of the normal distribution: |z| is above it with probability 1e-6


def drawn(size, seed=0, dtype=torch.float64):
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def coded(compressor, vector, generator):
    return compressor.decode(compressor.encode(vector, generator), vector)


@settings(deadline=None, max_examples=60)
@given(st.sampled_from([*BIASED, *UNBIASED]), st.integers(1, 70), st.sampled_from([torch.float32, torch.float64]))
def test_messages_are_as_small_as_they_say(compressor, size, dtype):
    vector = drawn(size, dtype=dtype)
    message = compressor.encode(vector, torch.Generator())
    assert message.dtype == torch.uint8 and message.shape == (compressor.num_bytes(vector),)
    received = torch.empty_like(message).copy_(message)
    said = compressor.decode(received, vector)
    assert said.dtype == dtype and said.shape == vector.shape and torch.isfinite(said).all()
    assert torch.equal(said, compressor.decode(message, vector))  # the sender knows what others hear


def test_sizes_are_those_of_the_papers():
    vector = torch.zeros(1000, dtype=torch.float32)
    compressors = Uncompressed(), Half(False, "bfloat16"), TopK(True, 0.01), RandomK(False, 0.01, True), Sign(True)
    sizes = [each.num_bytes(vector) for each in (*compressors, QSGD(False, 4, True))]
    assert sizes == [4000, 2000, 10 * 8, 10 * 4 + 8, 125 + 4, 500 + 4]


@pytest.mark.parametrize("compressor", [*BIASED, *UNBIASED], ids=str)
def test_nothing_is_said_of_nothing(compressor):
    assert torch.equal(coded(compressor, torch.zeros(9), torch.Generator()), torch.zeros(9))


@pytest.mark.parametrize("compressor", UNBIASED, ids=str)
def test_unbiased_ones_are(compressor):
    """With confidence 1 - 24 * 1e-6: each of 24 entries' mean lies within 4.9 standard errors of the truth."""
    vector, generator, draws = drawn(24), torch.Generator().manual_seed(1), 4000
    said = torch.stack([coded(compressor, vector, generator) for _ in range(draws)])
    errors = said.std(dim=0) / math.sqrt(draws)
    assert ((said.mean(dim=0) - vector).abs() <= QUANTILE * errors).all()
    assert (errors < 0.1).all()  # so that a bias would be seen


@pytest.mark.parametrize("compressor", BIASED, ids=str)
def test_biased_ones_are_contractions(compressor):
    """E |Q(x) - x|^2 <= (1 - delta) |x|^2 with the delta of the paper; the mean of 400 draws, and 5% for chance."""
    vector, generator = drawn(200), torch.Generator().manual_seed(1)
    missed = [(coded(compressor, vector, generator) - vector).square().sum() for _ in range(400)]
    relative = (sum(missed) / len(missed) / vector.square().sum()).item()
    assert relative <= (1 - delta(compressor, vector)) * 1.05 + 1e-12


def delta(compressor, vector):
    size = len(vector)
    if isinstance(compressor, QSGD):
        levels = 2 ** (compressor.bits - 1) - 1
        return 1 / (1 + min(size / levels**2, math.sqrt(size) / levels))
    if isinstance(compressor, Sign):
        return (vector.abs().sum() ** 2 / (size * vector.square().sum())).item()
    if isinstance(compressor, Half):
        return 1 - torch.finfo(compressor.dtype).eps ** 2
    return getattr(compressor, "fraction", 1.0)


def test_top_k_keeps_the_largest():
    said = coded(TopK(True, 0.4), torch.tensor([1.0, -5.0, 2.0, 0.0, -3.0]), torch.Generator())
    assert said.tolist() == [0.0, -5.0, 0.0, 0.0, -3.0]


def test_qsgd_has_the_levels_of_the_paper():
    vector = drawn(50)
    said = coded(QSGD(False, 4, True), vector, torch.Generator())
    level = said * 7 / vector.norm()
    torch.testing.assert_close(level, level.round())
    assert ((level.abs() - vector.abs() * 7 / vector.norm()).abs() < 1).all()
