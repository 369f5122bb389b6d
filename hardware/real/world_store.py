"""What the ranks of a world tell each other beside `torch.distributed`: a TCPStore that all can reach.

It is torchrun's own where torchrun started them, else rank 0 opens it. Counters, locks, meetings and messages go
through it; each costs a round trip over the network, and none is between ranks in an algorithm's collectives.
"""

import pickle
import struct
import threading
import time
from datetime import timedelta
from functools import cache
from typing import Any

import torch.distributed as dist

from hardware.real.world import World
from harness.errors import WorkerFailed

CHUNK_BYTES = 4 * 2**20  # the store takes 8 MiB at once
JOIN_S = 600.0  # until rank 0 has opened the store
FOREVER_S = 1e6
UPDATE_BITS = 30  # of the counter that has samples above updates, so that both are counted at once
FIRST_WAIT_S, LONGEST_WAIT_S = 2e-4, 2e-2  # between two looks at a lock that somebody else holds


class WorldStore:
    """One process's connection to the store; any of its threads may use it.

    Args:
        store: torch's own; a thread that waits keeps others from using the same connection, so each has one of its own.
    """

    def __init__(self, store: dist.Store) -> None:
        self._store: Any = store  # torch's stubs know neither `clone` nor bytes
        self._own = threading.local()

    def group(self, name: str) -> dist.Store:
        """A connection for a process group."""
        return dist.PrefixStore(name, self._store.clone())

    def add(self, key: str, amount: int) -> int:
        """Atomically add to a number; returns its value after."""
        return self._mine.add(key, amount)

    def has(self, key: str) -> bool:
        """Whether somebody has put it there."""
        return self._mine.check([key])

    def put(self, key: str, value: object) -> None:
        """Put anything there that can be pickled."""
        content = pickle.dumps(value)
        chunks = [content[at : at + CHUNK_BYTES] for at in range(0, len(content), CHUNK_BYTES)]
        for number, chunk in enumerate(chunks[1:], start=1):
            self._mine.set(f"{key}/{number}", chunk)
        self._mine.set(key, struct.pack("q", len(chunks)) + chunks[0])

    def get(self, key: str, timeout_s: float = FOREVER_S) -> Any:
        """What somebody has put there, or will.

        Raises:
            TimeoutError: if it takes longer.
        """
        self.wait(key, timeout_s)
        first = self._mine.get(key)
        (count,) = struct.unpack_from("q", first)
        return pickle.loads(first[8:] + b"".join(self._mine.get(f"{key}/{number}") for number in range(1, count)))

    def wait(self, key: str, timeout_s: float = FOREVER_S) -> None:
        """Wait until it is there.

        Raises:
            TimeoutError: if it takes longer.
        """
        try:
            self._mine.wait([key], timedelta(seconds=timeout_s))
        except dist.DistStoreError as error:
            raise TimeoutError(key) from error

    def swap(self, key: str, expected: str, desired: str) -> bool:
        """Put a word there if the expected one is, "" for none; returns whether it is there now."""
        return self._mine.compare_set(key, expected, desired).decode() == desired

    @property
    def _mine(self) -> Any:
        if not hasattr(self._own, "store"):
            self._own.store = self._store.clone()
        return self._own.store


@cache
def store_of(world: World) -> WorldStore:
    """The store of a world, connected once in a process: the one that rank 0 has opened lives until the process ends.

    Raises:
        WorkerFailed: if it cannot be opened, or is not there for long.
    """
    try:
        store = dist.TCPStore(
            world.address,
            world.port,
            world.size,
            is_master=world.hosts_store,
            timeout=timedelta(seconds=JOIN_S),
            wait_for_workers=False,
        )
    except dist.DistError as error:
        reason = (str(error).splitlines() or [""])[0]
        where = f"{world.address}:{world.port} (MASTER_ADDR, MASTER_PORT)"
        raise WorkerFailed(f"rank {world.rank} cannot meet the others at {where}: {reason}") from error
    return WorldStore(dist.PrefixStore(f"twinclock {world.attempt}", store))


class StoreCounters:
    """The counters of a run, see `hardware.real.counters.Counters`."""

    def __init__(self, store: WorldStore) -> None:
        self._store = store

    def add(self, counter: str, amount: int) -> int:
        """Add; returns the value before."""
        if counter in ("samples", "updates"):
            return self.count(*((amount, 0) if counter == "samples" else (0, amount)))[int(counter == "updates")]
        return self._store.add(f"counter {counter}", amount) - amount

    def count(self, samples: int, updates: int, alone: bool = False) -> tuple[int, int]:
        """Add to both; returns the values before, whether or not anybody else counts."""
        amount = (samples << UPDATE_BITS) + updates
        before = self._store.add("counters", amount) - amount
        return before >> UPDATE_BITS, before & ((1 << UPDATE_BITS) - 1)

    def value(self, counter: str) -> int:
        """The value now."""
        return self.add(counter, 0)


class StoreLocks:
    """The locks of a run, see `hardware.real.locks.Locks`. Who is killed while holding one gives none back.

    Args:
        rank: of the process.
        timeout_s: how long to wait.
    """

    def __init__(self, store: WorldStore, rank: int, timeout_s: float) -> None:
        self._store, self._rank, self._timeout_s = store, rank, timeout_s

    def try_acquire(self, name: str) -> bool:
        """Take it if nobody holds it; returns whether."""
        return self._store.swap(f"lock {name}", "", self._me)

    def acquire(self, name: str, who: str) -> None:
        """Wait for it, and take it.

        Raises:
            WorkerFailed: if that takes too long.
        """
        deadline_s, wait_s = time.perf_counter() + self._timeout_s, FIRST_WAIT_S
        while not self.try_acquire(name):
            if time.perf_counter() > deadline_s:
                limit = f"hardware.timeout_s={self._timeout_s:g}"
                raise WorkerFailed(f"{who} waited for lock {name!r} for more than {limit}")
            time.sleep(wait_s)
            wait_s = min(2 * wait_s, LONGEST_WAIT_S)

    def release(self, name: str) -> None:
        """Give it back."""
        self._store.swap(f"lock {name}", self._me, "")

    @property
    def _me(self) -> str:
        return f"rank {self._rank}, thread {threading.get_ident()}"
