"""What a device lacks of memory, and by how much less of what it would do."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Shortage:
    """Of the device that needs most.

    Args:
        peak_bytes: that it needs.
        kept_bytes: of these, what stays from step to step: parameters, the optimiser's state.
        held_bytes: that it has.
    """

    peak_bytes: int
    kept_bytes: int
    held_bytes: float

    @property
    def stays(self) -> bool:
        """Whether what stays is too much already."""
        return self.kept_bytes > self.held_bytes

    def sharers(self, now: int) -> int:
        """By how many workers, of now so many, what stays must be shared, all else being as it is.

        Returns:
            `now` times a power of two; 0 where all else is too much already.

        >>> Shortage(peak_bytes=100, kept_bytes=80, held_bytes=50).sharers(4)
        16
        """
        room = self.held_bytes - (self.peak_bytes - self.kept_bytes)
        return now * 2 ** max(1, math.ceil(math.log2(self.kept_bytes / room))) if room > 0 and self.kept_bytes else 0

    def samples(self, now: int) -> int:
        """How many of so many samples of a step fit, if all that does not stay goes with them.

        >>> Shortage(peak_bytes=100, kept_bytes=20, held_bytes=60).samples(4)
        2
        """
        passing = self.peak_bytes - self.kept_bytes
        return 0 if self.stays or not passing else int(now * (self.held_bytes - self.kept_bytes) / passing)
