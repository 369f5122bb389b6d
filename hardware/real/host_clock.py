"""A worker's wall clock, which remembers its pauses; and the run's, on which all host times are put in the end."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from harness.clock import Clock


class HostClock(Clock):
    """The host's monotonic clock without pauses.

    Args:
        start_s: `time.perf_counter()` at which all workers began.

    Attributes:
        pauses: host times (begin, end) of every pause.
        paused_cpu_s: CPU seconds this thread spent in pauses.
    """

    kind = "wall"

    def __init__(self, start_s: float) -> None:
        self.start_s = start_s
        self.pauses: list[tuple[float, float]] = []
        self.paused_cpu_s = 0.0
        self._paused_s = 0.0

    def now(self) -> float:
        """Seconds since `start_s`, without pauses."""
        return time.perf_counter() - self.start_s - self._paused_s

    @contextmanager
    def paused(self) -> Iterator[None]:
        """A block whose time is not counted."""
        begin_s, begin_cpu_s = time.perf_counter(), time.thread_time()
        try:
            yield
        finally:
            end_s = time.perf_counter()
            self.pauses.append((begin_s, end_s))
            self.paused_cpu_s += time.thread_time() - begin_cpu_s
            self._paused_s += end_s - begin_s


class RunClock:
    """The run's own clock, one for all ranks: it goes on while some of them pause, by the share of those that do not.

    Args:
        start_s: host time at which the run began.
        pauses: of each rank, host times (begin, end).
        shares: of the run that each rank's pauses hold up; together they never hold up more than all.

    >>> RunClock(10.0, [[(12.0, 14.0)], []], [1.0, 0.0]).at(np.array([11.0, 13.0, 20.0]))
    array([1., 2., 8.])
    >>> RunClock(10.0, [[(12.0, 14.0)], []], [0.5, 0.5]).at(np.array([11.0, 13.0, 20.0]))
    array([1. , 2.5, 9. ])
    """

    def __init__(
        self, start_s: float, pauses: Sequence[Sequence[tuple[float, float]]], shares: Sequence[float]
    ) -> None:
        self._start_s = start_s
        times = np.array([time_s for each in pauses for pause in each for time_s in pause])
        change = np.repeat(shares, [2 * len(each) for each in pauses]) * np.tile([1.0, -1.0], len(times) // 2)
        order = np.argsort(times, kind="stable")
        self._changes_s = times[order]
        held = np.clip(np.cumsum(change[order]), 0.0, 1.0)
        self._stopped_s = np.cumsum(held[:-1] * np.diff(self._changes_s))

    def at(self, host_s: np.ndarray) -> np.ndarray:
        """Host times on this clock, in seconds."""
        elapsed_s = np.asarray(host_s, dtype=float) - self._start_s
        if not len(self._changes_s):
            return elapsed_s
        return elapsed_s - np.interp(host_s, self._changes_s, [0.0, *self._stopped_s])
