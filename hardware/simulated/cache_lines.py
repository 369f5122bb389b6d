"""What cache lines cost that several cores write, compiled.

A line has an owner, the core that wrote it last (or the socket whose memory it lies in), and sharers, the cores that
hold a copy. A core also forgets, where there are more lines than its own cache holds: see core_cache.py.

    hit     the core holds the line: no cost beyond the kernel's own
    miss    the line is read from its owner's cache, on the same socket or across; from the cache that the cores of its
            socket share, if it was written and forgotten since; else from memory
    claim   the core holds a copy, as others do, and writes: theirs must go first, which costs as much as a miss
    clash   the core held the line when it read, and another one has taken it since: at the write it must come back

Misses and claims of one update overlap: n of them take sum / outstanding_misses, but at least the dearest. Clashes
overlap less, sum / outstanding_clashes: stores leave a core in order, and loads that a core has done ahead on a line
that it then loses are done again. Atomic operations hardly overlap, whatever they wait for: sum / outstanding_atomics.
A line that cores have written comes to one of them at a time: who asks while it is on its way to another one waits.
Where lines *migrate*, one that another core has written comes to its reader as the reader's own, and its write is no
claim (Stenstrom, Brorsson, Sandberg, ISCA 1993); else reading leaves both a copy.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numba import njit

from hardware.simulated.core_cache import NOWHERE, CoreCache, drop, empty, lines_passing, sets_of, use
from hardware.simulated.memory import SharedMemory
from harness.kernels.base import Kernel
from harness.kernels.native import INLINE

LINE = np.dtype(
    [
        ("sharers", np.uint64),  # bits of ranks
        ("owner", np.uint64),  # a column of `fetch_s`
        ("free_s", np.float64),  # virtual time at which it has come to who asked last
    ]
)


class Lines(NamedTuple):
    """The lines of all models, and who holds them.

    Args:
        state: LINE records.
        cached: the lines in each set of each rank's own cache, the last used first, shape (ranks, sets, ways); no sets
            where nothing is ever forgotten.
        set_of: the set of each line, shape (lines,); empty where nothing is ever forgotten.
        passed: NOWHERE + lines of rows that have come through each rank's cache, shape (ranks,).
        remote: bits of the ranks on other sockets than each rank's, shape (ranks,).
        fetch_s: by reader and owner, the last columns from memory: shape (ranks, ranks + sockets).
        forgotten_s: by reader and owner, of a line that its owner's cache has forgotten, shape (ranks, ranks).
        claim_s: to make copies go, by whether some are on other sockets, shape (2,).
        outstanding_misses, outstanding_clashes, outstanding_atomics: that overlap.
        migrates: whether a written line comes to its reader as the reader's own.
    """

    state: np.ndarray
    cached: np.ndarray
    set_of: np.ndarray
    passed: np.ndarray
    remote: np.ndarray
    fetch_s: np.ndarray
    forgotten_s: np.ndarray
    claim_s: np.ndarray
    outstanding_misses: float
    outstanding_clashes: float
    outstanding_atomics: float
    migrates: bool


@njit(**INLINE)
def _keep(lines: Any, rank: int, line: int) -> None:
    """Put a line into a rank's cache, which forgets another one for it."""
    _, gone = use(lines.cached, rank, lines.set_of[line], line)
    if gone < NOWHERE:
        lines.state[gone].sharers &= ~(np.uint64(1) << np.uint64(rank))


@njit(**INLINE)
def _drop(lines: Any, others: int, line: int) -> None:
    """Take a line from the caches of other ranks."""
    for rank in range(len(lines.cached)):
        if (others >> np.uint64(rank)) & np.uint64(1):
            drop(lines.cached, rank, lines.set_of[line], line)


