"""Host times of several hosts on one clock, rank 0's, as well as the network lets us know it.

Ranks that read the same kernel's clock need nothing. Of the others, the first rank on each clock asks rank 0 for the
time, as NTP does (Mills, RFC 5905, section 8, with two time stamps instead of four), before the run and after it:

    asked at a, answered with t, heard at b     offset = t - (a + b) / 2, wrong by (b - a) / 2 at most

The quickest of several answers counts. Between the two comparisons clocks drift apart evenly, as far as we know.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from hardware.real.breakdown import Ledger
from hardware.real.card import together
from hardware.real.world_store import WorldStore

QUESTIONS = 25  # to rank 0, of which the one that was answered soonest counts
LEAD_S = 0.02  # from rank 0's decision to the start of the clock: the news must have come everywhere


class WorldClock:
    """One rank's knowledge of rank 0's clock.

    Args:
        clocks: of each rank, what it reads: equal names are one clock.

    Attributes:
        readings: at each comparison the own time, what must be added to it, and how wrong that may be, in seconds.
    """

    def __init__(self, store: WorldStore, rank: int, clocks: Sequence[str]) -> None:
        self._store, self._rank = store, rank
        own, *foreign = together(clocks)
        self._askers = [ranks[0] for ranks in foreign]
        self._asker = next((ranks[0] for ranks in foreign if rank in ranks), None)
        assert 0 in own
        self.readings: list[tuple[float, float, float]] = []

    def compare(self) -> None:
        """Compare with rank 0's; all ranks do so together."""
        number = len(self.readings)
        if self._rank == 0:
            for other in self._askers:
                self._answer(f"clock {other} {number}")
        if self._rank == self._asker:
            self._store.put(f"clock {self._rank} {number}", self._ask(f"clock {self._rank} {number}"))
        asker = self._asker
        reading = (time.perf_counter(), 0.0, 0.0) if asker is None else self._store.get(f"clock {asker} {number}")
        self.readings.append(reading)

    def start_s(self) -> float:
        """When the run starts, in own time; rank 0 decides."""
        if self._rank == 0:
            self._store.put("start", time.perf_counter() + LEAD_S)
        return float(self._store.get("start")) - self.readings[-1][1]

    def of_rank_0(self, own_s: np.ndarray) -> np.ndarray:
        """Own times on rank 0's clock."""
        at_s, offset_s, _ = np.array(self.readings).T
        return own_s + np.interp(own_s, at_s, offset_s)

    def moved(self, ledger: Ledger) -> Ledger:
        """What a worker noted, on rank 0's clock."""
        if self._asker is None:
            return ledger
        return replace(
            ledger,
            finish_s=float(self.of_rank_0(np.array(ledger.finish_s))),
            pauses=[
                (float(begin), float(end)) for begin, end in self.of_rank_0(np.array(ledger.pauses).reshape(-1, 2))
            ],
            collectives={name: self.of_rank_0(table) for name, table in ledger.collectives.items()},
            messages=self.of_rank_0(ledger.messages),
            waits=self.of_rank_0(ledger.waits),
        )

    def facts(self) -> dict[str, Any]:
        """For the manifest: of every clock but rank 0's what was read before and after the run. On rank 0."""
        names = ("at_s", "offset_s", "wrong_by_at_most_s")
        return {
            "clocks": [
                {"rank": asker, **dict(zip(names, self._store.get(f"clock {asker} {number}"), strict=True))}
                for asker in self._askers
                for number in range(len(self.readings))
            ]
        }

    def _ask(self, key: str) -> tuple[float, float, float]:
        answers = []
        for question in range(QUESTIONS):
            asked_s = time.perf_counter()
            self._store.put(f"{key}/{question}", None)
            self._store.wait(f"{key}/{question}/answer")
            heard_s = time.perf_counter()
            answer_s = self._store.get(f"{key}/{question}/answer")
            answers.append(((heard_s - asked_s) / 2, (asked_s + heard_s) / 2, answer_s))
        wrong_s, own_s, answer_s = min(answers)
        return own_s, answer_s - own_s, wrong_s

    def _answer(self, key: str) -> None:
        for question in range(QUESTIONS):
            self._store.wait(f"{key}/{question}")
            self._store.put(f"{key}/{question}/answer", time.perf_counter())
