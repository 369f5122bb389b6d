"""Shared memory: what it costs that other cores write the model too.

Each cache line of a shared model has an owner, the core that wrote it last, and sharers, the cores that hold a copy.

    read    a line not held comes from its owner's cache (same socket or across), or from memory if nobody wrote it
    write   copies on other cores are invalidated first; a line held alone is written at no cost
    else    a hit, whose cost is inside `Roofline.nonzero_s`, or that of the torch operator

Misses of one sample, or of one torch operator, overlap: n of them take max(dearest, sum / outstanding_misses). Caches
are taken to be large enough for the model, the memory of a model is on its home socket, and neither the interconnect
nor a line's home is ever congested.

Rank r sits on socket r mod sockets ("spread"), or on socket r div cores_per_socket ("fill").
"""

from dataclasses import dataclass, fields

from hardware.base import check_pin_policy
from harness.errors import require

MAX_WORKERS = 64  # sharers of a line are bits of one word


@dataclass(frozen=True)
class SharedMemory:
    """A machine of sockets with coherent caches.

    Args:
        sockets: >= 1.
        cores_per_socket: >= 1.
        line_bytes: of a cache line, a power of two >= 8.
        same_socket_s: a line from the cache of another core of the socket.
        cross_socket_s: a line from a cache of another socket.
        local_memory_s: a line from the memory of the core's own socket.
        remote_memory_s: a line from the memory of another socket.
        outstanding_misses: misses of one core under way together, >= 1.
        atomic_s: an atomic operation on a line at hand.
        wake_s: what it costs to wake who sleeps on a mutex.
        sleep_s: from being woken on a mutex to running again.
        pin_policy: spread (ranks round robin over the sockets) or fill (all cores of one socket before the next's).
    """

    sockets: int
    cores_per_socket: int
    line_bytes: int
    same_socket_s: float
    cross_socket_s: float
    local_memory_s: float
    remote_memory_s: float
    outstanding_misses: float
    atomic_s: float
    wake_s: float
    sleep_s: float
    pin_policy: str

    def __post_init__(self) -> None:
        for name in ("sockets", "cores_per_socket", "outstanding_misses"):
            require(getattr(self, name) >= 1, f"hardware.memory.{name}", "must be >= 1", getattr(self, name))
        line = self.line_bytes
        require(line >= 8 and line & (line - 1) == 0, "hardware.memory.line_bytes", "must be a power of two >= 8", line)
        for name in (field.name for field in fields(self) if field.name.endswith("_s")):
            require(getattr(self, name) >= 0, f"hardware.memory.{name}", "must be >= 0", getattr(self, name))
        check_pin_policy("hardware.memory.pin_policy", self.pin_policy)

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
