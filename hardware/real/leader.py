"""What rank 0 of a world does while all ranks work: it listens, and tells the others how the run ended."""

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist

from hardware.base import Execution
from hardware.real.breakdown import shares_of
from hardware.real.card import Card, own_card
from hardware.real.conclusion import conclude
from hardware.real.counters import processed
from hardware.real.crew import Crew
from hardware.real.member import BEAT_S, Job, StoreLine, work
from hardware.real.messages import Failed, Finished, Measured, Message
from hardware.real.world import World
from hardware.real.world_store import StoreCounters, WorldStore, store_of
from harness.errors import LostConnection, TwinclockError, UserError, WorkerFailed
from harness.measures import so_far
from harness.place import Observation
from harness.program import Program

LOOK_S = 0.25  # between two looks at how far all are
SETTLE_S = 1.0  # after a first failure, to see whether it was only the consequence of another
FAREWELL_S = 3.0  # for the others to hear how the run ended
ARRIVAL_S = 60.0  # for those that have yet to come to a store which ends with us


def cards_of(world: World, timeout_s: float) -> list[Card]:
    """All ranks' cards, once all are there.

    Raises:
        UserError: if some do not come.
    """
    store, deadline_s = store_of(world), time.monotonic() + timeout_s
    store.put("card 0", own_card(world))
    missing = list(range(world.size))
    while (missing := [rank for rank in missing if not store.has(f"card {rank}")]) and time.monotonic() < deadline_s:
        time.sleep(0.02)
    if missing:
        raise UserError(
            f"{world.size - len(missing)} of the {world.size} ranks that {world.launcher} promised have come within "
            f"hardware.timeout_s={timeout_s:g} (the first that has not: {missing[0]}): see what it printed on its host"
        )
    cards = [store.get(f"card {rank}") for rank in range(world.size)]
    for rank, card in enumerate(cards):
        if isinstance(card, TwinclockError):
            raise UserError(f"rank {rank}: {card}")
    return cards


def lead(
    world: World, crew: Crew, cards: Sequence[Card], program: Program, progress: Callable[[int], None]
) -> Execution:
    """Run a program on all ranks of the world, of which this process is the first; see `Hardware.execute`."""
    return _Leader(store_of(world), crew, cards, program).run(progress)


