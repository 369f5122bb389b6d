"""What cache lines cost that several cores write, compiled.

A line has an owner, the core that wrote it last (or the socket whose memory it lies in), and sharers, the cores that
hold a copy. A core also forgets: its own cache is direct-mapped, so that a line goes when another one takes its place.

    hit     the core holds the line: no cost beyond the kernel's own
    miss    the line is read from its owner's cache, on the same socket or across; from the cache that the cores of its
            socket share, if it was written and forgotten since; else from memory
    claim   the core holds a copy, as others do, and writes: theirs must go first, which costs as much as a miss
    clash   the core held the line when it read, and another one has taken it since: at the write it must come back

Misses and claims of one update overlap: n of them take sum / outstanding_misses, but at least the dearest. Clashes
overlap less, sum / outstanding_clashes: stores leave a core in order, and loads that a core has done ahead on a line
that it then loses are done again. Where lines *migrate*, one that another core has written comes to its reader as the
reader's own, and its write is no claim (Stenstrom, Brorsson, Sandberg, ISCA 1993); else reading leaves both a copy.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numba import njit

from hardware.simulated.memory import SharedMemory
from harness.kernels.native import INLINE

LINE = np.dtype([("sharers", np.uint64), ("owner", np.uint64)])  # bits of ranks; column of `fetch_s`
NOWHERE = np.uint64(2**63)


class Lines(NamedTuple):
    """The lines of all models, and who holds them.

    Args:
        state: LINE records.
        cached: the line in each place of each rank's own cache, shape (ranks, places); (ranks, 0) where nothing is ever
            forgotten.
        remote: bits of the ranks on other sockets than each rank's, shape (ranks,).
        fetch_s: by reader and owner, the last columns from memory: shape (ranks, ranks + sockets).
        forgotten_s: by reader and owner, of a line that its owner's cache has forgotten, shape (ranks, ranks).
        claim_s: to make copies go, by whether some are on other sockets, shape (2,).
        outstanding_misses, outstanding_clashes: that overlap.
        migrates: whether a written line comes to its reader as the reader's own.
    """

    state: np.ndarray
    cached: np.ndarray
    remote: np.ndarray
    fetch_s: np.ndarray
    forgotten_s: np.ndarray
    claim_s: np.ndarray
    outstanding_misses: float
    outstanding_clashes: float
    migrates: bool


@njit(**INLINE)
def _holds(lines: Any, rank: int, line: int) -> bool:
    """Whether a copy of the line is in a rank's cache."""
    sharers = lines.state[line].sharers
    if not (sharers >> np.uint64(rank)) & np.uint64(1):
        return False
    places = np.uint64(lines.cached.shape[1])
    return places == 0 or lines.cached[rank, line % places] == line


@njit(**INLINE)
def _keep(lines: Any, rank: int, line: int) -> None:
    """Put a line into a rank's cache, in the place of another."""
    places = np.uint64(lines.cached.shape[1])
    if places:
        lines.cached[rank, line % places] = line


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
    if _holds(lines, rank, line):
        return 0.0
    me, owner = np.uint64(1) << np.uint64(rank), lines.state[line].owner
    _keep(lines, rank, line)
    if owner >= len(lines.cached):
        lines.state[line].sharers |= me
        return lines.fetch_s[rank, owner]
    if owner == rank or not _holds(lines, owner, line):
        lines.state[line].sharers = (lines.state[line].sharers & ~(np.uint64(1) << owner)) | me
        lines.state[line].owner = rank
        return lines.forgotten_s[rank, owner]
    alone = lines.state[line].sharers == np.uint64(1) << owner
    if lines.migrates and alone:
        lines.state[line].sharers = me
        lines.state[line].owner = rank
    else:
        lines.state[line].sharers |= me
    return lines.fetch_s[rank, owner]


