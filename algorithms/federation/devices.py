"""How fast the devices of federated clients are, next to the workers that play them.

equal      as fast as their workers
lognormal  exp(sigma |z|) times as slow, z from N(0, 1): most are near their worker, few far behind
classes    of a few kinds, such as phones of several years

No device is faster than its worker, whose time is stretched: by a real pause, or a virtual one.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import exp, isclose

import numpy as np

from harness.errors import require

_STREAM = 5_915_587  # tells these random numbers from others of the same seed


@dataclass(frozen=True)
class Devices(ABC):
    """What devices clients have."""

    @abstractmethod
    def slowdown(self, client: int, seed: int) -> float:
        """How many times as long as its worker a client computes, >= 1."""


@dataclass(frozen=True)
class Equal(Devices):
    """As fast as their workers."""

    def slowdown(self, client: int, seed: int) -> float:
        """None."""
        return 1.0


@dataclass(frozen=True)
class LogNormal(Devices):
    """Slower by a lognormal factor.

    Args:
        sigma: of its logarithm, in [0, 5].
    """

    sigma: float

    def __post_init__(self) -> None:
        require(0 <= self.sigma <= 5, "algorithm.devices.sigma", "must be in [0, 5]", self.sigma)

    def slowdown(self, client: int, seed: int) -> float:
        """Of median exp(0.67 sigma)."""
        return exp(self.sigma * abs(_random(client, seed).standard_normal()))


@dataclass(frozen=True)
class Classes(Devices):
    """Of a few kinds.

    Args:
        slowdowns: of each class, times as long as a worker, >= 1.
        shares: of the clients that are of each class, in expectation, > 0; they sum to 1.
    """

    slowdowns: list[float]
    shares: list[float]

    def __post_init__(self) -> None:
        fast = [slowdown for slowdown in self.slowdowns if slowdown < 1]
        require(not fast, "algorithm.devices.slowdowns", "must be >= 1: no device is faster than its worker", fast)
        known = len(self.shares) == len(self.slowdowns) and all(share > 0 for share in self.shares)
        rule = f"must be {len(self.slowdowns)} numbers > 0 that sum to 1, one for each of algorithm.devices.slowdowns"
        require(known and isclose(sum(self.shares), 1), "algorithm.devices.shares", rule, self.shares)

    def slowdown(self, client: int, seed: int) -> float:
        """Of the client's class."""
        return self.slowdowns[int(_random(client, seed).choice(len(self.shares), p=self.shares))]


def _random(client: int, seed: int) -> np.random.Generator:
    return np.random.default_rng([seed, _STREAM, client])