class _Leader:
    def __init__(self, store: WorldStore, crew: Crew, cards: Sequence[Card], program: Program) -> None:
        self._store, self._cards, self._num_ranks = store, cards, crew.num_workers
        self._job = Job.of(crew, program, [card.clock for card in cards])
        self._line = StoreLine(store, 0, self._job)
        self._program = program
        self._failures: list[Failed] = []
        self._timeout_s = crew.timeout_s
        self._beats: dict[int, tuple[int, float]] = {}  # of each rank, and since when it is so many
        self._watched_s = 0.0

    def run(self, progress: Callable[[int], None]) -> Execution:
        """Until all have finished or one has failed."""
        threads, counters = torch.get_num_threads(), StoreCounters(self._store)
        arguments = self._job, 0, self._line, self._store, self._program
        thread = threading.Thread(target=work, args=arguments, name="rank 0", daemon=True)
        try:
            self._store.put("job", self._job)
            thread.start()
            while thread.is_alive() and not self._failed():
                thread.join(LOOK_S)
                progress(processed(counters))
                self._watch()
            self._settle()
        except KeyboardInterrupt as interrupt:
            self._failures.append(Failed(interrupt, time.perf_counter()))  # torchrun's own after a death comes second
        except WorkerFailed as failure:
            self._failures.append(Failed(failure, float("-inf")))
        except dist.DistError as error:
            self._failures.append(Failed(WorkerFailed(f"the store of the world is gone: {error}"), float("inf")))
        torch.set_num_threads(threads)
        return self._execution()

    def _failed(self) -> bool:
        return self._store.add("failures", 0) > 0

    def _watch(self) -> None:
        """Notice who gives no sign of life: where no launcher ends the world, a killed rank would be waited for."""
        now_s = time.monotonic()
        if now_s < self._watched_s + BEAT_S:
            return
        self._watched_s = now_s
        for rank in range(1, self._num_ranks):
            beats = self._store.add(f"alive {rank}", 0)
            known, since_s = self._beats.setdefault(rank, (beats, now_s))
            if beats != known:
                self._beats[rank] = beats, now_s
            elif now_s > since_s + self._timeout_s:
                who = f"{self._job.names[rank]} on host {self._cards[rank].host} (pid {self._cards[rank].pid})"
                limit = f"hardware.timeout_s={self._timeout_s:g}"
                raise WorkerFailed(f"{who} has given no sign of life for {limit}: see what it printed there")

    def _settle(self) -> None:
        """Once somebody has failed, hear what others say of it."""
        settled_s = time.monotonic() + SETTLE_S
        while self._failed() and time.monotonic() < settled_s:
            time.sleep(0.02)

    def _execution(self) -> Execution:
        said = [self._line.said, *(self._said(rank) for rank in range(1, self._num_ranks))]
        observations = [seen for rank in said for seen in _observations(rank)]
        observations.sort(key=lambda observation: observation.samples)
        failures = [*self._failures, *(each for rank in said for each in rank if isinstance(each, Failed))]
        execution = Execution(observations=observations)
        if failures:
            execution.failure = self._explained(min(failures, key=lambda failed: failed.host_s).error)
            measured = [[each.measures for each in rank if isinstance(each, Measured)] for rank in said]
            execution.told(so_far([each[-1] for each in measured if each]))
            return execution
        finished = [each for rank in said for each in rank if isinstance(each, Finished)]
        assert len(finished) == self._num_ranks
        conclude(execution, finished, float(self._store.get("start")), shares_of(self._program, self._num_ranks))
        execution.facts |= self._line.clock.facts()
        return execution

    def _said(self, rank: int) -> list:
        """What a rank has said, as far as it got with it."""
        try:
            keys = (f"said {rank}/{number}" for number in range(self._store.add(f"claimed {rank}", 0)))
            return [self._store.get(key) for key in keys if self._store.has(key)]
        except dist.DistError:
            return []

    def _explained(self, error: BaseException) -> BaseException:
        """A connection that was lost is explained by who is no longer there, as far as this host can tell."""
        if not isinstance(error, LostConnection):
            return error
        here = [(rank, card) for rank, card in enumerate(self._cards) if card.machine == self._cards[0].machine]
        gone = [f"{self._job.names[rank]} (pid {card.pid})" for rank, card in here if _is_gone(card)]
        who = gone[0] if gone else "a worker on another host"
        return WorkerFailed(f"{who} was killed, or ended in mid-run: see what its launcher says", error.details)


def _is_gone(card: Card) -> bool:
    try:
        state = Path(f"/proc/{card.pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state in "ZX"  # dead, and not yet fetched by its parent


def dismiss(world: World, status: int) -> None:
    """Tell the other ranks the exit status of all, and wait until they have heard it."""
    if world.size == 1:
        return
    with suppress(WorkerFailed, dist.DistError):  # there is no store, as has been said
        store, begin_s = store_of(world), time.monotonic()
        store.put("end", status)
        while store.add("left", 0) < world.size - 1:
            late = world.hosts_store and not all(store.has(f"card {rank}") for rank in range(1, world.size))
            if time.monotonic() > begin_s + (ARRIVAL_S if late else FAREWELL_S):
                break
            time.sleep(0.02)


def _observations(said: Sequence[Message]) -> list[Observation]:
    """Those of one rank, whose host times are known better once it has finished."""
    seen = [each for each in said if isinstance(each, Observation)]
    observed_s = [time_s for each in said if isinstance(each, Finished) for time_s in each.observed_s]
    return [replace(each, host_s=host_s) for each, host_s in zip(seen, observed_s, strict=True)] if observed_s else seen
