"""Where the virtual time of one rank went: each second computes, communicates, issues work to a device or is idle."""

from array import array
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np

from hardware.simulated.exchange import Part

ROUNDING = 1e-12  # of a run's time: what sums of so many intervals may be off by


@dataclass(frozen=True)
class Split:
    """The seconds of one rank; the first four sum to the time it finished.

    Args:
        compute_s: in which it computes, on whatever stream.
        exposed_s: in which it communicates and does not compute.
        issuing_s: in which an accelerator does neither, nor waits for others, as its host has yet to issue what to do.
        idle_s: the rest.
        hidden_s: in which it communicates and computes.
    """

    compute_s: float
    exposed_s: float
    issuing_s: float
    idle_s: float
    hidden_s: float

    def since(self, before: "Split") -> "Split":
        """What came after an earlier time, up to which it was `before`."""
        return Split(*[getattr(self, field.name) - getattr(before, field.name) for field in fields(self)])


class Exchanged(NamedTuple):
    """A rank's part in an exchange: what, which one of the run, and when, in virtual seconds."""

    description: str
    number: int
    begin_s: float
    end_s: float


class Account:
    """The intervals of virtual time, in seconds, in which a rank computes and in which it communicates.

    Attributes:
        computing: of its host or default stream.
        communicating: from when all have arrived to when its part has ended.
        issuing: of the host of an accelerator.
        waiting: of an accelerator's streams, for what they have been told to wait for.
        streams: computing of each.
        exchanges: the first `exchanges_kept`, for a timeline.
    """

    def __init__(self) -> None:
        self.communicating = Intervals()
        self.computing = Intervals()
        self.issuing, self.waiting = Intervals(), Intervals()
        self.streams = [self.computing]
        self.exchanges: list[Exchanged] = []
        self.exchanges_kept = 10_000

    def stream(self) -> "Intervals":
        """Another stream's computing."""
        self.streams.append(Intervals())
        return self.streams[-1]

    def exchanged(self, part: Part) -> None:
        """A part in an exchange has ended; one that was given up before it began has taken no time."""
        begin_s, end_s = part.began_s, part.ended.at_s
        if begin_s > end_s:
            return
        self.communicating.add(begin_s, end_s)
        if len(self.exchanges) < self.exchanges_kept:
            self.exchanges.append(Exchanged(part.description, part.number, begin_s, end_s))

    def split(self, finish_s: float) -> Split:
        """Where the time up to `finish_s` went.

        >>> account = Account()
        >>> account.computing.add(0.0, 4.0)
        >>> account.communicating.add(3.0, 6.0)
        >>> account.split(10.0)
        Split(compute_s=4.0, exposed_s=2.0, issuing_s=0.0, idle_s=4.0, hidden_s=1.0)
        """
        computing = np.concatenate([stream.until(finish_s) for stream in self.streams])
        communicating = self.communicating.until(finish_s)
        compute_s, communicate_s = _covered_s(computing), _covered_s(communicating)
        busy_s = _covered_s(np.concatenate([computing, communicating]))
        held = np.concatenate([computing, communicating, self.waiting.until(finish_s)])
        issuing_s = _covered_s(np.concatenate([held, self.issuing.until(finish_s)])) - _covered_s(held)
        hidden_s, idle_s = compute_s + communicate_s - busy_s, finish_s - busy_s - issuing_s
        rounding_s = ROUNDING * finish_s
        idle_s, hidden_s = (seconds if seconds > rounding_s else 0.0 for seconds in (idle_s, hidden_s))
        return Split(compute_s, busy_s - compute_s, issuing_s, idle_s, hidden_s)


class Intervals:
    """Intervals of time, which may overlap; one that begins where the last ended prolongs it."""

    def __init__(self) -> None:
        self._begin_s, self._end_s = array("d"), array("d")

    def add(self, begin_s: float, end_s: float) -> None:
        """Add one."""
        if self._end_s and self._begin_s[-1] <= begin_s <= self._end_s[-1]:
            self._end_s[-1] = max(self._end_s[-1], end_s)
        else:
            self._begin_s.append(begin_s)
            self._end_s.append(end_s)

    def until(self, end_s: float) -> np.ndarray:
        """All that began before, cut at `end_s`, in seconds, shape (intervals, 2)."""
        intervals = np.array([self._begin_s, self._end_s]).T
        return np.minimum(intervals[intervals[:, 0] < end_s], end_s)


def _covered_s(intervals: np.ndarray) -> float:
    """Seconds in at least one of the intervals."""
    begin_s, end_s = intervals[np.argsort(intervals[:, 0])].T
    covered_to_s = np.maximum.accumulate(np.concatenate([[-np.inf], end_s]))[:-1]
    return float(np.sum(np.maximum(0.0, end_s - np.maximum(begin_s, covered_to_s))))
