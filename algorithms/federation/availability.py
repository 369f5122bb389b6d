"""When federated clients can be sampled, by the run's clock. Who has begun to train goes on to the end.

always    at all times
periodic  for a share of every period, such as the night, from a random time of it on
trace     in the intervals of a file, a line for each: client,begin_s,end_s
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import inf
from pathlib import Path

import numpy as np

from harness.errors import UserError, require
from harness.worker import Worker

_STREAM = 6_700_417  # tells these random numbers from others of the same seed
_LATEST_S = 1e12
_US = 1e6  # in a second; whole microseconds, so that what begins at a time has begun by then, without rounding


@dataclass(frozen=True)
class Availability(ABC):
    """When clients can be sampled."""

    @abstractmethod
    def timetable(self, num_clients: int, seed: int) -> "Timetable | None":
        """Of all clients; None if time does not matter.

        Raises:
            UserError: if it cannot be had, or is not of these clients.
        """


@dataclass(frozen=True)
class Always(Availability):
    """At all times."""

    def timetable(self, num_clients: int, seed: int) -> "Timetable | None":
        """None."""
        return None


@dataclass(frozen=True)
class Periodic(Availability):
    """For a share of every period, which begins at a random time of it.

    Args:
        period_s: >= 1e-6.
        share: of the period, in (0, 1].
    """

    period_s: float
    share: float

    def __post_init__(self) -> None:
        require(self.period_s >= 1e-6, "algorithm.availability.period_s", "must be >= 1e-6", self.period_s)
        require(0 < self.share <= 1, "algorithm.availability.share", "must be in (0, 1]", self.share)

    def timetable(self, num_clients: int, seed: int) -> "Timetable":
        """An interval of every client."""
        phases = np.array([np.random.default_rng([seed, _STREAM, client]).random() for client in range(num_clients)])
        begins_us = _microseconds(phases * self.period_s)
        length_us = max(1, round(self.share * self.period_s * _US))
        return Timetable(np.arange(num_clients), begins_us, begins_us + length_us, round(self.period_s * _US))


@dataclass(frozen=True)
class Trace(Availability):
    """In the intervals of a file; a client that has none is never available.

    Args:
        path: of the file, lines like `client,begin_s,end_s`.
        repeat_s: after which the trace begins anew, no earlier than its last end; None for once.
    """

    path: str | None
    repeat_s: float | None

    def timetable(self, num_clients: int, seed: int) -> "Timetable":
        """What the file says."""
        rows = self.intervals
        last, end_s = int(rows[:, 0].max()), float(rows[:, 2].max())
        require(last < num_clients, "algorithm.num_clients", f"must be above client {last} of {self.path}", num_clients)
        fits = self.repeat_s is None or self.repeat_s >= end_s
        require(fits, "algorithm.availability.repeat_s", f"must be >= {end_s:g}, where {self.path} ends", self.repeat_s)
        repeat_us = None if self.repeat_s is None else round(self.repeat_s * _US)
        return Timetable(rows[:, 0].astype(int), _microseconds(rows[:, 1]), _microseconds(rows[:, 2]), repeat_us)

    @cached_property
    def intervals(self) -> np.ndarray:
        """Client, begin and end of each, shape (intervals, 3); read once, before workers start.

        Raises:
            UserError: if there is no such file, or naming the line that is wrong.
        """
        require(self.path is not None, "algorithm.availability.path", "must name a file of intervals", self.path)
        try:
            lines = Path(str(self.path)).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"algorithm.availability.path={self.path} cannot be read as text: {error}") from error
        rows = [self._interval(number, line) for number, line in enumerate(lines, 1) if self._is_interval(number, line)]
        if not rows:
            raise UserError(f"algorithm.availability.path={self.path} has no interval: add lines client,begin_s,end_s")
        return np.array(rows)

    def _is_interval(self, number: int, line: str) -> bool:
        return bool(line.strip()) and not (number == 1 and line.startswith("client"))

    def _interval(self, number: int, line: str) -> tuple[float, float, float]:
        try:
            client, begin_s, end_s = line.split(",")
            row = int(client), float(begin_s), float(end_s)
        except ValueError:
            row = -1, 0.0, 0.0
        if not (row[0] >= 0 and row[1] >= 0 and row[1] + 1 / _US <= row[2] <= _LATEST_S):
            rule = "must be client,begin_s,end_s with client >= 0 and 0 <= begin_s <= end_s - 1e-6, such as 7,0.5,2.0"
            raise UserError(f"algorithm.availability.path={self.path}, line {number}: {rule}, got {line[:60]!r}")
        return row


@dataclass(frozen=True)
class Timetable:
    """Intervals in which clients are available.

    Args:
        clients: of each interval, shape (intervals,).
        begins_us: in microseconds of the run, shape (intervals,).
        ends_us: likewise; no longer available then.
        repeat_us: after which all begins anew; None if it never does.
    """

    clients: np.ndarray
    begins_us: np.ndarray
    ends_us: np.ndarray
    repeat_us: int | None

    def among(self, clients: np.ndarray, time_s: float) -> np.ndarray:
        """Those of the clients who are available, in order."""
        elapsed_us = self._since_us(round(time_s * _US))
        within = (elapsed_us >= 0) & (elapsed_us < self.ends_us - self.begins_us)
        return clients[contained(clients, self.clients[within])]

    def opening_s(self, clients: np.ndarray, time_s: float) -> float:
        """When the first of the clients, none of whom is available, will be; infinite if never again."""
        now_us = round(time_s * _US)
        ahead_us = -self._since_us(now_us)[contained(self.clients, clients)]
        ahead_us = ahead_us[ahead_us > 0] if self.repeat_us is None else ahead_us + self.repeat_us
        return (now_us + int(ahead_us.min())) / _US if len(ahead_us) else inf

    def wait(self, worker: Worker, clients: np.ndarray) -> float:
        """Be idle until one of the clients is available; returns the time, as a repeated run reads it, too.

        Raises:
            UserError: if none will be.
        """
        while not len(self.among(clients, now_s := worker.read_clock())):
            opening_s = self.opening_s(clients, now_s)
            if opening_s == inf:
                raise UserError(
                    f"algorithm.availability has no client with samples after {now_s:.6g} s of the run: give its file "
                    "later intervals, or set algorithm.availability.repeat_s"
                )
            worker.idle(opening_s - now_s)
        return now_s

    def _since_us(self, now_us: int) -> np.ndarray:
        """Since each interval last began; negative if it never has."""
        elapsed_us = now_us - self.begins_us
        return elapsed_us if self.repeat_us is None else elapsed_us % self.repeat_us


def contained(clients: np.ndarray, others: Sequence[int] | np.ndarray) -> np.ndarray:
    """Which of the clients are among others. (numpy's set functions import modules at their first call.)"""
    flags = np.zeros(1 + max(clients.max(initial=0), max(others, default=0)), dtype=bool)
    flags[np.asarray(others, dtype=int)] = True
    return flags[clients]


def _microseconds(seconds: np.ndarray) -> np.ndarray:
    return np.round(seconds * _US).astype(np.int64)
