"""What a worker does around its reads and writes under locks, compiled; see `harness.kernels.access`."""

import numpy as np
from numba import njit

from harness.kernels.access import (
    COORDINATES,
    GLOBAL_MUTEX,
    GLOBAL_SPIN,
    MUTEX,
    PER_COORDINATE,
    ROUND_ROBIN,
    SERVING,
    SPIN,
    TICKET,
)
from harness.kernels.native import (
    INLINE,
    atomic_add,
    compare_and_swap,
    load_acquire,
    lock_mutex,
    store_release,
    unlock_mutex,
    wait_a_little,
)


@njit(nogil=True)
def _lock(words: np.ndarray, word: int) -> None:
    turn = 0
    while not compare_and_swap(words, word, 0, 1):
        while load_acquire(words, word) != 0:
            wait_a_little(turn)
            turn += 1


@njit(**INLINE)
def begin(locking: int, words: np.ndarray) -> int:
    """Before a gradient is computed. Returns a ticket for `before_write`."""
    if locking == GLOBAL_SPIN:
        _lock(words, SPIN)
    elif locking == GLOBAL_MUTEX:
        lock_mutex(words.ctypes.data + 4 * MUTEX)
    elif locking == ROUND_ROBIN:
        return np.int64(atomic_add(words, TICKET, 1))
    return np.int64(0)


@njit(**INLINE)
def before_write(locking: int, words: np.ndarray, ticket: int, coordinates: np.ndarray) -> None:
    """Between gradient and writes.

    Args:
        coordinates: that will be written, ascending, so that no two workers wait for each other.
    """
    if locking == PER_COORDINATE:
        for coordinate in coordinates:
            _lock(words, COORDINATES + np.int64(coordinate))
    elif locking == ROUND_ROBIN:
        turn = 0
        while load_acquire(words, SERVING) != ticket:
            wait_a_little(turn)
            turn += 1


@njit(**INLINE)
def end(locking: int, words: np.ndarray, ticket: int, coordinates: np.ndarray) -> None:
    """After the writes."""
    if locking == GLOBAL_SPIN:
        store_release(words, SPIN, 0)
    elif locking == GLOBAL_MUTEX:
        unlock_mutex(words.ctypes.data + 4 * MUTEX)
    elif locking == PER_COORDINATE:
        for coordinate in coordinates:
            store_release(words, COORDINATES + np.int64(coordinate), 0)
    elif locking == ROUND_ROBIN:
        store_release(words, SERVING, np.int32(ticket + 1))
