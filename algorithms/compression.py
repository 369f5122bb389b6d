"""Compressors of vectors: what is sent is one tensor of bytes, which is as small as it says.

    none      x
    top_k     the k entries of largest modulus, and where they are
    random_k  k entries at random places, which both sides draw from a seed that is sent (Wangni et al., NeurIPS 2018)
    sign      |x|_1 / n * sign(x): a bit per entry (Karimireddy et al., ICML 2019, section 4)
    qsgd      |x|_2 * sign(x_i) * level_i / s, with level_i = s |x_i| / |x|_2 rounded at random, in expectation without
              error (Alistarh et al., NIPS 2017, section 3.1); levels in whole bits, not Elias' code

random_k and qsgd are unbiased, E Q(x) = x, if `unbiased`; else they are divided by what makes them contractions,
E |Q(x) - x|^2 <= (1 - delta) |x|^2, as all others are, and as error feedback and CHOCO need (Koloskova et al., ICML
2019, section 3.2).
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch

from algorithms.bits import joined, packed, split, unpacked
from harness.errors import require

SEED_BYTES = 8


@dataclass(frozen=True)
class Compressor(ABC):
    """A way to send a vector in fewer bytes."""

    @abstractmethod
    def num_bytes(self, vector: torch.Tensor) -> int:
        """Of the message that a vector like this one becomes."""

    @abstractmethod
    def encode(self, vector: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """The message, uint8, shape (num_bytes,).

        Args:
            vector: float32 or float64, shape (n,).
            generator: of the sender's random numbers.
        """

    @abstractmethod
    def decode(self, message: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """What the message says, a vector like `like`, on every rank that decodes it."""


@dataclass(frozen=True)
class Uncompressed(Compressor):
    """The vector itself."""

    def num_bytes(self, vector: torch.Tensor) -> int:
        """All."""
        return vector.nbytes

    def encode(self, vector: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Its bytes."""
        return vector.view(torch.uint8).clone()

    def decode(self, message: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """The vector."""
        return message.view(like.dtype)


@dataclass(frozen=True)
class TopK(Compressor):
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
class RandomK(Compressor):
    """Entries at random places.

    Args:
        fraction: as of `TopK`.
        unbiased: multiply them by n / k.
    """

    fraction: float
    unbiased: bool

    def __post_init__(self) -> None:
        _require_fraction(self.fraction)

    def num_bytes(self, vector: torch.Tensor) -> int:
        """Of the values and a seed."""
        return _kept(self.fraction, vector) * vector.element_size() + SEED_BYTES

    def encode(self, vector: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Values, then the seed of their places."""
        seed = torch.randint(2**62, (1,), generator=generator)
        values = vector[self._places(seed, vector)]
        if self.unbiased:
            values *= len(vector) / len(values)
        return joined(values, seed)

    def decode(self, message: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """Zero elsewhere."""
        values, seed = split(message, len(message) - SEED_BYTES)
        return torch.zeros_like(like).index_copy_(
            0, self._places(seed.view(torch.int64), like), values.view(like.dtype)
        )

    def _places(self, seed: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
        generator = torch.Generator().manual_seed(int(seed))
        return torch.randperm(len(vector), generator=generator)[: _kept(self.fraction, vector)]


@dataclass(frozen=True)
class Sign(Compressor):
    """Signs, and the mean modulus."""

    def num_bytes(self, vector: torch.Tensor) -> int:
        """Of bits, and a value."""
        return vector.element_size() + math.ceil(len(vector) / 8)

    def encode(self, vector: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """The mean modulus, then the bits."""
        return joined(vector.abs().mean().view(1), packed(vector >= 0, 1))

    def decode(self, message: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """Plus or minus the mean modulus."""
        scale, signs = split(message, like.element_size())
        return (2 * unpacked(signs, 1, len(like)).to(like.dtype) - 1) * scale.view(like.dtype)


@dataclass(frozen=True)
class QSGD(Compressor):
    """Levels of the modulus, rounded at random.

    Args:
        bits: of an entry's sign and level: 2, 4 or 8, for 1, 7 or 127 levels.
        unbiased: do not divide by tau = 1 + min(n / s^2, sqrt(n) / s).
    """

    bits: int
    unbiased: bool

    def __post_init__(self) -> None:
        require(self.bits in (2, 4, 8), "compression.bits", "must be 2, 4 or 8", self.bits)

    def num_bytes(self, vector: torch.Tensor) -> int:
        """Of the levels, and the norm."""
        return vector.element_size() + math.ceil(len(vector) * self.bits / 8)

    def encode(self, vector: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """The norm, then the levels, shifted to be positive."""
        norm, chance = vector.norm(), torch.rand(len(vector), generator=generator, dtype=vector.dtype)
        exact = vector.abs() * (self._levels / norm.clamp_min(torch.finfo(vector.dtype).tiny))
        level = (exact + chance).floor().clamp_max(self._levels)  # rounding may put the last level in sight of the next
        return joined(norm.view(1), packed(level * vector.sign() + self._levels, self.bits))

    def decode(self, message: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """Levels of the norm."""
        norm, codes = split(message, like.element_size())
        level = unpacked(codes, self.bits, len(like)).to(like.dtype) - self._levels
        rough = math.sqrt(len(like)) / self._levels
        tau = 1 if self.unbiased else 1 + min(rough**2, rough)
        return level * (norm.view(like.dtype) / (self._levels * tau))

    @property
    def _levels(self) -> int:
        return 2 ** (self.bits - 1) - 1


def _require_fraction(fraction: float) -> None:
    require(0 < fraction <= 1, "compression.fraction", "must be in (0, 1]", fraction)


def _kept(fraction: float, vector: torch.Tensor) -> int:
    return max(1, round(fraction * len(vector)))
