"""Shared memory: what it costs that other cores write the model too.

Each cache line of a shared model has an owner, the core that wrote it last, and sharers, the cores that hold a copy.

    read    a line not held comes from its owner's cache (same socket or across), or from memory if nobody wrote it
    write   copies on other cores are invalidated first; a line held alone is written at no cost
    else    a hit, whose cost is inside `Roofline.nonzero_s`, or that of the torch operator

Misses of one sample, or of one torch operator, overlap: n of them take max(dearest, sum / outstanding_misses). Caches
are taken to be large enough for the model, the memory of a model is on the first socket, where rank 0 touched it first,
and neither the interconnect nor a line's home is ever congested.

Ranks sit on cores round robin over the sockets ("spread"): rank r on socket r mod sockets.
"""

from dataclasses import dataclass, fields

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

    def __post_init__(self) -> None:
        for name in ("sockets", "cores_per_socket", "outstanding_misses"):
            require(getattr(self, name) >= 1, f"hardware.memory.{name}", "must be >= 1", getattr(self, name))
        line = self.line_bytes
        require(line >= 8 and line & (line - 1) == 0, "hardware.memory.line_bytes", "must be a power of two >= 8", line)
        for name in (field.name for field in fields(self) if field.name.endswith("_s")):
            require(getattr(self, name) >= 0, f"hardware.memory.{name}", "must be >= 0", getattr(self, name))

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
        return rank % self.sockets

    def remote_ranks(self, rank: int, num_ranks: int) -> int:
        """A bit for every rank on another socket than `rank`'s."""
        return sum(1 << other for other in range(num_ranks) if self.socket(other) != self.socket(rank))

    def fetch_s(self, reader: int, owner: int) -> float:
        """Seconds to read a line that rank `owner` wrote last."""
        return self.same_socket_s if self.socket(reader) == self.socket(owner) else self.cross_socket_s

    def load_s(self, reader: int) -> float:
        """Seconds to read a line of a model that nobody has written."""
        return self.local_memory_s if self.socket(reader) == 0 else self.remote_memory_s
