"""A constant of a device file, and how it was measured."""

import math
import statistics
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from harness.errors import UserError

LOW = 0.25  # quantile of trials that counts: in those above it the system took a core away
NOISY = 0.3  # spread beyond which a constant is not to be trusted


@dataclass(frozen=True)
class Constant:
    """One constant.

    Args:
        name: of the field, as dotted keys.
        value: in its unit.
        how: it came about, in a few words.
        spread: of its repetitions, (largest - smallest) / median; None where it was not repeated.
    """

    name: str
    value: float | bool
    how: str
    spread: float | None = None


def repeated(measure: Callable[[], Iterable[Constant]], times: int) -> Iterator[Constant]:
    """Measure constants several times over, all in turn. Repetitions that make no sense do not count.

    Raises:
        UserError: where none does.

    Yields:
        each, with the median of its values: what disturbs a repetition makes some constants larger and, as those are
        differences and ratios of times, others smaller, so that neither end of the range is the truth.
    """
    rounds, refused = list[list[Constant]](), list[UserError]()
    for _ in range(times):
        try:
            rounds.append(list(measure()))
        except UserError as error:
            refused.append(error)
    if not rounds:
        raise refused[0]
    for same in zip(*rounds, strict=True):
        values = [constant.value for constant in same]
        middle = same[values.index(statistics.median_low(values))]
        apart = max(values) - min(values)
        yield replace(middle, spread=apart / middle.value if middle.value else math.inf if apart else 0.0)
