"""The counters of a run (`harness.worker.COUNTERS`), for threads and for processes."""

import fcntl
from threading import Lock
from typing import Protocol

from hardware.real.segment import Segment
from harness.worker import COUNTERS


class Counters(Protocol):
    """Atomic counters."""

    def add(self, counter: str, amount: int) -> int:
        """Add; returns the value before."""

    def value(self, counter: str) -> int:
        """The value now."""


class LocalCounters:
    """Counters of the threads of one process."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._values = dict.fromkeys(COUNTERS, 0)

    def add(self, counter: str, amount: int) -> int:
        """Add; returns the value before."""
        with self._lock:
            before = self._values[counter]
            self._values[counter] = before + amount
        return before

    def value(self, counter: str) -> int:
        """The value now."""
        return self._values[counter]


class SharedCounters:
    """Counters in shared memory, under a lock of the kernel's, which it releases if the holder is killed.

    Args:
        segment: of at least `8 * len(COUNTERS)` bytes.
    """

    def __init__(self, segment: Segment) -> None:
        self._segment = segment
        self._values = memoryview(segment.map()).cast("q")
        self._threads = Lock()  # a POSIX record lock belongs to the process: it does not hold its threads apart

    def add(self, counter: str, amount: int) -> int:
        """Add; returns the value before."""
        place = COUNTERS.index(counter)
        with self._threads:
            fcntl.lockf(self._segment.fd, fcntl.LOCK_EX)
            before = self._values[place]
            self._values[place] = before + amount
            fcntl.lockf(self._segment.fd, fcntl.LOCK_UN)
        return before

    def value(self, counter: str) -> int:
        """The value now."""
        return self._values[COUNTERS.index(counter)]