@njit(**INLINE)
def write_line(lines: Any, rank: int, line: int) -> tuple[float, bool]:
    """Let a rank alone hold a line that it has read before; returns the seconds, and whether it was a clash."""
    me, sharers, owner = np.uint64(1) << np.uint64(rank), lines.state[line].sharers, lines.state[line].owner
    held = _holds(lines, rank, line) if lines.cached.shape[1] else (sharers & me) != 0
    others = sharers & ~me
    lines.state[line].sharers = me
    lines.state[line].owner = np.uint64(rank)
    _keep(lines, rank, line)
    near_s, far_s = lines.claim_s[0], lines.claim_s[1]  # all are looked up, one is taken: no branches, as above
    fetch_s, forgotten_s = lines.fetch_s[rank, owner], lines.forgotten_s[rank, rank]
    claim_s = far_s if others & lines.remote[rank] else near_s
    claim_s = claim_s if others else 0.0
    clash = (not held) & (others != 0) & (owner < np.uint64(len(lines.cached))) & (owner != np.uint64(rank))
    miss_s = fetch_s if clash else forgotten_s
    return (claim_s if held else miss_s), clash


@njit(**INLINE)
def _lines_of(base, j, block, shift):
    """First and last line of a coordinate of `block` parameters, 2^shift to a line, of a model from `base`."""
    first = np.uint64(np.uint32(j)) * block
    return base + (first >> shift), base + ((first + block - np.uint64(1)) >> shift)


@njit(**INLINE)
def read_lines_s(lines, base, rank, touched, costs):
    """Let `rank` hold every line it reads; returns the stall in seconds."""
    total = dearest = 0.0
    if costs.block == 1:  # a loop of its own: one line each
        for j in touched:
            cost = read_line(lines, rank, base + (np.uint64(np.uint32(j)) >> costs.line_shift))
            total += cost
            dearest = max(dearest, cost)
        return max(dearest, total / lines.outstanding_misses)
    for j in touched:
        first, last = _lines_of(base, j, costs.block, costs.line_shift)
        for line in range(first, last + np.uint64(1)):
            cost = read_line(lines, rank, line)
            total += cost
            dearest = max(dearest, cost)
    return max(dearest, total / lines.outstanding_misses)


@njit(**INLINE)
def write_lines_s(lines, base, rank, touched, block, shift, outstanding_clashes):
    """Let `rank` alone hold every line it writes; returns the stall in seconds."""
    missed = clashed = dearest = 0.0
    if block == 1:
        for j in touched:
            cost, clash = write_line(lines, rank, base + (np.uint64(np.uint32(j)) >> shift))
            missed += 0.0 if clash else cost
            clashed += cost if clash else 0.0
            dearest = max(dearest, cost)
        return max(dearest, missed / lines.outstanding_misses + clashed / outstanding_clashes)
    for j in touched:
        first, last = _lines_of(base, j, block, shift)
        for line in range(first, last + np.uint64(1)):
            cost, clash = write_line(lines, rank, line)
            missed += 0.0 if clash else cost
            clashed += cost if clash else 0.0
            dearest = max(dearest, cost)
    return max(dearest, missed / lines.outstanding_misses + clashed / outstanding_clashes)


@njit(nogil=True, cache=True)
def _read_range(lines: Any, rank: int, first: int, stop: int) -> tuple[float, float]:
    """Read lines one after the other; the seconds of all, and of the dearest."""
    total = dearest = 0.0
    for line in range(np.uint64(first), np.uint64(stop)):
        cost = read_line(lines, rank, line)
        total += cost
        dearest = max(dearest, cost)
    return total, dearest


@njit(nogil=True, cache=True)
def _write_range(lines: Any, rank: int, first: int, stop: int) -> tuple[float, float]:
    """Write lines one after the other; the seconds of all, and of the dearest."""
    total = dearest = 0.0
    for line in range(np.uint64(first), np.uint64(stop)):
        cost, _ = write_line(lines, rank, line)
        total += cost
        dearest = max(dearest, cost)
    return total, dearest


