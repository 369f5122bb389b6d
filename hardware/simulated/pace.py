"""How much longer than planned a rank computes: stragglers, transient slowdowns and jitter."""

import re
from bisect import bisect_right
from collections.abc import Callable, Mapping
from math import exp

import numpy as np

from harness.errors import UserError, require

_BLOCK = 1024  # random factors drawn together


class Pace:
    """The pace of one rank.

    Args:
        factor: of all its computing time: 4 for a straggler, 0.5 for a device that is twice as fast.
        slowdowns: from each virtual time on, in seconds, a further factor, until the next.
        jitter: see `drawn`.
        seed: of the jitter, with the rank.

    >>> Pace(factor=2.0, slowdowns={10.0: 4.0, 18.0: 1.0}).stretch(6.0, at_s=6.0)  # 4 s, 8 s at a quarter, 6 s
    18.0
    """

    def __init__(
        self,
        factor: float = 1.0,
        slowdowns: Mapping[float, float] | None = None,
        jitter: str = "none",
        seed: tuple[int, ...] = (),
    ) -> None:
        changes = sorted((slowdowns or {}).items())
        self._factor = factor
        self._from_s = [time_s for time_s, _ in changes]
        self._factors = [1.0] + [further for _, further in changes]
        draw = drawn(jitter)
        self._jitter = None if draw is None else _Factors(draw, np.random.default_rng(seed))
        self._even = factor == 1.0 and not changes and draw is None

    def stretch(self, seconds: float, at_s: float) -> float:
        """Virtual seconds that a computation of `seconds` takes if it begins at `at_s`."""
        if self._even:
            return seconds
        left_s = seconds * self._factor * (1.0 if self._jitter is None else self._jitter.next())
        now_s, index = at_s, bisect_right(self._from_s, at_s)
        for until_s in self._from_s[index:]:
            possible_s = (until_s - now_s) / self._factors[index]
            if possible_s >= left_s:
                break
            left_s, now_s, index = left_s - possible_s, until_s, index + 1
        return now_s - at_s + left_s * self._factors[index]

    def factor(self, at_s: float) -> float:
        """Virtual seconds of one second's work, of which no more is done than until the next change."""
        jitter = 1.0 if self._jitter is None else self._jitter.next()
        return self._factor * jitter * self._factors[bisect_right(self._from_s, at_s)]


class _Factors:
    """Random factors, drawn in blocks."""

    def __init__(self, draw: Callable[[np.random.Generator, int], np.ndarray], generator: np.random.Generator) -> None:
        self._draw, self._generator = draw, generator
        self._block: list[float] = []

    def next(self) -> float:
        """The next one."""
        if not self._block:
            self._block = self._draw(self._generator, _BLOCK).tolist()[::-1]
        return self._block.pop()


def drawn(jitter: str) -> Callable[[np.random.Generator, int], np.ndarray] | None:
    """What draws factors of mean 1: "none", "exponential", or "lognormal(sigma)" with sigma of the logarithm.

    Raises:
        UserError: if it is none of these.
    """
    if jitter == "none":
        return None
    if jitter == "exponential":
        return lambda generator, count: generator.exponential(1.0, count)
    found = re.fullmatch(r"lognormal\(\s*([0-9.eE+-]+)\s*\)", jitter)
    try:
        sigma = float(found[1]) if found else None
    except ValueError:
        sigma = None
    if sigma is None:
        raise UserError(
            f"hardware.compute.jitter must be none, exponential or lognormal(<sigma>), such as lognormal(0.2), "
            f"got {jitter}"
        )
    require(0 <= sigma <= 5, "hardware.compute.jitter", "must have a sigma in [0, 5]", jitter)
    mean = exp(sigma * sigma / 2)
    return lambda generator, count: generator.lognormal(0.0, sigma, count) / mean
