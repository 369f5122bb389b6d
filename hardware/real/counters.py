"""The counters of a run (`harness.place.COUNTERS`), for threads and for processes."""

import fcntl
from collections import defaultdict
from contextlib import nullcontext
from threading import Lock
from typing import Protocol

from hardware.real.segment import Segment
from harness.place import COUNTERS

SAMPLES, UPDATES = COUNTERS.index("samples"), COUNTERS.index("updates")


class Counters(Protocol):
    """Atomic counters."""

    def add(self, counter: str, amount: int) -> int:
        """Add; returns the value before."""

    def count(self, samples: int, updates: int, alone: bool) -> tuple[int, int]:
        """Add to `samples` and `updates` at once; returns their values before."""

    def value(self, counter: str) -> int:
        """The value now."""


def processed(counters: Counters) -> int:
    """Samples, as who watches a run shall see them."""
    return max(counters.value("samples"), counters.value("advanced"))


class LocalCounters:
    """Counters of the threads of one process."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._values: defaultdict[str, int] = defaultdict(int)

    def add(self, counter: str, amount: int) -> int:
        """Add; returns the value before."""
        with self._lock:
            return self._add(counter, amount)

    def count(self, samples: int, updates: int, alone: bool) -> tuple[int, int]:
        """Add to both; returns the values before."""
        with self._lock:
            return self._add("samples", samples), self._add("updates", updates)

    def value(self, counter: str) -> int:
        """The value now."""
        return self._values[counter]

    def _add(self, counter: str, amount: int) -> int:
        before = self._values[counter]
        self._values[counter] = before + amount
        return before


class SharedCounters:
    """Counters in shared memory, under a lock of the kernel's, which it releases if the holder is killed.

    Args:
        segment: of at least `8 * len(COUNTERS)` bytes.
    """

    def __init__(self, segment: Segment) -> None:
        self._segment = segment
        self._values = memoryview(segment.map()).cast("q")
        self._lock = _RecordLock(segment.fd)

    def add(self, counter: str, amount: int) -> int:
        """Add; returns the value before."""
        with self._lock:
            return self._add(COUNTERS.index(counter), amount)

    def count(self, samples: int, updates: int, alone: bool) -> tuple[int, int]:
        """Add to both; returns the values before."""
        with nullcontext() if alone else self._lock:
            return self._add(SAMPLES, samples), self._add(UPDATES, updates)

    def value(self, counter: str) -> int:
        """The value now."""
        return self._values[COUNTERS.index(counter)]

    def _add(self, place: int, amount: int) -> int:
        before = self._values[place]
        self._values[place] = before + amount
        return before


class _RecordLock:
    """A POSIX record lock. It belongs to a process: a lock more holds that one's threads apart."""

    def __init__(self, fd: int) -> None:
        self._fd, self._threads = fd, Lock()

    def __enter__(self) -> None:
        self._threads.acquire()
        fcntl.lockf(self._fd, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        fcntl.lockf(self._fd, fcntl.LOCK_UN)
        self._threads.release()
