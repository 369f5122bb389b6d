"""The inner loop of shared memory, compiled: updates of all workers in (time, rank) order.

An update is two events: at its *read* the slope is computed from the weights as they are then, and the lines it lacks
are fetched; its *write* lands once reading and computing are paid, on the weights as they are by then. Both are the
functions that real kernels are made of (`harness.kernels.base`), so that one worker alone gets its weights bit for bit.
Under locks there are two more: the update *begins* when its lock is had, and *ends* when it lets go.

    spin lock     whoever waits looks again when the line of the lock has come to it; whoever comes first has it
    mutex         letting go wakes who has waited longest (`wake_s`), who looks again after `sleep_s`
    per coord.    one after the other, ascending: whoever waits for one holds those before; an atomic operation each
    round robin   writes in the order of tickets; the next one hears of it when the line has come
"""

from typing import Any, NamedTuple

import numpy as np
from numba import carray, njit, types
from numba.core import cgutils
from numba.extending import intrinsic, overload

from harness.kernels.access import ATOMIC, GLOBAL_MUTEX, GLOBAL_SPIN, PER_COORDINATE, ROUND_ROBIN
from harness.kernels.base import read, write
from harness.kernels.native import INLINE
from harness.kernels.numbers import Hot, Step

NOBODY = -1
STALENESS_BINS = 4096  # the last one holds all beyond

_BEGIN, _READ, _WRITE, _END = range(4)  # a worker's next event

WORKER = np.dtype(
    [
        ("next_s", np.float64),  # virtual time of its next event, inf without a chunk or while it waits for a lock
        ("finish_s", np.float64),  # when its last chunk ended
        ("since_s", np.float64),  # since when it waits for a lock, inf if it does not
        ("learning_rate", np.float64),
        ("pace", np.float64),  # virtual seconds of a second's work
        ("slope", np.float64),  # between read and write
        ("salt", np.uint64),  # of the random numbers of its chunk
        ("seen", np.int64),  # updates of its model when it read
        ("ticket", np.int64),  # of its update, round robin
        ("taken", np.int64),  # locks of coordinates that its update holds
        ("weights", np.int64),  # address of its model
        ("num_weights", np.int64),
        ("hot", np.int64),  # address of its replica of the hottest coordinates
        ("model", np.int64),  # index of its model, in `versions`
        ("first_line", np.uint64),  # of its model, in `lines`
        ("first_coordinate", np.uint64),  # of its model, in `written`
        ("position", np.int64),  # in its chunk
        ("count", np.int64),  # samples of its chunk
        ("remote", np.uint64),  # bits of the ranks on other sockets
        ("event", np.int64),  # what its next event is
    ],
    align=True,
)
LINE = np.dtype([("sharers", np.uint64), ("owner", np.uint64)])  # bits of ranks; column of `fetch_s`
TALLY = np.dtype([("updates", np.int64), ("conflicts", np.int64), ("staleness", np.int64), ("stalest", np.int64)])
LOCK = np.dtype([("held", np.int64), ("last", np.int64), ("tickets", np.int64), ("serving", np.int64)])


class Costs(NamedTuple):
    """Seconds, and what decides them."""

    sample_s: float
    nonzero_s: float
    delay_s: float
    atomic_s: float
    wake_s: float
    sleep_s: float
    fetch_s: np.ndarray  # by reader and owner, the last columns from memory: shape (ranks, ranks + sockets)
    same_socket_s: float
    cross_socket_s: float
    outstanding_misses: float
    line_shift: np.uint64  # log2 of the parameters in a line
    block: np.uint64  # parameters in a coordinate


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


class Ledger(NamedTuple):
    """What is counted.

    Args:
        written: the update that last wrote each coordinate of all models.
        versions: updates of each model.
        bins: histogram of staleness, shape (STALENESS_BINS,).
        tally: one TALLY record, shape (1,).
    """

    written: np.ndarray
    versions: np.ndarray
    bins: np.ndarray
    tally: np.ndarray


