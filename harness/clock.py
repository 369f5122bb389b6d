"""The run's own clock, as one worker reads it.

An algorithm asks `worker.clock.now()` and cannot tell which clock answers: the host's (`WallClock`) or the simulator's.
A virtual second never wears a real second's name: `kind` says which one it is, and every record keeps it.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
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


class WallClock(Clock):
    """The host's monotonic clock.

    Args:
        start_s: `time.perf_counter()` at which training began; on Linux every process reads the same clock.
    """

    kind = "wall"

    def __init__(self, start_s: float | None = None) -> None:
        self.start_s = time.perf_counter() if start_s is None else start_s
        self.paused_s = 0.0

    def now(self) -> float:
        """Seconds since `start_s`, without pauses."""
        return time.perf_counter() - self.start_s - self.paused_s

    @contextmanager
    def paused(self) -> Iterator[None]:
        """A block whose time is not counted."""
        begin_s = time.perf_counter()
        try:
            yield
        finally:
            self.paused_s += time.perf_counter() - begin_s
