"""The inner loop of shared memory, compiled: updates of all workers in (time, rank) order.

An update is three events. At its *read* the slope is computed from the weights as they are then, and the lines it
lacks are fetched. Once reading and computing are paid it begins to *write*: it loads what it will add to, and asks for
the lines that others hold, for a few of them at a time if it adds atomically. When those have come it *stores*: its
additions land on what it has loaded. Reading and writing are the functions that real kernels are made of
(`harness.kernels.base`), so that one worker alone gets its weights bit for bit. Under locks there is one more: the
update *begins* when its lock is had, and lets go when stored.

What is lost between load and store: memory_ledger.py. What lines cost: cache_lines.py. Locks: memory_locks.py.
"""

from typing import Any

import numpy as np
from numba import carray, njit, types
from numba.core import cgutils
from numba.extending import intrinsic, overload

from hardware.simulated.cache_lines import add_atomically_s, read_lines_s, write_lines_s
from hardware.simulated.memory_ledger import count_update, load, put_back
from hardware.simulated.memory_locks import has_begun, has_ended, may_write
from hardware.simulated.memory_records import BEGIN, NOBODY, READ, STORE, WRITE
from harness.kernels.access import ATOMIC, PER_COORDINATE
from harness.kernels.base import prefetch_sample, read, write
from harness.kernels.native import INLINE, borrowed
from harness.kernels.numbers import Hot, Step

ATOMICS = 8  # coordinates added to between two events: atomic operations come one after the other


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


@njit(**INLINE)
def _add_s(worker, lines, rank, touched, atomic, costs):
    """Let `rank` alone hold the lines it adds to: all of them, or the next few; returns the stall in seconds."""
    block, shift, now_s = costs.block, costs.line_shift, worker.next_s
    if not atomic:
        return write_lines_s(lines, worker.first_line, rank, touched, block, shift, now_s)
    part = touched[worker.taken : worker.taken + ATOMICS]
    worker.taken += len(part)
    stall_s = add_atomically_s(lines, worker.first_line, rank, part, block, shift, now_s)
    return stall_s + costs.atomic_s * len(part) * block


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
    workers, samples, lines, kernel, like, slots, loaded, locks, ledger = borrowed(
        (workers, samples, lines, kernel, like, slots, loaded, locks, ledger)
    )
    atomic, locked = locks.locking == ATOMIC, locks.locking > ATOMIC
    forgets = lines.cached.shape[1] > 0  # caches do not hold the model: kernels are calibrated with rows and lines
    while True:
        rank = _earliest(workers)
        worker = workers[rank]
        if worker.next_s == np.inf or (worker.next_s > now_s and worker.next_s >= until_s):
            return NOBODY
        if worker.event == BEGIN:
            if locked and locks.locking != PER_COORDINATE:
                if has_begun(workers, rank, lines, locks, costs):
                    worker.event = READ
                continue
            worker.event = READ
        sample = samples[rank, worker.position]
        row = kernel.indices[kernel.indptr[sample] : kernel.indptr[sample + 1]]
        touched = _contended(like, row, slots, costs.block, loaded.touched[rank])
        row_s = worker.row_s + worker.row_nonzero_s * len(row)
        first_line, step = worker.first_line, Step(worker.learning_rate, False, quantum)
        if worker.event == READ:
            stall_s = read_lines_s(lines, first_line, rank, touched, len(row), costs, worker.next_s)
            shared = _weights_of(worker, like)
            worker.slope = read(kernel, shared, sample, step)
            worker.seen = ledger.versions[worker.model]
            worker.event = WRITE
            prefetch_sample(kernel, shared, samples[rank, min(worker.position + 1, worker.count - 1)])
            stall_s = stall_s + row_s if forgets else max(stall_s, row_s)  # it was prefetched, and comes meanwhile
            worker.next_s += worker.pace * (stall_s + costs.sample_s + costs.nonzero_s * len(row) + costs.delay_s)
            continue
        values, additions = loaded.values[rank], loaded.additions[rank]
        weights = carray(_pointer(worker.weights), (worker.num_weights,), loaded.values.dtype)
        if worker.event == WRITE:
            locks_s = may_write(worker, lines, rank, row, locks, costs)
            if locks_s < 0.0:
                continue
            begin_s = worker.next_s
            own_s = _add_s(worker, lines, rank, touched, atomic, costs)
            worker.next_s += worker.pace * (locks_s + own_s)
            if atomic and worker.taken < len(touched):
                continue
            worker.event, worker.loaded = STORE, ledger.versions[worker.model]
            if worker.next_s > begin_s:
                if not atomic:
                    load(values, additions, weights, ledger.written, worker.first_coordinate, touched, costs.block)
                continue
        if worker.loaded < ledger.versions[worker.model] and not atomic:
            ledger.tally[0].lost += put_back(
                values, additions, weights, ledger.written, worker.first_coordinate, touched, costs.block, worker.loaded
            )
        write(kernel, _weights_of(worker, like), sample, worker.slope, step, worker.salt + np.uint64(worker.position))
        count_update(ledger, worker, touched)
        if locked:
            has_ended(workers, rank, row, lines, locks, costs, ledger.tally[0].updates)
        worker.event, worker.position, worker.taken = BEGIN, worker.position + 1, 0
        if worker.position == worker.count:
            worker.finish_s, worker.next_s = worker.next_s, np.inf
            return rank


advance_uncached = njit(nogil=True)(advance.py_func)  # for kernels whose files `harness.kernels` does not know
