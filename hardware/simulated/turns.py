"""Taking turns in virtual time: all ranks meet, or one of them holds a lock. Neither goes over the network."""

import heapq
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import count

from hardware.simulated.activity import Aborted, Activity, Died, Signal
from hardware.simulated.engine import POLL_S, Engine

FREE_TAKES = 100  # of locks by one activity at one instant; who takes more waits for something, and its waiting costs


class Meeting:
    """Where all workers of a run meet, again and again; it costs them nothing but to wait for the last one."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._here: list[int] = []
        self._all_here = Signal()

    def meet(self, rank: int, num_workers: int) -> None:
        """Wait until all workers have come, the first ranks."""
        self._engine.sync()
        here, all_here = self._here, self._all_here
        here.append(rank)
        if len(here) == num_workers:
            self._here, self._all_here = [], Signal()
            self._engine.happen(all_here)
        self._engine.wait(all_here, partial(self._missing, here, num_workers))

    def _missing(self, here: list[int], num_workers: int) -> str:
        return f"all to meet: ranks {sorted(set(range(num_workers)) - set(here))} have not come"


@dataclass
class _Lock:
    """A lock.

    Args:
        holder: the rank that holds it.
        last: the rank that held it last, whose cache has it.
        queue: those that wait, a heap: since when, rank, sequence, what happens when it is theirs.
    """

    holder: int | None = None
    last: int | None = None
    queue: list[tuple[float, int, int, Signal]] = field(default_factory=list)


class Locks:
    """The locks of a run: whoever came first is next, of those that came together the lowest rank.

    Args:
        transfer_s: seconds it takes a rank to get what another one has written.
    """

    def __init__(self, engine: Engine, transfer_s: Callable[[int, int], float]) -> None:
        self._engine, self._transfer_s = engine, transfer_s
        self._locks: dict[str, _Lock] = {}
        self._takes: dict[Activity, tuple[float, int]] = {}  # when it last took one, how often while no time passed
        self._sequence = count()

    @contextmanager
    def held(self, name: str, rank: int, charge: Callable[[float], None]) -> Iterator[None]:
        """A block in which the current activity, of `rank`, holds a lock.

        Args:
            charge: spends seconds of the rank.
        """
        lock = self._locks.setdefault(name, _Lock())
        self._poll()
        self._acquire(lock, name, rank)
        if lock.last not in (None, rank):
            charge(self._transfer_s(rank, lock.last))
        lock.last = rank
        try:
            yield
        except (Aborted, Died):
            raise  # the dead give nothing back
        except BaseException:
            self._release(lock)
            raise
        self._release(lock)

    def _poll(self) -> None:
        """Let time pass for a loop that takes locks and computes nothing, so that what it waits for can come."""
        activity = self._engine.current
        last_s, takes = self._takes.get(activity, (0.0, 0))
        takes = takes + 1 if activity.now() == last_s else 1
        if takes > FREE_TAKES:
            activity.charge(POLL_S)
        self._takes[activity] = activity.local_s, takes

    def _acquire(self, lock: _Lock, name: str, rank: int) -> None:
        self._engine.sync()
        if lock.holder is None:
            lock.holder = rank
            return
        entry = self._engine.current.local_s, rank, next(self._sequence), Signal()
        heapq.heappush(lock.queue, entry)
        try:
            self._engine.wait(entry[-1], lambda: f"lock {name!r}, which rank {lock.holder} holds")
        except Died:
            if entry in lock.queue:
                lock.queue.remove(entry)
                heapq.heapify(lock.queue)
            raise

    def _release(self, lock: _Lock) -> None:
        self._engine.sync()
        lock.holder = None
        if lock.queue:
            _, lock.holder, _, granted = heapq.heappop(lock.queue)
            self._engine.happen(granted)