@njit(**INLINE)
def pass_row(lines: Any, rank: int, row_lines: Any, nonzeros: int) -> None:
    """Let a row come through a rank's cache, to be read once."""
    sets = np.uint64(lines.cached.shape[1])
    if sets == 0:
        return
    for _ in range(lines_passing(row_lines, nonzeros)):
        lines.passed[rank] += np.uint64(1)
        _, gone = use(lines.cached, rank, lines.passed[rank] % sets, lines.passed[rank])
        if gone < NOWHERE:
            lines.state[gone].sharers &= ~(np.uint64(1) << np.uint64(rank))


@njit(**INLINE)
def _read_held_for_ever(lines: Any, rank: int, line: int) -> float:
    """`read_line` where no cache ever forgets, without branches: hits and misses alternate unpredictably."""
    me, sharers, owner = np.uint64(1) << np.uint64(rank), lines.state[line].sharers, lines.state[line].owner
    held = (sharers & me) != 0
    written = owner < len(lines.cached)
    moves = lines.migrates and written and not held and sharers == np.uint64(1) << (owner & np.uint64(63))
    lines.state[line].sharers = me if moves else sharers | me
    lines.state[line].owner = np.uint64(rank) if moves else owner
    return 0.0 if held else lines.fetch_s[rank, owner]


@njit(**INLINE)
def read_line(lines: Any, rank: int, line: int) -> float:
    """Let a rank hold a line; returns the seconds of the miss, 0 for a hit."""
    if lines.cached.shape[1] == 0:
        return _read_held_for_ever(lines, rank, line)
    _keep(lines, rank, line)
    me, sharers, owner = np.uint64(1) << np.uint64(rank), lines.state[line].sharers, lines.state[line].owner
    if sharers & me:
        return 0.0
    lines.state[line].sharers = sharers | me
    if owner >= len(lines.cached):
        return lines.fetch_s[rank, owner]
    if not (sharers >> owner) & np.uint64(1):
        lines.state[line].owner = rank
        return lines.forgotten_s[rank, owner]
    if lines.migrates and sharers == np.uint64(1) << owner:
        _drop(lines, sharers, line)
        lines.state[line].sharers = me
        lines.state[line].owner = rank
    return lines.fetch_s[rank, owner]


@njit(**INLINE)
def write_line(lines: Any, rank: int, line: int) -> tuple[float, bool]:
    """Let a rank alone hold a line that it has read before; returns the seconds, and whether it was a clash."""
    me, sharers, owner = np.uint64(1) << np.uint64(rank), lines.state[line].sharers, lines.state[line].owner
    held, others = (sharers & me) != 0, sharers & ~me
    lines.state[line].sharers = me
    lines.state[line].owner = np.uint64(rank)
    if lines.cached.shape[1]:
        if others:
            _drop(lines, others, line)
        _keep(lines, rank, line)
    near_s, far_s = lines.claim_s[0], lines.claim_s[1]  # all are looked up, one is taken: no branches, as above
    fetch_s, forgotten_s = lines.fetch_s[rank, owner], lines.forgotten_s[rank, rank]
    claim_s = far_s if others & lines.remote[rank] else near_s
    claim_s = claim_s if others else 0.0
    clash = (not held) & (others != 0) & (owner < np.uint64(len(lines.cached))) & (owner != np.uint64(rank))
    miss_s = fetch_s if clash else forgotten_s
    return (claim_s if held else miss_s), clash


@njit(**INLINE)
def arrival_s(lines: Any, line: int, cost_s: float, now_s: float) -> float:
    """From now until a line is there that has just been read or written at some cost: after it came to those before."""
    free_s = lines.state[line].free_s
    moved = (cost_s > 0.0) & (lines.state[line].owner < np.uint64(len(lines.cached)))
    begin_s = max(now_s, free_s)
    lines.state[line].free_s = begin_s + cost_s if moved else free_s
    return begin_s - now_s + cost_s if moved else cost_s


