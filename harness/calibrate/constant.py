"""A constant of a device file, and how it was measured."""

from dataclasses import dataclass

LOW = 0.25  # quantile of trials that counts: in those above it the system took a core away


@dataclass(frozen=True)
class Constant:
    """One constant.

    Args:
        name: of the field, as dotted keys.
        value: in its unit.
        how: it came about, in a few words.
    """

    name: str
    value: float | bool
    how: str
