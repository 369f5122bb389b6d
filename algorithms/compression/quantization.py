"""Compressors that send all entries of a vector, each in a few bits.

    half  x in float16 or bfloat16; means are taken in that precision, by all-reduce
    sign  |x|_1 / n * sign(x): a bit per entry (Karimireddy et al., ICML 2019, section 4)
    qsgd  |x|_2 * sign(x_i) * level_i / s, with level_i = s |x_i| / |x|_2 rounded at random, in expectation without
          error (Alistarh et al., NIPS 2017, section 3.1); levels in whole bits, not Elias' code

qsgd is unbiased, E Q(x) = x, if `unbiased`; else it is divided by what makes it a contraction,
E |Q(x) - x|^2 <= (1 - delta) |x|^2, as sign is, and as error feedback and CHOCO need (Koloskova et al., ICML 2019,
section 3.2).
"""

import math
from dataclasses import dataclass

import torch
from torch import nn

from algorithms.common.bits import joined, packed, split, unpacked
from algorithms.compression.averaging import Averaging, MeanInHalf
from algorithms.compression.compressor import LossyCompressor
from algorithms.compression.error_feedback import require_contraction
from harness.errors import require
from harness.worker import Worker


@dataclass(frozen=True)
class Half(LossyCompressor):
    """Numbers of two bytes.

    Args:
        precision: float16 (11 bits, up to 65,504) or bfloat16 (8 bits, as far as float32).
    """

    precision: str

    def __post_init__(self) -> None:
        rule = "must be float16 or bfloat16"
        require(self.precision in ("float16", "bfloat16"), "algorithm.compression.precision", rule, self.precision)

    def num_bytes(self, vector: torch.Tensor) -> int:
        """Two per entry."""
        return 2 * len(vector)

    def encode(self, vector: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """The nearest numbers."""
        return vector.to(self.dtype).view(torch.uint8)

    def decode(self, message: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """As they are."""
        return message.view(self.dtype).to(like.dtype)

    def averaging(self, model: nn.Module, worker: Worker) -> Averaging:
        """Sums are all-reduced in half precision."""
        return MeanInHalf(self.sender(worker.generator), self.dtype)

    @property
    def dtype(self) -> torch.dtype:
        """Of what is sent."""
        return torch.float16 if self.precision == "float16" else torch.bfloat16


@dataclass(frozen=True)
class Sign(LossyCompressor):
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
class QSGD(LossyCompressor):
    """Levels of the modulus, rounded at random.

    Args:
        bits: of an entry's sign and level: 2, 4 or 8, for 1, 7 or 127 levels.
        unbiased: do not divide by tau = 1 + min(n / s^2, sqrt(n) / s).
    """

    bits: int
    unbiased: bool

    def __post_init__(self) -> None:
        require(self.bits in (2, 4, 8), "algorithm.compression.bits", "must be 2, 4 or 8", self.bits)
        require_contraction(self.unbiased, self.error_feedback)

    @property
    def is_contraction(self) -> bool:
        """Unless it is unbiased."""
        return not self.unbiased

    def num_bytes(self, vector: torch.Tensor) -> int:
        """Of the levels, and the norm."""
        return vector.element_size() + math.ceil(len(vector) * self.bits / 8)

    def encode(self, vector: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """The norm, then the levels, shifted to be positive."""
        norm, chance = vector.norm(), torch.rand(len(vector), generator=generator, dtype=vector.dtype)
        chance = chance.to(vector.device)  # drawn on the host, the same wherever the vector lies
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
