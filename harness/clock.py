"""The run's own clock, as one worker reads it.

An algorithm asks `worker.clock.now()` and cannot tell which clock answers: the host's or the simulator's.
A virtual second never wears a real second's name: `kind` says which one it is, and every record keeps it.
"""

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from typing import ClassVar


class Clock(ABC):
    """Seconds since training began."""

    kind: ClassVar[str]  # "wall" or "virtual"

    @abstractmethod
    def now(self) -> float:
        """Seconds since training began, without the time spent in `paused()`."""

    @abstractmethod
    def paused(self) -> AbstractContextManager[None]:
        """A block that costs the run nothing: snapshots, logging."""
