"""Locks of simulated updates, compiled: who has them next, and what that costs.

spin lock     who waits looks all the time for `spin_s`, and has the lock as soon as it is let go (one of them, all as
              likely); from then on it looks every `yield_s`, as it gives its core to others in between, and mostly
              finds it taken: who let go asks again an atomic operation later, and claims the line others looked at
mutex         who finds it held is asleep some `doze_s` later; letting go wakes who has waited longest (`wake_s`), who
              looks again `sleep_s` later, or, if it is not asleep yet, has both call the system for nothing (`futex_s`,
              the one who waits from when it has found it held: it is often first)
per coord.    one after the other, ascending: whoever waits for one holds those before; an atomic operation each
round robin   writes in the order of tickets; the next one hears of it when the line has come
"""

from typing import NamedTuple

import numpy as np
from numba import njit

from hardware.simulated.cache_lines import add_atomically_s
from hardware.simulated.memory_records import BEGIN, NOBODY
from harness.kernels.access import ATOMIC, GLOBAL_MUTEX, GLOBAL_SPIN, PER_COORDINATE, ROUND_ROBIN
from harness.kernels.numbers import hashed

DOZE_SPREAD = 0.4  # of `doze_s`, up and down: in hand-overs of a mutex between two cores of a Xeon

LOCK = np.dtype([("held", np.int64), ("last", np.int64), ("tickets", np.int64), ("serving", np.int64)])


class Locks(NamedTuple):
    """What workers wait for.

    Args:
        state: one LOCK record, shape (1,).
        free_s: until when each coordinate's lock is held, inf if that is not known yet, shape (coordinates,).
        first_line: of the locks of coordinates, in `lines`.
        line_shift: log2 of the locks in a line.
    """

    locking: int
    state: np.ndarray
    free_s: np.ndarray
    first_line: np.uint64
    line_shift: np.uint64


@njit(nogil=True)
def _transfer_s(lines, rank, last):
    """For the line of a lock that `last` wrote."""
    return 0.0 if last in (rank, NOBODY) else lines.fetch_s[rank, last]


@njit(nogil=True)
def _end_wait(worker, until_s):
    """Count what it has waited, if it has."""
    if worker.since_s < np.inf:
        worker.waited_s += until_s - worker.since_s
        worker.since_s = np.inf


@njit(nogil=True)
def has_begun(workers, rank, lines, locks, costs):
    """Take the lock or a ticket and pay for it, or begin to wait; returns whether the update has begun."""
    worker, lock = workers[rank], locks.state[0]
    if locks.locking in (GLOBAL_SPIN, GLOBAL_MUTEX):
        if lock.held:
            worker.since_s, worker.looked_s = min(worker.since_s, worker.next_s), worker.next_s
            worker.next_s = np.inf
            return False
        lock.held = 1
        _end_wait(worker, worker.next_s)
        if locks.locking == GLOBAL_SPIN and lock.last == rank:
            worker.next_s += worker.pace * _claim_s(workers, rank, lines)
    elif locks.locking == ROUND_ROBIN:
        worker.ticket = lock.tickets
        lock.tickets += 1
    worker.next_s += worker.pace * (costs.lock_s + _transfer_s(lines, rank, lock.last))
    lock.last = rank
    return True


@njit(nogil=True)
def may_write(worker, lines, rank, touched, locks, costs):
    """Take the locks of coordinates, or see that it is this worker's turn; else it waits. Returns seconds or -1."""
    if locks.locking == ROUND_ROBIN and locks.state[0].serving != worker.ticket:
        worker.since_s, worker.next_s = worker.next_s, np.inf
        return -1.0
    if locks.locking != PER_COORDINATE:
        return 0.0
    _end_wait(worker, worker.next_s)
    while worker.taken < len(touched):
        j = np.uint32(touched[worker.taken])
        if locks.free_s[j] > worker.next_s:
            worker.since_s, worker.next_s = worker.next_s, locks.free_s[j]
            return -1.0
        locks.free_s[j] = np.inf
        worker.taken += 1
    one, now_s = np.uint64(1), worker.next_s
    stall_s = add_atomically_s(lines, locks.first_line, rank, touched, one, locks.line_shift, now_s)
    return stall_s + costs.atomic_s * len(touched)  # to take them; to let go is a store


@njit(nogil=True)
def has_ended(workers, rank, row, lines, locks, costs, update):
    """Give up what the update holds.

    Args:
        update: its number, of which the next holder of a spin lock is drawn.
    """
    if locks.locking == PER_COORDINATE:
        _let_go_of_coordinates(workers, rank, row, locks)
        return
    _let_go(workers, rank, lines, locks, costs, update)


@njit(nogil=True)
def _let_go_of_coordinates(workers, rank, touched, locks):
    """Give up the locks of coordinates when the update ends, and have those who wait for locks look then."""
    worker = workers[rank]
    for j in touched:
        locks.free_s[np.uint32(j)] = worker.next_s
    for other in range(len(workers)):
        if workers[other].since_s < np.inf and workers[other].next_s == np.inf:
            workers[other].next_s = worker.next_s


