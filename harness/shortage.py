"""What a device lacks of memory, and by how much less of what it would do."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

GIB = 2**30
NEGLIGIBLE = 0.02  # of what is missing: a setting that frees less is not worth a word


@dataclass(frozen=True)
class Way:
    """A setting that frees memory, by estimate.

    Args:
        typed: as it is typed.
        least_bytes: that it frees.
        most_bytes: likewise.
    """

    typed: str
    least_bytes: float
    most_bytes: float

    def __str__(self) -> str:
        """What is typed, and what that frees.

        >>> print(Way("algorithm.batch_size=1", 2**30, 2**30), Way("algorithm.checkpointing=true", 0, 2**31), sep="; ")
        algorithm.batch_size=1 (about 1 GiB); algorithm.checkpointing=true (at most 2 GiB)
        """
        least, most = (f"{nbytes / GIB:.3g}" for nbytes in (self.least_bytes, self.most_bytes))
        frees = f"about {most}" if least == most else f"{least} to {most}" if self.least_bytes else f"at most {most}"
        return f"{self.typed} ({frees} GiB)"


@dataclass(frozen=True)
class Shortage:
    """Of the device that needs most.

    Args:
        peak_bytes: that it needs.
        kept_bytes: of these, what stays from step to step: parameters, the optimiser's state.
        held_bytes: that it has.
        state_bytes: of what stays, what the first step has made: the optimiser's state.
    """

    peak_bytes: int
    kept_bytes: int
    held_bytes: float
    state_bytes: int = 0

    @property
    def missing_bytes(self) -> float:
        """What is to be freed."""
        return self.peak_bytes - self.held_bytes

    @property
    def passing_bytes(self) -> int:
        """What does not stay: activations, gradients, gathered layers."""
        return self.peak_bytes - self.kept_bytes

    def kept_less(self, typed: str, times: float, passing_too: bool = False) -> Way:
        """A setting by which a device keeps so many times less, and perhaps has as many times less that passes."""
        freed = 1 - 1 / times
        return Way(typed, freed * self.kept_bytes, freed * (self.peak_bytes if passing_too else self.kept_bytes))

    def passing_less(self, typed: str, times: float = math.inf) -> Way:
        """A setting by which at most so many times less passes."""
        return Way(typed, 0.0, (1 - 1 / times) * self.passing_bytes)

    def sharers(self, now: int) -> int:
        """By how many workers, of now so many, what stays must be shared, all else being as it is.

        Where all else is too much already, something else must give way too: half of the device is then for what stays.

        Returns:
            `now` times a power of two; 0 where nothing stays.

        >>> Shortage(peak_bytes=100, kept_bytes=80, held_bytes=50).sharers(4)
        16
        """
        room = self.held_bytes - self.passing_bytes
        room = room if room > 0 else self.held_bytes / 2
        return now * 2 ** max(1, math.ceil(math.log2(self.kept_bytes / room))) if self.kept_bytes else 0

    def samples(self, now: int) -> int:
        """How many of so many samples of a step fit, if all that does not stay goes with them.

        >>> Shortage(peak_bytes=100, kept_bytes=20, held_bytes=60).samples(4)
        2
        """
        passing, room = self.passing_bytes, self.held_bytes - self.kept_bytes
        return 0 if room < 0 or not passing else int(now * room / passing)

    def advice(self, ways: Sequence[Way]) -> str:
        """Which of them free enough, each by itself; where none surely does, also those that may, or all together."""
        enough = [way for way in ways if way.least_bytes >= self.missing_bytes]
        unsure = [way for way in ways if way.least_bytes < self.missing_bytes <= way.most_bytes]
        few = [way for way in ways if NEGLIGIBLE * self.missing_bytes < way.most_bytes < self.missing_bytes]
        parts = [f"what frees enough, by estimate, is {_or(enough)}"] * bool(enough)
        parts += [f"what may free enough{', by estimate,' * (not enough)} is {_or(unsure)}"] * bool(unsure)
        together = sum(way.most_bytes for way in few) >= self.missing_bytes
        alone = "by itself" + " (several together may)" * together
        parts += [f"what frees some, and not enough {alone}, is {_or(few)}"] * bool(few and not enough)
        return "; ".join([*parts, f"devices of {math.ceil(self.peak_bytes / GIB)} GiB (hardware/compute) would do"])


def _or(ways: Sequence[Way]) -> str:
    return ", or ".join(map(str, ways))
