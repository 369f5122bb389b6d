"""A worker's wall clock. It remembers its pauses, so that any host time can later be put on the run's own clock."""

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


def run_time_s(host_s: np.ndarray, start_s: float, pauses: Sequence[tuple[float, float]]) -> np.ndarray:
    """Host times on the run's own clock, which stands still in pauses.

    >>> run_time_s(np.array([11.0, 13.0, 20.0]), 10.0, [(12.0, 14.0)])
    array([1., 2., 8.])
    """
    elapsed = np.asarray(host_s, dtype=float) - start_s
    if not pauses:
        return elapsed
    paused_s = np.cumsum([end_s - begin_s for begin_s, end_s in pauses])  # by the end of each; one follows the other
    return elapsed - np.interp(host_s, np.ravel(pauses), np.ravel(np.column_stack([[0.0, *paused_s[:-1]], paused_s])))
