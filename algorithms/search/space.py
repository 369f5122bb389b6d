"""A search space: what a setting may be, as it is written in YAML.

uniform(low, high)          any number between
log_uniform(low, high)      the same, of its logarithm: as many from 0.01 to 0.1 as from 0.1 to 1
one_of(value, value, ...)   one of some numbers
"""

import math
import re
from dataclasses import dataclass
from typing import Self

import numpy as np

from harness.errors import require

FORM = r"(uniform|log_uniform|one_of)\(([^()]*)\)"


@dataclass(frozen=True)
class Range:
    """What one setting may be.

    Args:
        kind: uniform, log_uniform or one_of.
        numbers: low and high, or all there are.
    """

    kind: str
    numbers: tuple[float, ...]

    @classmethod
    def read(cls, field: str, text: str) -> Self:
        """From its form in YAML.

        >>> Range.read("space.batch_size", "one_of(16, 32)")
        Range(kind='one_of', numbers=(16, 32))

        Raises:
            UserError: naming the field.
        """
        rule = "must be uniform(low, high), log_uniform(low, high) or one_of(value, value, ...)"
        form = re.fullmatch(FORM, text.strip())
        require(form is not None, field, rule, text)
        assert form is not None
        kind, parts = form[1], [part.strip() for part in form[2].split(",")]
        try:
            numbers = tuple(int(part) if re.fullmatch(r"[+-]?\d+", part) else float(part) for part in parts)
        except ValueError:
            numbers = ()
        require(bool(numbers) and all(map(math.isfinite, numbers)), field, rule, text)
        if kind != "one_of":
            require(len(numbers) == 2 and numbers[0] < numbers[1], field, "must be of a low and a higher number", text)
            require(kind == "uniform" or numbers[0] > 0, field, "must begin above 0", text)
        return cls(kind, numbers)

    def draw(self, random: np.random.Generator) -> float:
        """One value."""
        if self.kind == "one_of":
            return self.numbers[random.integers(len(self.numbers))]
        return self._value(random.uniform(*self._ends()))

    def grid(self, points: int) -> list[float]:
        """All there are, or so many of equal distance, the ends among them.

        >>> Range("log_uniform", (0.01, 1.0)).grid(3)
        [0.01, 0.1, 1.0]
        """
        if self.kind == "one_of":
            return list(self.numbers)
        inner = np.linspace(*self._ends(), points)[1:-1]
        return [float(self.numbers[0]), *(float(f"{self._value(each):.12g}") for each in inner), float(self.numbers[1])]

    def extremes(self, drawn: bool) -> tuple[float, ...]:
        """Values that must be possible: all there are, or the ends, the upper of which is never drawn."""
        if self.kind == "one_of" or not drawn:
            return self.numbers
        return self.numbers[0], math.nextafter(self.numbers[1], self.numbers[0])

    def _ends(self) -> tuple[float, float]:
        low, high = self.numbers
        return (math.log(low), math.log(high)) if self.kind == "log_uniform" else (low, high)

    def _value(self, scaled: float) -> float:
        return float(math.exp(scaled) if self.kind == "log_uniform" else scaled)