@njit(**INLINE)
def _lines_of(base, j, block, shift):
    """First and last line of a coordinate of `block` parameters, 2^shift to a line, of a model from `base`."""
    first = np.uint64(np.uint32(j)) * block
    return base + (first >> shift), base + ((first + block - np.uint64(1)) >> shift)


@njit(**INLINE)
def read_lines_s(lines, base, rank, touched, nonzeros, costs, now_s):
    """Let `rank` hold every line it reads, and a row of so many nonzeros pass; returns the stall in seconds."""
    pass_row(lines, rank, costs.row_lines, nonzeros)
    total = last_s = 0.0
    if costs.block == 1:  # a loop of its own: one line each
        for j in touched:
            line = base + (np.uint64(np.uint32(j)) >> costs.line_shift)
            cost = read_line(lines, rank, line)
            total += cost
            last_s = max(last_s, arrival_s(lines, line, cost, now_s))
        return max(last_s, total / lines.outstanding_misses)
    for j in touched:
        first, last = _lines_of(base, j, costs.block, costs.line_shift)
        for line in range(first, last + np.uint64(1)):
            cost = read_line(lines, rank, line)
            total += cost
            last_s = max(last_s, arrival_s(lines, line, cost, now_s))
    return max(last_s, total / lines.outstanding_misses)


@njit(**INLINE)
def write_lines_s(lines, base, rank, touched, block, shift, now_s):
    """Let `rank` alone hold every line it writes; returns the stall in seconds."""
    missed = clashed = last_s = 0.0
    if block == 1:
        for j in touched:
            line = base + (np.uint64(np.uint32(j)) >> shift)
            cost, clash = write_line(lines, rank, line)
            missed += 0.0 if clash else cost
            clashed += cost if clash else 0.0
            last_s = max(last_s, arrival_s(lines, line, cost, now_s))
        return max(last_s, missed / lines.outstanding_misses + clashed / lines.outstanding_clashes)
    for j in touched:
        first, last = _lines_of(base, j, block, shift)
        for line in range(first, last + np.uint64(1)):
            cost, clash = write_line(lines, rank, line)
            missed += 0.0 if clash else cost
            clashed += cost if clash else 0.0
            last_s = max(last_s, arrival_s(lines, line, cost, now_s))
    return max(last_s, missed / lines.outstanding_misses + clashed / lines.outstanding_clashes)


@njit(**INLINE)
def add_atomically_s(lines, base, rank, touched, block, shift, now_s):
    """Let `rank` alone hold every line it adds to, one after the other; returns the stall in seconds."""
    total = waited = 0.0
    for j in touched:
        first, last = _lines_of(base, j, block, shift)
        for line in range(first, last + np.uint64(1)):
            cost, _ = write_line(lines, rank, line)
            total += cost
            waited = max(waited, arrival_s(lines, line, cost, now_s) - cost)
    return waited + total / lines.outstanding_atomics


@njit(nogil=True, cache=True)
def _read_range(lines: Any, rank: int, first: int, stop: int, now_s: float) -> tuple[float, float]:
    """Read lines one after the other; the seconds of all, and until the last is there."""
    total = dearest = 0.0
    for line in range(np.uint64(first), np.uint64(stop)):
        cost = read_line(lines, rank, line)
        total += cost
        dearest = max(dearest, arrival_s(lines, line, cost, now_s))
    return total, dearest


@njit(nogil=True, cache=True)
def _write_range(lines: Any, rank: int, first: int, stop: int, now_s: float) -> tuple[float, float]:
    """Write lines one after the other; the seconds of all, and until the last is there."""
    total = dearest = 0.0
    for line in range(np.uint64(first), np.uint64(stop)):
        cost, _ = write_line(lines, rank, line)
        total += cost
        dearest = max(dearest, arrival_s(lines, line, cost, now_s))
    return total, dearest