@intrinsic
def _pointer(typing_context: Any, address: Any) -> Any:
    """The address of an array as a pointer: models are many, and of many lengths."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(address), generate


def _weights_of(worker: Any, like: Any) -> Any:
    """The model of a worker: an array of the type of `like`, or a Hot."""
    raise NotImplementedError


@overload(_weights_of, jit_options=INLINE)
def _compile_weights_of(worker, like):
    return _hot_weights if isinstance(like, types.NamedTuple) else _plain_weights


def _plain_weights(worker, like):
    address: Any = _pointer(worker.weights)
    return carray(address, (worker.num_weights,), like.dtype)


def _hot_weights(worker, like):
    return Hot(worker.weights, worker.hot, like.slots, like.number)


@njit(nogil=True)
def _earliest(workers):
    first = 0
    for rank in range(1, len(workers)):
        if workers[rank].next_s < workers[first].next_s:
            first = rank
    return first


@njit(nogil=True)
def _fetch_s(lines, base, rank, touched, slots, costs):
    """Make `rank` a sharer of every line it reads; returns the stall in seconds."""
    me = np.uint64(1) << np.uint64(rank)
    total = dearest = 0.0
    for j in touched:  # no branches: hits and misses alternate unpredictably
        if len(slots) and slots[j] >= 0:
            continue
        first = np.uint64(np.uint32(j)) * costs.block
        for line in range(
            base + (first >> costs.line_shift), base + ((first + costs.block - np.uint64(1)) >> costs.line_shift) + 1
        ):
            price = costs.fetch_s[rank, lines[line].owner]
            cost = 0.0 if lines[line].sharers & me else price
            lines[line].sharers |= me
            total += cost
            dearest = cost if cost > dearest else dearest
    return max(dearest, total / costs.outstanding_misses)


@njit(nogil=True)
def _own_s(lines, base, rank, remote, touched, slots, block, line_shift, costs):
    """Make `rank` the only holder of every line it writes.

    Args:
        remote: bits of the ranks on other sockets.

    Returns:
        the stall in seconds, if misses overlap and if they do not.
    """
    me = np.uint64(1) << np.uint64(rank)
    total = dearest = 0.0
    for j in touched:
        if len(slots) and slots[j] >= 0:
            continue
        first = np.uint64(np.uint32(j)) * block
        for line in range(base + (first >> line_shift), base + ((first + block - np.uint64(1)) >> line_shift) + 1):
            others = lines[line].sharers & ~me
            price = costs.cross_socket_s if others & remote else costs.same_socket_s
            cost = price if others else 0.0
            lines[line].sharers = me
            lines[line].owner = rank
            total += cost
            dearest = cost if cost > dearest else dearest
    return max(dearest, total / costs.outstanding_misses), total


@njit(nogil=True)
def _mark(written, base, version, seen, touched):
    """Note that update `version` writes these coordinates; returns whether one was written since `seen`."""
    latest = np.int64(0)
    for j in touched:
        coordinate = base + np.uint64(np.uint32(j))
        latest = max(latest, written[coordinate])
        written[coordinate] = version
    return latest > seen


@njit(nogil=True)
def _transfer_s(workers, rank, last, costs):
    """For the line of a lock that `last` wrote."""
    if last in (rank, NOBODY):
        return 0.0
    return costs.cross_socket_s if (workers[rank].remote >> np.uint64(last)) & np.uint64(1) else costs.same_socket_s


@njit(nogil=True)
def _has_begun(workers, rank, locks, costs):
    """Take the lock or a ticket and pay for it, or begin to wait; returns whether the update has begun."""
    worker, lock = workers[rank], locks.state[0]
    if locks.locking in (GLOBAL_SPIN, GLOBAL_MUTEX):
        if lock.held:
            worker.since_s = min(worker.since_s, worker.next_s)
            worker.next_s = np.inf
            return False
        lock.held, worker.since_s = 1, np.inf
    elif locks.locking == ROUND_ROBIN:
        worker.ticket = lock.tickets
        lock.tickets += 1
    worker.next_s += worker.pace * (costs.atomic_s + _transfer_s(workers, rank, lock.last, costs))
    lock.last = rank
    return True


@njit(nogil=True)
def _may_write(worker, lines, rank, touched, slots, locks, costs):
    """Take the locks of coordinates, or see that it is this worker's turn; else it waits. Returns seconds or -1."""
    if locks.locking == ROUND_ROBIN and locks.state[0].serving != worker.ticket:
        worker.since_s, worker.next_s = worker.next_s, np.inf
        return -1.0
    if locks.locking != PER_COORDINATE:
        return 0.0
    while worker.taken < len(touched):
        j = np.uint32(touched[worker.taken])
        if locks.free_s[j] > worker.next_s:
            worker.since_s, worker.next_s = worker.next_s, locks.free_s[j]
            return -1.0
        locks.free_s[j] = np.inf
        worker.taken += 1
    worker.since_s = np.inf
    one, none = np.uint64(1), slots[:0]
    _, stall_s = _own_s(lines, locks.first_line, rank, worker.remote, touched, none, one, locks.line_shift, costs)
    return stall_s + 2 * costs.atomic_s * len(touched)  # to take them and to let go


@njit(nogil=True)
def _let_go_of_coordinates(workers, rank, touched, locks):
    """Give up the locks of coordinates when the update ends, and have those who wait for locks look then."""
    worker = workers[rank]
    for j in touched:
        locks.free_s[np.uint32(j)] = worker.next_s
    worker.taken = 0
    for other in range(len(workers)):
        if workers[other].since_s < np.inf and workers[other].next_s == np.inf:
            workers[other].next_s = worker.next_s


