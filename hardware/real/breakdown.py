"""Where the workers' time went, from what each of them noted.

All host times are of one monotonic clock, so the n-th collective of a group can be matched across its ranks: nothing
can move before the last rank has called it. Of the time a worker is blocked in it,

    idle            is what lies before the last rank's call
    communication   is what lies after

and time for which it was not blocked, because it computed meanwhile, is neither: that communication is hidden.
A point-to-point operation counts as communication as a whole, a wait for a meeting or a lock as idleness.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from hardware.base import WorkerReport
from hardware.real.host_clock import RunClock
from hardware.real.meter import BLOCKED, COMPLETED, RELEASED, STARTED
from harness.place import Observation
from harness.program import Program


@dataclass(frozen=True)
class Ledger:
    """What one worker noted. Host times in seconds.

    Args:
        finish_s: when it left `train`.
        busy_s: CPU seconds of its thread, or seconds in native kernels; pauses excluded, slower devices included
            (`Worker.slowed`). On a CUDA device infinite: all time counts in which it is not blocked.
        pauses: (begin, end) of every block off the clock.
        collectives: a table per group, see `meter.Log.table`.
        messages: the table of its point-to-point operations.
        waits: begin and end of its waits for a meeting or a lock, shape (waits, 2).
        sent_bytes: payload sent.
        peak_bytes: peak memory, or None where it cannot be told apart.
        device_peak_bytes: that of the tensors on its CUDA device, or None where it has none.
    """

    finish_s: float
    busy_s: float
    pauses: list[tuple[float, float]]
    collectives: dict[str, np.ndarray]
    messages: np.ndarray
    waits: np.ndarray
    sent_bytes: int
    peak_bytes: int | None
    device_peak_bytes: int | None = None


@dataclass(frozen=True)
class Breakdown:
    """Reports of all workers, the share of communication hidden behind computing (None if there is none), the clock."""

    workers: list[WorkerReport]
    overlap_frac: float | None
    clock: RunClock

    def on_its_clock(self, observations: Sequence[Observation]) -> list[Observation]:
        """Observations, each of which was on the clock of who made it."""
        times_s = self.clock.at(np.array([each.host_s for each in observations]))
        return [replace(each, time_s=float(time_s)) for each, time_s in zip(observations, times_s, strict=True)]


def break_down(ledgers: Sequence[Ledger], start_s: float, shares: Sequence[float]) -> Breakdown:
    """Match the notes of all workers.

    Args:
        ledgers: by rank.
        start_s: host time at which the run's clock started.
        shares: see `shares_of`.
    """
    clock = RunClock(start_s, [ledger.pauses for ledger in ledgers], shares)
    clocks = [_Timeline(ledger, clock) for ledger in ledgers]
    arrivals = {name: _last_arrivals(clocks, name) for name in {key for clock in clocks for key in clock.collectives}}
    exposed = sum(clock.split(arrivals)[1] for clock in clocks)
    total = sum(clock.communication_s(arrivals) for clock in clocks)
    reports = [clock.report(rank, arrivals) for rank, clock in enumerate(clocks)]
    return Breakdown(reports, float(np.clip(1 - exposed / total, 0.0, 1.0)) if total > 0 else None, clock)


def shares_of(program: Program, num_ranks: int) -> list[float]:
    """The share of a run that a pause of each rank holds up.

    In lock step all wait for who pauses, of whom rank 0 is the only one that counts where it observes for all. Else
    they wait for a server, but not for another worker.
    """
    if program.algorithm.synchronous:
        return [1.0] + [float(program.algorithm.observes_own)] * (num_ranks - 1)
    workers = program.workers(num_ranks)
    return [1.0 / workers] * workers + [1.0] * (num_ranks - workers)


class _Timeline:
    """One worker's notes on the run's own clock."""

    def __init__(self, ledger: Ledger, clock: RunClock) -> None:
        self.ledger = ledger
        self.finish_s = float(clock.at(np.array(ledger.finish_s)))
        begins_s, ends_s = clock.at(np.array(ledger.pauses).reshape(-1, 2)).T
        self.paused_s = float((ends_s - begins_s).sum())  # that the clock does not leave out
        self.messages = clock.at(ledger.messages)
        self.waits = clock.at(ledger.waits)
        self.collectives = {name: clock.at(table) for name, table in ledger.collectives.items()}
        tables = [*self.collectives.values(), self.messages]
        self.events = np.unique(
            np.concatenate([[0.0], *(table[:, [STARTED, RELEASED, COMPLETED]].ravel() for table in tables)])
        )

    def report(self, rank: int, arrivals: dict[str, np.ndarray]) -> WorkerReport:
        """Seconds of each kind; what the worker was neither busy nor blocked for is left over."""
        idle_s, comm_s = self.split(arrivals)
        idle_s += float((self.waits[:, 1] - self.waits[:, 0]).sum())
        begin_s, end_s = self._blocked(self.messages)
        comm_s = min(comm_s + float((end_s - begin_s).sum()), self.finish_s - idle_s)
        compute_s = min(self.ledger.busy_s, max(0.0, self.finish_s - idle_s - comm_s - self.paused_s))
        return WorkerReport(
            rank, self.finish_s, compute_s, comm_s, idle_s,
            self.ledger.sent_bytes, self.ledger.peak_bytes, self.ledger.device_peak_bytes,
        )  # fmt: skip

    def split(self, arrivals: dict[str, np.ndarray]) -> tuple[float, float]:
        """Seconds blocked in collectives before and after the last rank's call: idle, communication."""
        idle_s = comm_s = 0.0
        for name, table in self.collectives.items():
            begin_s, end_s = self._blocked(table)
            idle_s += float(np.maximum(np.minimum(arrivals[name][: len(table)], end_s) - begin_s, 0.0).sum())
            comm_s += float(np.maximum(end_s - np.maximum(begin_s, arrivals[name][: len(table)]), 0.0).sum())
        return idle_s, comm_s

    def communication_s(self, arrivals: dict[str, np.ndarray]) -> float:
        """Seconds of collectives in flight after the last rank's call, hidden or not."""
        spans = (
            np.maximum(table[:, COMPLETED] - arrivals[name][: len(table)], 0.0)
            for name, table in self.collectives.items()
        )
        return float(sum(np.nansum(span) for span in spans))

    def _blocked(self, table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """When each operation began and ceased to hold the worker up.

        An operation nobody waited for in Python was waited for in C++ (DDP): that wait began at the worker's last sign
        of life before the operation was over, at the earliest.
        """
        begin_s, end_s = table[:, BLOCKED].copy(), table[:, RELEASED].copy()
        unseen = np.isnan(end_s)
        end_s[unseen] = np.where(np.isnan(table[unseen, COMPLETED]), table[unseen, STARTED], table[unseen, COMPLETED])
        before = np.maximum(np.searchsorted(self.events, end_s[unseen]) - 1, 0)
        begin_s[unseen] = np.maximum(self.events[before], table[unseen, STARTED])
        return np.minimum(begin_s, end_s), end_s


def _last_arrivals(clocks: Sequence[_Timeline], name: str) -> np.ndarray:
    """When the last rank called each collective of a group, shape (collectives,)."""
    starts = [clock.collectives[name][:, STARTED] for clock in clocks if name in clock.collectives]
    arrivals = np.full(max(map(len, starts)), -np.inf)
    for start in starts:
        arrivals[: len(start)] = np.maximum(arrivals[: len(start)], start)
    return arrivals