class CacheLines:
    """All cache lines of a simulated machine that its ranks share.

    Args:
        memory: what lines cost.
    """

    def __init__(self, memory: SharedMemory, num_ranks: int) -> None:
        self._memory, self._capacity = memory, memory.cache_bytes // memory.line_bytes
        ranks, sockets = range(num_ranks), range(memory.sockets)
        fetch_s = [
            [*(memory.fetch_s(rank, owner) for owner in ranks), *(memory.load_s(rank, home) for home in sockets)]
            for rank in ranks
        ]
        self._own: dict[int, CoreCache] = {}  # by rank, of models that it alone has
        self.native = Lines(
            np.zeros(0, LINE),
            np.zeros((num_ranks, 0, 0), np.uint64),
            np.zeros(0, np.int64),
            np.full(num_ranks, NOWHERE),
            np.array([memory.remote_ranks(rank, num_ranks) for rank in ranks], np.uint64),
            np.array(fetch_s),
            np.array([[memory.forgotten_s(rank, owner) for owner in ranks] for rank in ranks]),
            np.array([memory.same_socket_s, memory.cross_socket_s], float),
            float(memory.outstanding_misses),
            float(memory.outstanding_clashes),
            float(memory.outstanding_atomics),
            memory.migrates,
        )

    def add(self, num_bytes: int, node: int | None) -> int:
        """Lines for a tensor that begins on one, in the memory of a node or as the policy says; returns the first."""
        memory, num_ranks, first = self._memory, len(self.native.cached), len(self.native.state)
        count = -(-num_bytes // memory.line_bytes)
        fresh = np.zeros(count, LINE)
        fresh["owner"] = num_ranks + memory.homes(count, node)
        self.native = self.native._replace(state=np.concatenate([self.native.state, fresh]))
        if first + count > self._capacity:
            if not len(self.native.set_of):
                self._limit(first)
            sets = sets_of(count, self.native.cached.shape[1], memory.line_bytes, first)
            self.native = self.native._replace(set_of=np.concatenate([self.native.set_of, sets]))
        return first

    def read_s(self, rank: int, ranges: Sequence[tuple[int, int]], now_s: float) -> float:
        """Let a rank hold lines, first to stop - 1 of each range; returns the stall in seconds."""
        return self._stall_s([_read_range(self.native, rank, *span, now_s) for span in ranges])

    def write_s(self, rank: int, ranges: Sequence[tuple[int, int]], now_s: float) -> float:
        """Let a rank alone hold lines, first to stop - 1 of each range; returns the stall in seconds."""
        return self._stall_s([_write_range(self.native, rank, *span, now_s) for span in ranges])

    def forgotten_s(self, rank: int, model: torch.Tensor, kernel: Kernel, samples: torch.Tensor) -> float:
        """Seconds by which a kernel takes longer on a model of the rank's own that its cache cannot hold."""
        memory = self._memory
        if model.nbytes <= memory.cache_bytes:
            return 0.0
        cache = self._own.setdefault(rank, CoreCache(memory.cache_bytes, memory.line_bytes))
        found, each_s = cache.misses(model, kernel, samples), memory.shared_cache_s
        return float(np.maximum(each_s * (found > 0), found * each_s / memory.outstanding_misses).sum())

    def _limit(self, count: int) -> None:
        """Give every rank a cache that forgets; until now all held whatever they had read of `count` lines."""
        memory, num_ranks = self._memory, len(self.native.cached)
        self.native.state["sharers"] = 0
        cached = empty(num_ranks, memory.cache_bytes, memory.line_bytes)
        sets = sets_of(count, cached.shape[1], memory.line_bytes, 0)
        self.native = self.native._replace(cached=cached, set_of=sets)

    def _stall_s(self, costs: Sequence[tuple[float, float]]) -> float:
        """Misses of one operator overlap, like those of one sample."""
        total, dearest = sum(total for total, _ in costs), max((dearest for _, dearest in costs), default=0.0)
        return max(dearest, total / self._memory.outstanding_misses)
