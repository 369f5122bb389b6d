"""Compressors that send a few entries of a vector.

    top_k     the k entries of largest modulus, and where they are
    random_k  k entries at random places, which both sides draw from a seed that is sent (Wangni et al., NeurIPS 2018)

random_k is unbiased, E Q(x) = x, if `unbiased`; else it is not multiplied by n / k, and so a contraction,
E |Q(x) - x|^2 <= (1 - delta) |x|^2, as top_k is, and as error feedback and CHOCO need (Stich, Cordonnier and Jaggi,
NeurIPS 2018, section 2; Koloskova et al., ICML 2019, section 3.2).
"""

from dataclasses import dataclass

import torch

from algorithms.common.bits import joined, split
from algorithms.compression.compressor import LossyCompressor
from algorithms.compression.error_feedback import require_contraction
from harness.errors import require

SEED_BYTES = 8


@dataclass(frozen=True)
class TopK(LossyCompressor):
    """The entries of largest modulus.

    Args:
        fraction: of the entries, at least one, in (0, 1].
    """

    fraction: float

    def __post_init__(self) -> None:
        _require_fraction(self.fraction)

    def num_bytes(self, vector: torch.Tensor) -> int:
        """Of a value and a place of 4 bytes, for each entry."""
        return _kept(self.fraction, vector) * (vector.element_size() + 4)

    def encode(self, vector: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Values, then places."""
        places = vector.abs().topk(_kept(self.fraction, vector), sorted=False).indices
        return joined(vector[places], places.to(torch.int32))

    def decode(self, message: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """Zero elsewhere."""
        values, places = split(message, _kept(self.fraction, like) * like.element_size())
        return torch.zeros_like(like).index_copy_(0, places.view(torch.int32).long(), values.view(like.dtype))


@dataclass(frozen=True)
class RandomK(LossyCompressor):
    """Entries at random places.

    Args:
        fraction: as of `TopK`.
        unbiased: multiply them by n / k.
    """

    fraction: float
    unbiased: bool

    def __post_init__(self) -> None:
        _require_fraction(self.fraction)
        require_contraction(self.unbiased, self.error_feedback)

    @property
    def is_contraction(self) -> bool:
        """Unless it is unbiased."""
        return not self.unbiased

    def num_bytes(self, vector: torch.Tensor) -> int:
        """Of the values and a seed."""
        return _kept(self.fraction, vector) * vector.element_size() + SEED_BYTES

    def encode(self, vector: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Values, then the seed of their places."""
        seed = torch.randint(2**62, (1,), generator=generator)
        values = vector[self._places(seed, vector)]
        if self.unbiased:
            values *= len(vector) / len(values)
        return joined(values, seed.to(values.device))

    def decode(self, message: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """Zero elsewhere."""
        values, seed = split(message, len(message) - SEED_BYTES)
        return torch.zeros_like(like).index_copy_(
            0, self._places(seed.view(torch.int64), like), values.view(like.dtype)
        )

    def _places(self, seed: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
        generator = torch.Generator().manual_seed(int(seed))
        return torch.randperm(len(vector), generator=generator)[: _kept(self.fraction, vector)].to(vector.device)


def _require_fraction(fraction: float) -> None:
    require(0 < fraction <= 1, "algorithm.compression.fraction", "must be in (0, 1]", fraction)


def _kept(fraction: float, vector: torch.Tensor) -> int:
    return max(1, round(fraction * len(vector)))
