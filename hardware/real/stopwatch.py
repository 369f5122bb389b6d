"""What a worker notes its times with: the host's clock, or events on the stream of its CUDA device.

A note is a number that `seconds` turns into host time, `time.perf_counter()`, once the run is over. Notes that are nan
or infinite say something else than a time (see `meter`), and stay what they are.
"""

import time
from abc import ABC, abstractmethod
from array import array
from collections import deque
from collections.abc import Callable
from threading import Lock
from typing import Protocol, Self

import numpy as np
import torch

MAX_PENDING = 4096  # events, of about 100 bytes each


class Stopwatch(ABC):
    """Takes notes of when something was."""

    @abstractmethod
    def now(self) -> float:
        """A note of this moment in the calling thread's work."""

    def seconds(self, notes: np.ndarray) -> np.ndarray:
        """Host times of notes."""
        return notes


class HostStopwatch(Stopwatch):
    """The host's clock: of a worker that computes on its CPU."""

    def now(self) -> float:
        """Host time."""
        return time.perf_counter()


class SettledStopwatch(Stopwatch):
    """The host's clock, read when the device is idle: of a worker whose collectives go through the host.

    Args:
        settle: waits for the device.
    """

    def __init__(self, settle: Callable[[], None]) -> None:
        self._settle = settle

    def now(self) -> float:
        """Host time at which the device has done all that it was given."""
        self._settle()
        return time.perf_counter()


class Event(Protocol):
    """A CUDA event that measures time."""

    def query(self) -> bool:
        """Whether it has happened."""

    def elapsed_time(self, end: Self) -> float:
        """Milliseconds until another one."""


class StreamStopwatch(Stopwatch):
    """Events on the worker's stream, which happen when the device gets there; the host goes on at once.

    An event of known host time, recorded and waited for on an idle device, is where all others are counted from: host
    times of events of one device are as far wrong as that wait is long, some microseconds; their differences are not.

    Args:
        record: records an event on the calling thread's stream.
        settle: waits for the device.
    """

    def __init__(self, record: Callable[[], Event], settle: Callable[[], None]) -> None:
        self._record, self._settle = record, settle
        self._seconds = array("d")  # of the notes 0, 1, 2, ...
        self._pending: deque[Event] = deque()  # of those that follow
        self._noting = Lock()
        settle()
        before_s = time.perf_counter()
        self._base = record()
        settle()
        self._base_s = (before_s + time.perf_counter()) / 2

    def now(self) -> float:
        """The number of an event."""
        event = self._record()
        with self._noting:
            self._pending.append(event)
            note = len(self._seconds) + len(self._pending) - 1
            if len(self._pending) > MAX_PENDING:
                self._collect()
        return float(note)

    def seconds(self, notes: np.ndarray) -> np.ndarray:
        """Host times at which the stream came to the events."""
        self._settle()
        with self._noting:
            self._collect()
        times = np.array(notes, dtype=float)
        known = np.isfinite(times)
        times[known] = np.array(self._seconds)[times[known].astype(int)]
        return times

    def _collect(self) -> None:
        """The times of events that have happened; later ones are counted from the last of them.

        CUDA tells milliseconds as a float32: the longer ago, the coarser.
        """
        last = self._base
        while self._pending and self._pending[0].query():
            last = self._pending.popleft()
            self._seconds.append(self._base_s + self._base.elapsed_time(last) * 1e-3)
        if last is not self._base:
            self._base, self._base_s = last, self._seconds[-1]


def stopwatch_of(device: torch.device, backend: str) -> Stopwatch:
    """What a worker on a device notes the times of its collectives with."""
    if device.type != "cuda":
        return HostStopwatch()

    def settle() -> None:
        torch.cuda.synchronize(device)

    def record() -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(device))
        return event

    return StreamStopwatch(record, settle) if backend == "nccl" else SettledStopwatch(settle)
