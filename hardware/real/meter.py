"""A worker's notes on its communication: when each operation began, held the worker up, and ended."""

import math
from array import array
from threading import Lock, get_ident

import numpy as np
import torch

from hardware.real.stopwatch import HostStopwatch, Stopwatch

STARTED, BLOCKED, RELEASED, COMPLETED = range(4)  # columns of a log: notes of a stopwatch
NEVER = float("nan")  # not waited for in Python: a C++ caller such as DDP's reducer waits on the future
ASIDE = float("inf")  # waited for by a background activity: the worker itself was not held up


class Log:
    """What one rank did in one group: four notes per operation, in the order of calls."""

    def __init__(self) -> None:
        self.times = array("d")

    def table(self) -> np.ndarray:
        """Columns STARTED, BLOCKED, RELEASED, COMPLETED; shape (operations, 4)."""
        return np.array(self.times).reshape(-1, 4)


class Meter:
    """What one worker's groups measured.

    Created in the thread that trains; others may start operations too, and those they wait for are marked `ASIDE`.

    Args:
        stopwatch: what the notes are of.

    Attributes:
        collectives: a log per group, by the group's name; the n-th entry is the same collective on every rank.
        messages: the log of point-to-point operations.
        sent_bytes: payload sent.
    """

    def __init__(self, stopwatch: Stopwatch | None = None) -> None:
        self.stopwatch = stopwatch or HostStopwatch()
        self.collectives: dict[str, Log] = {}
        self.messages = Log()
        self.sent_bytes = 0
        self._thread = get_ident()
        self._starting = Lock()

    def clear(self) -> None:
        """Forget all operations; none may be in flight."""
        for log in (*self.collectives.values(), self.messages):
            del log.times[:]
        self.sent_bytes = 0

    def start(self, log: Log, sent_bytes: int) -> int:
        """Note the call. Returns its place in the log."""
        now = self.stopwatch.now()
        with self._starting:
            self.sent_bytes += sent_bytes
            place = len(log.times)
            log.times.extend((now, NEVER, NEVER, NEVER))
        return place

    def finish(self, log: Log, place: int, blocked_s: float) -> None:
        """Note that the caller was blocked from `blocked_s` until now."""
        now = self.stopwatch.now()
        times = log.times
        times[place + BLOCKED] = blocked_s if self._holds_worker_up() else ASIDE
        times[place + RELEASED] = now
        if math.isnan(times[place + COMPLETED]):
            times[place + COMPLETED] = now

    def complete(self, log: Log, place: int) -> None:
        """Note that the operation is over, whoever waits for it."""
        log.times[place + COMPLETED] = self.stopwatch.now()

    def _holds_worker_up(self) -> bool:
        """Whether the worker waits meanwhile: it is the caller, or its backward pass is, in a thread of the device's.

        Where the model lies on a device, DistributedDataParallel calls from there. Background activities that go
        backward themselves have no way to be told from that, and no collectives in it.
        """
        return get_ident() == self._thread or torch._C._current_graph_task_id() != -1
