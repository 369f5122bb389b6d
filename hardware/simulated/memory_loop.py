"""The inner loop of shared memory, compiled: updates of all workers in (time, rank) order.

An update is three events. At its *read* the slope is computed from the weights as they are then, and the lines it
lacks are fetched. Once reading and computing are paid it begins to *write*: it loads what it will add to, and asks for
the lines that others hold. When those have come it *stores*: its additions land on what it has loaded. Reading and
writing are the functions that real kernels are made of (`harness.kernels.base`), so that one worker alone gets its
weights bit for bit. Under locks there is one more: the update *begins* when its lock is had, and lets go when stored.

What others have stored in a coordinate between load and store is *lost*: overwritten by an addition that does not know
of it. The gap is the stall of the write, nothing else; it closes where no line travels. An `atomic` addition loads at
its store, so none is lost; under locks nobody else stores meanwhile. All loads of an update are at the beginning and
all stores at the end of its stall, though a core stores what has come first earlier: what is lost is an upper bound.

    spin lock     who lets go, and all who wait, are equally likely to have it next: a race of nanoseconds for its line
    mutex         letting go wakes who has waited longest (`wake_s`), who looks again `sleep_s` later
    per coord.    one after the other, ascending: whoever waits for one holds those before; an atomic operation each
    round robin   writes in the order of tickets; the next one hears of it when the line has come
"""

from typing import Any, NamedTuple

import numpy as np
from numba import carray, njit, types
from numba.core import cgutils
from numba.extending import intrinsic, overload

from hardware.simulated.cache_lines import read_line, write_line
from harness.kernels.access import ATOMIC, GLOBAL_MUTEX, GLOBAL_SPIN, PER_COORDINATE, ROUND_ROBIN
from harness.kernels.base import prefetch_sample, read, write
from harness.kernels.native import INLINE
from harness.kernels.numbers import Hot, Step, hashed

NOBODY = -1
STALENESS_BINS = 4096  # the last one holds all beyond

BEGIN, READ, WRITE, STORE = range(4)  # a worker's next event

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
        ("loaded", np.int64),  # updates of its model when it began to write
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
        ("row_s", np.float64),  # by which a sample takes longer because of where its row lies
        ("row_nonzero_s", np.float64),  # the same, each of its nonzeros
        ("event", np.int64),  # what its next event is
    ],
    align=True,
)
COORDINATE = np.dtype([("version", np.int64), ("additions", np.int64)])  # update that wrote it last; what is in it
TALLY = np.dtype([(name, np.int64) for name in ("updates", "conflicts", "staleness", "stalest", "additions", "lost")])
LOCK = np.dtype([("held", np.int64), ("last", np.int64), ("tickets", np.int64), ("serving", np.int64)])


class Costs(NamedTuple):
    """Seconds, and what decides them."""

    sample_s: float
    nonzero_s: float  # of a coordinate
    delay_s: float
    atomic_s: float
    wake_s: float
    sleep_s: float
    lock_s: float
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


class Loaded(NamedTuple):
    """What each worker has loaded and not stored yet, in the order of its sample's coordinates.

    Args:
        values: of the models' type, shape (ranks, parameters of the longest sample).
        additions: in each coordinate, shape (ranks, coordinates of the longest sample).
        touched: coordinates, shape (ranks, coordinates of the longest sample + 1).
    """

    values: np.ndarray
    additions: np.ndarray
    touched: np.ndarray