@njit(nogil=True, cache=True)
def _misses(cached: np.ndarray, base: int, shift: int, block: int, indptr: Any, indices: Any, samples: Any) -> Any:
    """Lines of a model of one's own that each sample finds forgotten, int64, shape (samples,).

    Args:
        cached: the line in each place of the rank's cache, shape (places,).
        base: the model's first line.
    """
    found = np.zeros(len(samples), np.int64)
    for visit in range(len(samples)):
        for position in range(indptr[samples[visit]], indptr[samples[visit] + 1]):
            first = np.uint64(np.uint32(indices[position])) * np.uint64(block)
            last = first + np.uint64(block - 1)
            for line in range(base + (first >> np.uint64(shift)), base + (last >> np.uint64(shift)) + np.uint64(1)):
                place = line % np.uint64(len(cached))
                found[visit] += cached[place] != line
                cached[place] = line
    return found


class CacheLines:
    """All cache lines of a simulated machine that its ranks share.

    Args:
        memory: what lines cost.
    """

    def __init__(self, memory: SharedMemory, num_ranks: int) -> None:
        self._memory, self._places = memory, memory.cache_bytes // memory.line_bytes
        ranks, sockets = range(num_ranks), range(memory.sockets)
        fetch_s = [
            [*(memory.fetch_s(rank, owner) for owner in ranks), *(memory.load_s(rank, home) for home in sockets)]
            for rank in ranks
        ]
        self._own = np.full((num_ranks, 0), NOWHERE)  # of models that one rank alone has
        self.native = Lines(
            np.zeros(0, LINE),
            np.zeros((num_ranks, 0), np.uint64),
            np.array([memory.remote_ranks(rank, num_ranks) for rank in ranks], np.uint64),
            np.array(fetch_s),
            np.array([[memory.forgotten_s(rank, owner) for owner in ranks] for rank in ranks]),
            np.array([memory.same_socket_s, memory.cross_socket_s], float),
            float(memory.outstanding_misses),
            float(memory.outstanding_clashes),
            memory.migrates,
        )

    def add(self, num_bytes: int, node: int | None) -> int:
        """Lines for a tensor that begins on one, in the memory of a node or as the policy says; returns the first."""
        memory, num_ranks, first = self._memory, len(self.native.cached), len(self.native.state)
        count = -(-num_bytes // memory.line_bytes)
        fresh = np.zeros(count, LINE)
        fresh["owner"] = num_ranks + memory.homes(count, node)
        self.native = self.native._replace(state=np.concatenate([self.native.state, fresh]))
        if first + count > self._places and not self.native.cached.shape[1]:
            self.native = self.native._replace(cached=np.tile(np.arange(self._places, dtype=np.uint64), (num_ranks, 1)))
        return first

    def read_s(self, rank: int, ranges: Sequence[tuple[int, int]]) -> float:
        """Let a rank hold lines, first to stop - 1 of each range; returns the stall in seconds."""
        return self._stall_s([_read_range(self.native, rank, *span) for span in ranges])

    def write_s(self, rank: int, ranges: Sequence[tuple[int, int]]) -> float:
        """Let a rank alone hold lines, first to stop - 1 of each range; returns the stall in seconds."""
        return self._stall_s([_write_range(self.native, rank, *span) for span in ranges])

    def forgotten_s(
        self, rank: int, address: int, num_bytes: int, itemsize: int, block: int, rows: Sequence[np.ndarray]
    ) -> float:
        """Seconds by which a kernel takes longer on a model of the rank's own that its cache cannot hold.

        Args:
            address: of the model.
            itemsize: bytes of a parameter.
            block: parameters of a coordinate.
            rows: indptr, indices and the samples that are visited.
        """
        memory = self._memory
        if num_bytes <= memory.cache_bytes:
            return 0.0
        if not self._own.shape[1]:
            self._own = np.full((len(self._own), self._places), NOWHERE)
        shift = (memory.line_bytes // itemsize).bit_length() - 1
        found = _misses(self._own[rank], np.uint64(address // memory.line_bytes), shift, block, *rows)
        each_s = memory.shared_cache_s
        return float(np.maximum(each_s * (found > 0), found * each_s / memory.outstanding_misses).sum())

    def _stall_s(self, costs: Sequence[tuple[float, float]]) -> float:
        """Misses of one operator overlap, like those of one sample."""
        total, dearest = sum(total for total, _ in costs), max((dearest for _, dearest in costs), default=0.0)
        return max(dearest, total / self._memory.outstanding_misses)