@njit(nogil=True)
def _let_go(workers, rank, locks, costs):
    """Give up the lock or the turn, and tell who waits for it."""
    worker, lock = workers[rank], locks.state[0]
    now_s, next_rank = worker.next_s, NOBODY
    if locks.locking == ROUND_ROBIN:
        lock.serving += 1
        for other in range(len(workers)):
            if workers[other].since_s < np.inf and workers[other].ticket == lock.serving:
                next_rank = other
    else:
        lock.held = 0
        for other in range(len(workers)):
            waits = workers[other].since_s < np.inf and workers[other].next_s == np.inf
            if waits and (next_rank == NOBODY or workers[other].since_s < workers[next_rank].since_s):
                next_rank = other
    if next_rank == NOBODY:
        return
    if locks.locking == ROUND_ROBIN:
        workers[next_rank].since_s = np.inf
    hears_s = _transfer_s(workers, next_rank, rank, costs)
    if locks.locking == GLOBAL_MUTEX:
        worker.next_s += worker.pace * costs.wake_s
        hears_s += costs.sleep_s
    workers[next_rank].next_s = now_s + workers[next_rank].pace * hears_s


@njit(nogil=True)
def _count(ledger, worker, touched):
    """Count an update that has just been written: its staleness, and whether others wrote what it touches."""
    versions, tally = ledger.versions, ledger.tally
    staleness = versions[worker.model] - worker.seen
    versions[worker.model] += 1
    ledger.bins[min(staleness, STALENESS_BINS - 1)] += 1
    tally[0].updates += 1
    tally[0].staleness += staleness
    tally[0].stalest = max(tally[0].stalest, staleness)
    if _mark(ledger.written, worker.first_coordinate, versions[worker.model], worker.seen, touched):
        tally[0].conflicts += 1


@njit(nogil=True, cache=True)
def advance(now_s, until_s, workers, samples, lines, kernel, like, slots, quantum, locks, ledger, costs):
    """Process the workers' events at `now_s` and before `until_s`, until the first chunk ends.

    Args:
        workers: WORKER records, shape (ranks,).
        samples: the chunk of each, shape (ranks, capacity).
        lines: LINE records of all models.
        kernel: what `Kernel.native` returns.
        like: an array or a Hot, of the type of the models.
        slots: of a Hot: coordinates with a slot >= 0 are on no shared line; empty without.
        quantum: of an int8 model.

    Returns:
        the rank whose chunk ended, or NOBODY.
    """
    atomic, locked = locks.locking == ATOMIC, locks.locking > ATOMIC
    while True:
        rank = _earliest(workers)
        worker = workers[rank]
        if worker.next_s == np.inf or (worker.next_s > now_s and worker.next_s >= until_s):
            return NOBODY
        if worker.event == _BEGIN:
            if locked and locks.locking != PER_COORDINATE:
                if _has_begun(workers, rank, locks, costs):
                    worker.event = _READ
                continue
            worker.event = _READ
        sample = samples[rank, worker.position]
        touched = kernel.indices[kernel.indptr[sample] : kernel.indptr[sample + 1]]
        if worker.event == _READ:
            weights = _weights_of(worker, like)
            step = Step(worker.learning_rate, False, quantum)
            stall_s = _fetch_s(lines, worker.first_line, rank, touched, slots, costs)
            worker.slope = read(kernel, weights, sample, step)
            worker.seen = ledger.versions[worker.model]
            worker.event = _WRITE
            work_s = stall_s + costs.sample_s + costs.nonzero_s * len(touched) + costs.delay_s
            worker.next_s += worker.pace * work_s
            continue
        if worker.event == _WRITE:
            locks_s = _may_write(worker, lines, rank, touched, slots, locks, costs)
            if locks_s < 0.0:
                continue
            weights = _weights_of(worker, like)
            step = Step(worker.learning_rate, False, quantum)
            write(kernel, weights, sample, worker.slope, step, worker.salt + np.uint64(worker.position))
            _count(ledger, worker, touched)
            own_s, own_one_by_one_s = _own_s(
                lines, worker.first_line, rank, worker.remote, touched, slots, costs.block, costs.line_shift, costs
            )
            if atomic:
                own_s = own_one_by_one_s + costs.atomic_s * len(touched)
            worker.next_s += worker.pace * (locks_s + own_s)
            if locks.locking == PER_COORDINATE:
                _let_go_of_coordinates(workers, rank, touched, locks)
            worker.event = _END
            if locked and locks.locking != PER_COORDINATE:
                continue
        if locked and locks.locking != PER_COORDINATE:
            _let_go(workers, rank, locks, costs)
        worker.event = _BEGIN
        worker.position += 1
        if worker.position == worker.count:
            worker.finish_s, worker.next_s = worker.next_s, np.inf
            return rank


advance_uncached = njit(nogil=True)(advance.py_func)  # for kernels whose files `harness.kernels` does not know