class Ledger(NamedTuple):
    """What is counted.

    Args:
        written: COORDINATE records of all models.
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


def _contended(like: Any, row: Any, slots: Any, block: Any, kept: Any) -> Any:
    """The coordinates of a row that lie in the shared model: all, but for the hot ones of a Hot; put into `kept`."""
    raise NotImplementedError


@overload(_contended, jit_options=INLINE)
def _compile_contended(like, row, slots, block, kept):
    return _cold if isinstance(like, types.NamedTuple) else _all


def _all(like, row, slots, block, kept):
    return row


def _cold(like, row, slots, block, kept):
    count = 0
    for j in row:
        kept[count] = j
        count += slots[np.uint64(np.uint32(j)) * block] < 0  # blocks are hot as wholes
    return kept[:count]


@njit(nogil=True)
def _earliest(workers):
    first = 0
    for rank in range(1, len(workers)):
        if workers[rank].next_s < workers[first].next_s:
            first = rank
    return first


@njit(nogil=True)
def _lines_of(base, j, block, shift):
    """First and last line of a coordinate of `block` parameters, 2^shift to a line, of a model from `base`."""
    first = np.uint64(np.uint32(j)) * block
    return base + (first >> shift), base + ((first + block - np.uint64(1)) >> shift)


@njit(nogil=True)
def _read_s(lines, base, rank, touched, costs):
    """Let `rank` hold every line it reads; returns the stall in seconds."""
    total = dearest = 0.0
    for j in touched:
        first, last = _lines_of(base, j, costs.block, costs.line_shift)
        for line in range(first, last + np.uint64(1)):
            cost = read_line(lines, rank, line)
            total += cost
            dearest = max(dearest, cost)
    return max(dearest, total / lines.outstanding_misses)


@njit(nogil=True)
def _write_s(lines, base, rank, touched, block, shift, outstanding_clashes):
    """Let `rank` alone hold every line it writes; returns the stall in seconds."""
    missed = clashed = dearest = 0.0
    for j in touched:
        first, last = _lines_of(base, j, block, shift)
        for line in range(first, last + np.uint64(1)):
            cost, clash = write_line(lines, rank, line)
            missed += 0.0 if clash else cost
            clashed += cost if clash else 0.0
            dearest = max(dearest, cost)
    return max(dearest, missed / lines.outstanding_misses + clashed / outstanding_clashes)


@njit(nogil=True)
def _load(values, additions, weights, written, base, touched, block):
    """Keep what lies in the coordinates now."""
    for position in range(np.uint64(len(touched))):
        additions[position] = written[base + np.uint64(np.uint32(touched[position]))].additions
    if block == 1:  # a loop of its own: the one below takes three times as long
        for position in range(np.uint64(len(touched))):
            values[position] = weights[np.uint32(touched[position])]
        return
    for position in range(np.uint64(len(touched))):
        for part in range(block):
            values[position * block + part] = weights[np.uint64(np.uint32(touched[position])) * block + part]


@njit(nogil=True)
def _put_back(values, additions, weights, written, base, touched, block, loaded):
    """Let coordinates that were written after update `loaded` be what they were when they were loaded.

    Returns:
        by how many additions the model is poorer for it.
    """
    lost = np.int64(0)
    for position in range(np.uint64(len(touched))):  # no branches, as in `_fetch_s`
        j = np.uint64(np.uint32(touched[position]))
        late, now, then = written[base + j].version > loaded, written[base + j].additions, additions[position]
        lost += now - then if late else 0
        written[base + j].additions = then if late else now
        if block == 1:
            value, kept = weights[j], values[position]
            weights[j] = kept if late else value
    if block > 1:
        for position in range(np.uint64(len(touched))):
            j = np.uint64(np.uint32(touched[position]))
            if written[base + j].version > loaded:
                for part in range(block):
                    weights[j * block + part] = values[position * block + part]
    return lost


@njit(nogil=True)
def _mark(written, base, version, touched):
    """Note that update `version` adds to these coordinates; returns the latest update that did before."""
    latest = np.int64(0)
    for j in touched:
        coordinate = base + np.uint64(np.uint32(j))
        latest = max(latest, written[coordinate].version)
        written[coordinate].version = version
        written[coordinate].additions += 1
    return latest


@njit(nogil=True)
def _transfer_s(lines, rank, last):
    """For the line of a lock that `last` wrote."""
    return 0.0 if last in (rank, NOBODY) else lines.fetch_s[rank, last]


@njit(nogil=True)
def _has_begun(workers, rank, lines, locks, costs):
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
    worker.next_s += worker.pace * (costs.lock_s + _transfer_s(lines, rank, lock.last))
    lock.last = rank
    return True


@njit(nogil=True)
def _may_write(worker, lines, rank, touched, locks, costs):
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
    overlapping = lines.outstanding_misses  # what follows waits for none of them
    stall_s = _write_s(lines, locks.first_line, rank, touched, np.uint64(1), locks.line_shift, overlapping)
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
def _let_go(workers, rank, lines, locks, costs, update):
    """Give up the lock or the turn, and tell who waits for it.

    Args:
        update: its number, of which the next holder of a spin lock is drawn.
    """
    worker, lock = workers[rank], locks.state[0]
    if locks.locking == GLOBAL_SPIN:
        lock.held = 0
        _race(workers, rank, lines, locks, costs, update)
        return
    if locks.locking == ROUND_ROBIN:
        lock.serving += 1
        _tell(workers, rank, worker.next_s, lines, locks, 0.0)
        return
    lock.held = 0
    if _tell(workers, rank, worker.next_s, lines, locks, costs.wake_s + costs.sleep_s):
        worker.next_s += worker.pace * costs.wake_s


@njit(nogil=True)
def _waits(worker):
    """For a lock of which it has heard nothing yet."""
    return worker.since_s < np.inf and worker.next_s == np.inf


@njit(nogil=True)
def _race(workers, rank, lines, locks, costs, update):
    """Give a spin lock to one of those who want it: all who wait, and `rank` itself if it has more to do."""
    worker, lock = workers[rank], locks.state[0]
    waiting = 0
    for other in range(len(workers)):
        waiting += _waits(workers[other])
    runners = waiting + (worker.position + 1 < worker.count)
    if waiting == 0 or runners == 0:
        return
    drawn = np.int64(hashed(update, rank) % np.uint64(runners))
    if drawn == waiting:  # the line comes back from those who look at it
        worker.next_s += worker.pace * lines.claim_s[0]
        return
    for other in range(len(workers)):
        if _waits(workers[other]):
            if drawn == 0:
                winner = workers[other]
                winner.next_s = worker.next_s + winner.pace * (_transfer_s(lines, other, rank) + costs.lock_s)
                winner.event, winner.since_s, lock.held, lock.last = READ, np.inf, 1, other
                return
            drawn -= 1


@njit(nogil=True)
def _tell(workers, rank, now_s, lines, locks, later_s):
    """Let whose turn it is, or who has waited longest, know that `rank` has let go; returns whether anybody waits.

    Args:
        later_s: than the line of the lock, the news comes.
    """
    next_rank = NOBODY
    for other in range(len(workers)):
        if not _waits(workers[other]):
            continue
        if locks.locking == ROUND_ROBIN:
            if workers[other].ticket == locks.state[0].serving:
                next_rank = other
        elif next_rank == NOBODY or workers[other].since_s < workers[next_rank].since_s:
            next_rank = other
    if next_rank == NOBODY:
        return False
    if locks.locking == ROUND_ROBIN:
        workers[next_rank].since_s = np.inf
    workers[next_rank].next_s = now_s + workers[next_rank].pace * (_transfer_s(lines, next_rank, rank) + later_s)
    return True


@njit(nogil=True, cache=True)
def bury(now_s, rank, workers, lines, locks, costs):
    """Let a worker that has died do no more. What it holds stays held; if it was about to take a lock, the next may.

    Returns:
        whether it holds a lock, or a turn.
    """
    worker = workers[rank]
    told = worker.event == BEGIN and worker.since_s < np.inf and worker.next_s < np.inf
    worker.next_s = worker.since_s = np.inf
    if told:
        _tell(workers, rank, now_s, lines, locks, costs.sleep_s if locks.locking == GLOBAL_MUTEX else 0.0)
    if locks.locking == PER_COORDINATE:
        return worker.taken > 0
    return locks.locking > ATOMIC and worker.event > BEGIN


@njit(nogil=True)
def _count(ledger, worker, touched):
    """Count an update that has just been stored: its staleness, and whether others wrote what it touches."""
    versions, tally = ledger.versions, ledger.tally
    staleness = versions[worker.model] - worker.seen
    versions[worker.model] += 1
    ledger.bins[min(staleness, STALENESS_BINS - 1)] += 1
    tally[0].updates += 1
    tally[0].additions += len(touched)
    tally[0].staleness += staleness
    tally[0].stalest = max(tally[0].stalest, staleness)
    if _mark(ledger.written, worker.first_coordinate, versions[worker.model], touched) > worker.seen:
        tally[0].conflicts += 1


@njit(nogil=True, cache=True)
def advance(now_s, until_s, workers, samples, lines, kernel, like, slots, quantum, loaded, locks, ledger, costs):
    """Process the workers' events at `now_s` and before `until_s`, until the first chunk ends.

    Args:
        workers: WORKER records, shape (ranks,).
        samples: the chunk of each, shape (ranks, capacity).
        lines: Lines, of all models.
        kernel: what `Kernel.native` returns.
        like: an array or a Hot, of the type of the models.
        slots: of a Hot: coordinates whose parameters have a slot >= 0 are on no shared line; empty without.
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
        if worker.event == BEGIN:
            if locked and locks.locking != PER_COORDINATE:
                if _has_begun(workers, rank, lines, locks, costs):
                    worker.event = READ
                continue
            worker.event = READ
        sample = samples[rank, worker.position]
        row = kernel.indices[kernel.indptr[sample] : kernel.indptr[sample + 1]]
        touched = _contended(like, row, slots, costs.block, loaded.touched[rank])
        first_line, step = worker.first_line, Step(worker.learning_rate, False, quantum)
        if worker.event == READ:
            stall_s = _read_s(lines, first_line, rank, touched, costs)
            shared = _weights_of(worker, like)
            worker.slope = read(kernel, shared, sample, step)
            worker.seen = ledger.versions[worker.model]
            worker.event = WRITE
            prefetch_sample(kernel, shared, samples[rank, min(worker.position + 1, worker.count - 1)])
            row_s = worker.row_s + (costs.nonzero_s + worker.row_nonzero_s) * len(row)
            work_s = stall_s + costs.sample_s + row_s + costs.delay_s
            worker.next_s += worker.pace * work_s
            continue
        values, additions = loaded.values[rank], loaded.additions[rank]
        weights = carray(_pointer(worker.weights), (worker.num_weights,), loaded.values.dtype)
        if worker.event == WRITE:
            locks_s = _may_write(worker, lines, rank, row, locks, costs)
            if locks_s < 0.0:
                continue
            clashes = lines.outstanding_clashes
            own_s = _write_s(lines, first_line, rank, touched, costs.block, costs.line_shift, clashes)
            if atomic:
                own_s += costs.atomic_s * len(touched) * costs.block
            begin_s = worker.next_s
            worker.next_s += worker.pace * (locks_s + own_s)
            worker.event, worker.loaded = STORE, ledger.versions[worker.model]
            if worker.next_s > begin_s:
                if not atomic:
                    _load(values, additions, weights, ledger.written, worker.first_coordinate, touched, costs.block)
                continue
        if worker.loaded < ledger.versions[worker.model] and not atomic:
            ledger.tally[0].lost += _put_back(
                values, additions, weights, ledger.written, worker.first_coordinate, touched, costs.block, worker.loaded
            )
        write(kernel, _weights_of(worker, like), sample, worker.slope, step, worker.salt + np.uint64(worker.position))
        _count(ledger, worker, touched)
        if locks.locking == PER_COORDINATE:
            _let_go_of_coordinates(workers, rank, row, locks)
        elif locked:
            _let_go(workers, rank, lines, locks, costs, ledger.tally[0].updates)
        worker.event = BEGIN
        worker.position += 1
        if worker.position == worker.count:
            worker.finish_s, worker.next_s = worker.next_s, np.inf
            return rank


advance_uncached = njit(nogil=True)(advance.py_func)  # for kernels whose files `harness.kernels` does not know
