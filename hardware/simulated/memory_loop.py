"""The inner loop of shared memory, compiled: updates of all workers in (time, rank) order.

An update is two events: at its *read* the slope is computed from the weights as they are then, and the lines it lacks
are fetched; its *write* lands once reading and computing are paid, on the weights as they are by then. Arithmetic is
that of `harness.sparse_kernel`, operation by operation, so that one worker alone gets its weights bit for bit.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import carray, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from harness.sparse_kernel import slope

NOBODY = -1
STALENESS_BINS = 4096  # the last one holds all beyond

WORKER = np.dtype(
    [
        ("next_s", np.float64),  # virtual time of its next event, inf without a chunk
        ("finish_s", np.float64),  # when its last chunk ended
        ("learning_rate", np.float64),
        ("pace", np.float64),  # virtual seconds of a second's work
        ("step", np.float64),  # learning rate x slope, between read and write
        ("seen", np.int64),  # updates of its model when it read
        ("weights", np.int64),  # address of its model
        ("num_weights", np.int64),
        ("model", np.int64),  # index of its model, in `versions`
        ("first_line", np.uint64),  # of its model, in `lines`
        ("first_coordinate", np.uint64),  # of its model, in `written`
        ("position", np.int64),  # in its chunk
        ("count", np.int64),  # samples of its chunk
        ("remote", np.uint64),  # bits of the ranks on other sockets
        ("writes", np.int64),  # whether its next event is a write
    ],
    align=True,
)
LINE = np.dtype([("sharers", np.uint64), ("owner", np.uint64)])  # bits of ranks; a rank, or the number of ranks
TALLY = np.dtype([("updates", np.int64), ("conflicts", np.int64), ("staleness", np.int64), ("stalest", np.int64)])


class Rows(NamedTuple):
    """The samples."""

    indptr: np.ndarray
    indices: np.ndarray
    values: np.ndarray
    labels: np.ndarray
    loss_code: int


class Costs(NamedTuple):
    """Seconds, and what decides them."""

    sample_s: float
    nonzero_s: float
    fetch_s: np.ndarray  # by reader and owner, the last column from memory: shape (ranks, ranks + 1)
    same_socket_s: float
    cross_socket_s: float
    outstanding_misses: float
    line_shift: np.uint64  # log2 of the coordinates in a line


@intrinsic
def _pointer(typing_context: Any, address: Any) -> Any:
    """The address of an array as a pointer: models are many, and of many lengths."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(address), generate


@njit(nogil=True, cache=True)
def _earliest(workers):  # type: ignore[no-untyped-def]
    first = 0
    for rank in range(1, len(workers)):
        if workers[rank].next_s < workers[first].next_s:
            first = rank
    return first


@njit(nogil=True, cache=True)
def _fetch_s(lines, base, rank, indices, start, stop, costs):  # type: ignore[no-untyped-def]
    """Make `rank` a sharer of every line it reads; returns the stall in seconds."""
    me = np.uint64(1) << np.uint64(rank)
    total = dearest = 0.0
    for position in range(start, stop):  # no branches: hits and misses alternate unpredictably
        line = base + (np.uint64(np.uint32(indices[position])) >> costs.line_shift)
        price = costs.fetch_s[rank, lines[line].owner]
        cost = 0.0 if lines[line].sharers & me else price
        lines[line].sharers |= me
        total += cost
        dearest = cost if cost > dearest else dearest
    return max(dearest, total / costs.outstanding_misses)


@njit(nogil=True, cache=True)
def _own_s(lines, base, rank, remote, indices, start, stop, costs):  # type: ignore[no-untyped-def]
    """Make `rank` the only holder of every line it writes; returns the stall in seconds.

    Args:
        remote: bits of the ranks on other sockets.
    """
    me = np.uint64(1) << np.uint64(rank)
    total = dearest = 0.0
    for position in range(start, stop):
        line = base + (np.uint64(np.uint32(indices[position])) >> costs.line_shift)
        others = lines[line].sharers & ~me
        price = costs.cross_socket_s if others & remote else costs.same_socket_s
        cost = price if others else 0.0
        lines[line].sharers = me
        lines[line].owner = rank
        total += cost
        dearest = cost if cost > dearest else dearest
    return max(dearest, total / costs.outstanding_misses)


@njit(nogil=True, cache=True)
def _mark(written, base, version, seen, indices, start, stop):  # type: ignore[no-untyped-def]
    """Note that update `version` writes these coordinates; returns whether one was written since `seen`."""
    latest = np.int64(0)
    for position in range(start, stop):
        coordinate = base + np.uint64(np.uint32(indices[position]))
        latest = max(latest, written[coordinate])
        written[coordinate] = version
    return latest > seen


@njit(nogil=True, cache=True)
def advance(now_s, until_s, workers, samples, lines, written, versions, bins, tally, rows, costs):  # type: ignore[no-untyped-def]
    """Process the workers' events at `now_s` and before `until_s`, until the first chunk ends.

    Args:
        workers: WORKER records, shape (ranks,).
        samples: the chunk of each, shape (ranks, capacity).
        lines: LINE records of all models.
        written: the update that last wrote each coordinate of all models.
        versions: updates of each model.
        bins: histogram of staleness, shape (STALENESS_BINS,).
        tally: one TALLY record, shape (1,).

    Returns:
        the rank whose chunk ended, or NOBODY.
    """
    number = rows.values.dtype.type
    while True:
        rank = _earliest(workers)
        worker = workers[rank]
        if worker.next_s == np.inf or (worker.next_s > now_s and worker.next_s >= until_s):
            return NOBODY
        address: Any = _pointer(worker.weights)  # type: ignore[call-arg]
        weights = carray(address, (worker.num_weights,), rows.values.dtype)
        sample = samples[rank, worker.position]
        start, stop = np.uint64(rows.indptr[sample]), np.uint64(rows.indptr[sample + 1])
        if not worker.writes:
            stall_s = _fetch_s(lines, worker.first_line, rank, rows.indices, start, stop, costs)
            margin = number(0)
            for position in range(start, stop):
                margin += rows.values[position] * weights[np.uint32(rows.indices[position])]
            worker.step = number(worker.learning_rate * slope(rows.loss_code, margin, rows.labels[sample]))
            worker.seen = versions[worker.model]
            worker.writes = 1
            worker.next_s += worker.pace * (stall_s + costs.sample_s + costs.nonzero_s * np.float64(stop - start))
            continue
        step = number(worker.step)
        for position in range(start, stop):
            weights[np.uint32(rows.indices[position])] -= step * rows.values[position]
        staleness = versions[worker.model] - worker.seen
        versions[worker.model] += 1
        bins[min(staleness, STALENESS_BINS - 1)] += 1
        tally[0].updates += 1
        tally[0].staleness += staleness
        tally[0].stalest = max(tally[0].stalest, staleness)
        if _mark(written, worker.first_coordinate, versions[worker.model], worker.seen, rows.indices, start, stop):
            tally[0].conflicts += 1
        stall_s = _own_s(lines, worker.first_line, rank, worker.remote, rows.indices, start, stop, costs)
        worker.next_s += worker.pace * stall_s
        worker.writes = 0
        worker.position += 1
        if worker.position == worker.count:
            worker.finish_s, worker.next_s = worker.next_s, np.inf
            return rank
