"""Shared memory: what it costs that other cores write the model too.

What a cache line costs that several cores write: hardware/simulated/cache_lines.py. What locks cost: memory_locks.py
there. In which order updates read and land: memory_loop.py. Neither the interconnect nor a line's home is ever
congested.

Rows of native kernels are streamed from memory. Those on the core's own socket are part of what a kernel costs
(hardware.compute); of those on another socket every byte takes 1 / remote - 1 / local bandwidth longer. Rows visited as
they are stored come sooner than others: `sequential_rows` is the factor of what a nonzero costs then.

What names no node lies where `memory_policy` says: page by page on all sockets (interleave), on one (bind:<socket>), or
on that of rank 0, which touches it first.

Rank r sits on socket r mod sockets ("spread"), or on socket r div cores_per_socket ("fill").
"""

from dataclasses import dataclass, fields

import numpy as np

from hardware.base import check_memory_policy, check_pin_policy
from harness.errors import require

MAX_WORKERS = 64  # sharers of a line are bits of one word
PAGE_BYTES = 4096


@dataclass(frozen=True)
class SharedMemory:
    """A machine of sockets with coherent caches.

    Args:
        sockets: >= 1.
        cores_per_socket: >= 1.
        line_bytes: of a cache line, a power of two >= 8.
        cache_bytes: that a core caches for itself, >= `line_bytes`.
        same_socket_s: a line from the cache of another core of the socket.
        cross_socket_s: a line from a cache of another socket.
        shared_cache_s: a line that its last writer's cache has forgotten, from the cache that a socket's cores share.
        local_memory_s: a line from the memory of the core's own socket.
        remote_memory_s: a line from the memory of another socket, >= `local_memory_s`.
        outstanding_misses: misses of one core under way together, >= 1.
        outstanding_clashes: lines lost between the read and the write of an update that come back together, >= 1.
        outstanding_atomics: the same of atomic operations, >= 1.
        migrates: whether a line that another core has written comes to its reader as the reader's own.
        atomic_s: an atomic operation on a line at hand.
        lock_s: by which a lock that nobody else wants makes an update longer, taken and given back.
        spin_s: for which who waits for a spin lock looks all the time.
        yield_s: between its looks from then on, when it gives its core to others.
        wake_s: what it costs to wake who sleeps on a mutex.
        sleep_s: from then until the sleeper runs again.
        doze_s: from finding a mutex held until asleep.
        futex_s: a call of the system for a mutex if nobody sleeps: to let go of it, and to look again.
        pin_policy: spread (ranks round robin over the sockets) or fill (all cores of one socket before the next's).
        memory_policy: where lies what names no node: first_touch, interleave or bind:<socket>.
        local_bytes_per_s: one core's bandwidth from the memory of its own socket, > 0.
        remote_bytes_per_s: from the memory of another socket, > 0, at most `local_bytes_per_s`.
        sequential_rows: cost of a nonzero whose row is stored behind the last one visited / of another, in (0, 1].
    """

    sockets: int
    cores_per_socket: int
    line_bytes: int
    cache_bytes: int
    same_socket_s: float
    cross_socket_s: float
    shared_cache_s: float
    local_memory_s: float
    remote_memory_s: float
    outstanding_misses: float
    outstanding_clashes: float
    outstanding_atomics: float
    migrates: bool
    atomic_s: float
    lock_s: float
    spin_s: float
    yield_s: float
    wake_s: float
    sleep_s: float
    doze_s: float
    futex_s: float
    pin_policy: str
    memory_policy: str
    local_bytes_per_s: float
    remote_bytes_per_s: float
    sequential_rows: float

    def __post_init__(self) -> None:
        counts = ("sockets", "cores_per_socket", "outstanding_misses", "outstanding_clashes", "outstanding_atomics")
        for name in counts:
            require(getattr(self, name) >= 1, f"hardware.memory.{name}", "must be >= 1", getattr(self, name))
        line = self.line_bytes
        require(line >= 8 and line & (line - 1) == 0, "hardware.memory.line_bytes", "must be a power of two >= 8", line)
        rule = f"must be >= hardware.memory.line_bytes={line}"
        require(self.cache_bytes >= line, "hardware.memory.cache_bytes", rule, self.cache_bytes)
        times = [field.name for field in fields(self) if field.name.endswith("_s") and "_per_" not in field.name]
        for name in times:
            require(getattr(self, name) >= 0, f"hardware.memory.{name}", "must be >= 0", getattr(self, name))
        check_pin_policy("hardware.memory.pin_policy", self.pin_policy)
        check_memory_policy("hardware.memory.memory_policy", self.memory_policy, range(self.sockets), "socket")
        rule, remote_s = f"must be >= hardware.memory.local_memory_s={self.local_memory_s:g}", self.remote_memory_s
        require(remote_s >= self.local_memory_s, "hardware.memory.remote_memory_s", rule, remote_s)
        local, remote = self.local_bytes_per_s, self.remote_bytes_per_s
        require(local > 0, "hardware.memory.local_bytes_per_s", "must be > 0", local)
        rule = f"must be > 0 and <= hardware.memory.local_bytes_per_s={local:g}"
        require(0 < remote <= local, "hardware.memory.remote_bytes_per_s", rule, remote)
        factor = self.sequential_rows
        require(0 < factor <= 1, "hardware.memory.sequential_rows", "must be in (0, 1]", factor)

    @property
    def cores(self) -> int:
        """Cores of the machine."""
        return self.sockets * self.cores_per_socket

    def check(self, num_workers: int) -> None:
        """Refuse more workers than there are cores.

        Raises:
            UserError: naming both.
        """
        rule = (
            f"must be <= {self.cores}, the cores of hardware.memory (sockets={self.sockets} x cores_per_socket="
            f"{self.cores_per_socket})"
        )
        require(num_workers <= self.cores, "hardware.num_workers", rule, num_workers)
        rule = f"must be <= {MAX_WORKERS} with hardware.memory, which keeps a line's sharers in one word"
        require(num_workers <= MAX_WORKERS, "hardware.num_workers", rule, num_workers)

    def socket(self, rank: int) -> int:
        """The socket of a rank's core."""
        return rank % self.sockets if self.pin_policy == "spread" else rank // self.cores_per_socket

    def num_sockets(self, num_ranks: int) -> int:
        """Sockets that hold at least one of the ranks: the first ones."""
        return 1 + max(self.socket(rank) for rank in range(num_ranks))

    def remote_ranks(self, rank: int, num_ranks: int) -> int:
        """A bit for every rank on another socket than `rank`'s."""
        return sum(1 << other for other in range(num_ranks) if self.socket(other) != self.socket(rank))

    def fetch_s(self, reader: int, owner: int) -> float:
        """Seconds to read a line that rank `owner` wrote last."""
        return self.same_socket_s if self.socket(reader) == self.socket(owner) else self.cross_socket_s

    def load_s(self, reader: int, home: int) -> float:
        """Seconds to read a line that nobody has written, of a model whose memory is on socket `home`."""
        return self.local_memory_s if self.socket(reader) == home else self.remote_memory_s

    def forgotten_s(self, reader: int, owner: int) -> float:
        """Seconds to read a line that rank `owner` wrote last and its cache has forgotten."""
        return self.shared_cache_s if self.socket(reader) == self.socket(owner) else self.cross_socket_s

    @property
    def home(self) -> int | None:
        """The socket in whose memory lies what names no node; None if it is interleaved."""
        if self.memory_policy == "interleave":
            return None
        return int(self.memory_policy.partition(":")[2] or self.socket(0))

    def homes(self, num_lines: int, node: int | None) -> np.ndarray:
        """The socket of each line of a tensor that begins on a page, shape (num_lines,).

        Args:
            node: in whose memory it lies; None for what names no node.
        """
        home = self.home if node is None else node
        if home is not None:
            return np.full(num_lines, home)
        return np.arange(num_lines) * self.line_bytes // PAGE_BYTES % self.sockets

    def remote_s_per_byte(self, rank: int, node: int | None) -> float:
        """By which a byte of a row takes longer than from the memory of the rank's own socket.

        Args:
            node: in whose memory rows lie; None for those that name no node.
        """
        home = self.home if node is None else node
        own = self.socket(rank)
        remote_share = (self.sockets - 1) / self.sockets if home is None else float(home != own)
        return remote_share * (1 / self.remote_bytes_per_s - 1 / self.local_bytes_per_s)