@njit(nogil=True)
def _let_go(workers, rank, lines, locks, costs, update):
    """Give up the lock or the turn, and tell who waits for it."""
    worker, lock = workers[rank], locks.state[0]
    if locks.locking == GLOBAL_SPIN:
        lock.held = 0
        if _be_seen_free(workers, worker.next_s, costs, update):
            worker.next_s += worker.pace * costs.atomic_s
        return
    if locks.locking == ROUND_ROBIN:
        lock.serving += 1
        _tell(workers, rank, worker.next_s, lines, locks)
        return
    lock.held = 0
    next_rank = _next_of(workers, locks)
    if next_rank != NOBODY:
        doze_s = costs.doze_s * (1 + DOZE_SPREAD * (_share(hashed(update, rank)) - 1))
        asleep = worker.next_s - workers[next_rank].looked_s > workers[next_rank].pace * doze_s
        again_s = worker.next_s + workers[next_rank].pace * (costs.wake_s + costs.sleep_s)
        if not asleep:  # it sees as it is about to sleep that the mutex has been let go
            again_s = max(worker.next_s, workers[next_rank].looked_s + workers[next_rank].pace * costs.futex_s)
        _tell(workers, rank, again_s, lines, locks)
        worker.next_s += worker.pace * (costs.wake_s if asleep else costs.futex_s)


@njit(nogil=True)
def _share(random):
    """A number in [0, 2) of 64 random bits."""
    return np.float64(random >> np.uint64(11)) * 2.0**-52


@njit(nogil=True)
def _waits(worker):
    """For a lock of which it has heard nothing yet."""
    return worker.since_s < np.inf and worker.next_s == np.inf


@njit(nogil=True)
def _claim_s(workers, rank, lines):
    """For the line of a lock that others look at; 0 if nobody does."""
    claim_s = 0.0
    for other in range(len(workers)):
        if workers[other].since_s < np.inf:
            far = (lines.remote[rank] >> np.uint64(other)) & np.uint64(1)
            claim_s = max(claim_s, lines.claim_s[far])
    return claim_s


@njit(nogil=True)
def _be_seen_free(workers, now_s, costs, update):
    """Have those who wait for a spin lock look at it again; returns whether there are any."""
    spinning, waiting = 0, False
    for other in workers:
        waiting |= other.since_s < np.inf
        if _waits(other) and not _spins(other, now_s, costs):
            apart_s, yields_s = other.pace * costs.yield_s, now_s - other.since_s - other.pace * costs.spin_s
            looks = np.ceil(yields_s / apart_s) if apart_s > 0 else 0.0
            other.next_s = max(now_s, now_s - yields_s + looks * apart_s)
        else:
            spinning += _waits(other)
    if spinning:
        drawn = np.int64(hashed(update, 0) % np.uint64(spinning))
        for other in workers:
            if _waits(other):
                if drawn == 0:
                    other.next_s = now_s
                drawn -= 1
    return waiting


@njit(nogil=True)
def _spins(worker, now_s, costs):
    """Whether who waits looks all the time."""
    return now_s - worker.since_s <= worker.pace * costs.spin_s


@njit(nogil=True)
def _next_of(workers, locks):
    """Who waits for a lock, and has the turn or has waited longest; NOBODY if nobody does."""
    next_rank = NOBODY
    for other in range(len(workers)):
        if not _waits(workers[other]):
            continue
        if locks.locking == ROUND_ROBIN:
            if workers[other].ticket == locks.state[0].serving:
                next_rank = other
        elif next_rank == NOBODY or workers[other].since_s < workers[next_rank].since_s:
            next_rank = other
    return next_rank


@njit(nogil=True)
def _tell(workers, rank, news_s, lines, locks):
    """Let whose turn it is, or who has waited longest, know that `rank` has let go: that line comes after `news_s`."""
    next_rank = _next_of(workers, locks)
    if next_rank == NOBODY:
        return
    workers[next_rank].next_s = news_s + workers[next_rank].pace * _transfer_s(lines, next_rank, rank)
    if locks.locking == ROUND_ROBIN:
        _end_wait(workers[next_rank], workers[next_rank].next_s)


@njit(nogil=True, cache=True)
def bury(now_s, rank, workers, lines, locks, costs):
    """Let a worker that has died do no more. What it holds stays held; if it was about to take a lock, the next may.

    Returns:
        whether it holds a lock, or a turn.
    """
    worker = workers[rank]
    worker.next_s = worker.since_s = np.inf
    if locks.locking in (GLOBAL_SPIN, GLOBAL_MUTEX) and not locks.state[0].held:
        late_s = costs.sleep_s if locks.locking == GLOBAL_MUTEX else 0.0
        _tell(workers, rank, now_s + late_s, lines, locks)
    if locks.locking == PER_COORDINATE:
        return worker.taken > 0
    return locks.locking > ATOMIC and worker.event > BEGIN
