"""How the updates of many workers get to one model.

    none            Hogwild! (Niu, Recht, Re, Wright, NIPS 2011, Algorithm 1): nobody asks, updates may be lost
    atomic          every addition to a coordinate is one indivisible step: nothing is lost
    global_spin     one lock around the whole update, for which workers spin (they give up their core after a while)
    global_mutex    the same with a mutex of the C library, for which workers sleep
    per_coordinate  a spin lock per coordinate, held around the writes of an update: the paper's AIG (section 7)
    round_robin     gradients are computed at once, written in the order in which they were begun: the paper's RR

Locks are 32-bit words in memory that all workers share.
"""

import ctypes
from dataclasses import dataclass, field

import torch

from harness.errors import require

NONE, ATOMIC, GLOBAL_SPIN, GLOBAL_MUTEX, PER_COORDINATE, ROUND_ROBIN = range(6)
LOCKING = ("none", "atomic", "global_spin", "global_mutex", "per_coordinate", "round_robin")

SPIN, TICKET, SERVING, MUTEX, COORDINATES = 0, 16, 32, 48, 64  # words; each on a cache line of its own
_PROCESS_SHARED = 1  # PTHREAD_PROCESS_SHARED
_libc = ctypes.CDLL(None)


@dataclass(frozen=True)
class Access:
    """How a worker's updates get to the model.

    Args:
        locking: one of `LOCKING`.
        words: from `lock_words`, shared by all workers; empty without locks.
        quantum: what one step of an int8 model is worth; 0 for other models.
        delay_s: by which every gradient is artificially delayed, as in section 7 of the paper.
    """

    locking: str = "none"
    words: torch.Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int32), compare=False)
    quantum: float = 0.0
    delay_s: float = 0.0

    def agrees(self, other: "Access") -> bool:
        """Whether it is the same way, with the same locks."""
        return self == other and self.words.data_ptr() == other.words.data_ptr()

    @property
    def code(self) -> int:
        """Of the locking, for compiled code."""
        return LOCKING.index(self.locking)


def check_locking(locking: str) -> None:
    """Refuse what is none of `LOCKING`.

    Raises:
        UserError: naming algorithm.locking.
    """
    require(locking in LOCKING, "algorithm.locking", f"must be one of {', '.join(LOCKING)}", locking)


def lock_words(locking: str, num_coordinates: int) -> torch.Tensor:
    """Open locks, int32, shape (words,): to be shared by all workers."""
    if locking in ("none", "atomic"):
        return torch.empty(0, dtype=torch.int32)
    return torch.zeros(COORDINATES + (num_coordinates if locking == "per_coordinate" else 0), dtype=torch.int32)


def open_mutex(words: torch.Tensor) -> None:
    """Make the mutex one that processes can share. Before anybody uses it."""
    attributes = ctypes.create_string_buffer(64)
    _libc.pthread_mutexattr_init(attributes)
    _libc.pthread_mutexattr_setpshared(attributes, _PROCESS_SHARED)
    _libc.pthread_mutex_init(ctypes.c_void_p(words.data_ptr() + 4 * MUTEX), attributes)
