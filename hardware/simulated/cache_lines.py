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

from typing import Any, NamedTuple

import numpy as np
from numba import njit

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
        claim_s: to make copies on the same socket, and on others, go: shape (2,).
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


@njit(nogil=True)
def _holds(lines: Any, rank: int, line: int) -> bool:
    """Whether a copy of the line is in a rank's cache."""
    sharers = lines.state[line].sharers
    if not (sharers >> np.uint64(rank)) & np.uint64(1):
        return False
    places = np.uint64(lines.cached.shape[1])
    return places == 0 or lines.cached[rank, line % places] == line


@njit(nogil=True)
def _keep(lines: Any, rank: int, line: int) -> None:
    """Put a line into a rank's cache, in the place of another."""
    places = np.uint64(lines.cached.shape[1])
    if places:
        lines.cached[rank, line % places] = line


@njit(nogil=True)
def read_line(lines: Any, rank: int, line: int) -> float:
    """Let a rank hold a line; returns the seconds of the miss, 0 for a hit."""
    if _holds(lines, rank, line):
        return 0.0
    me, owner = np.uint64(1) << np.uint64(rank), lines.state[line].owner
    _keep(lines, rank, line)
    if owner >= len(lines.cached):
        lines.state[line].sharers |= me
        return lines.fetch_s[rank, owner]
    if owner == rank or not _holds(lines, owner, line):
        lines.state[line].sharers = me
        lines.state[line].owner = rank
        return lines.forgotten_s[rank, owner]
    alone = lines.state[line].sharers == np.uint64(1) << owner
    if lines.migrates and alone:
        lines.state[line].sharers = me
        lines.state[line].owner = rank
    else:
        lines.state[line].sharers |= me
    return lines.fetch_s[rank, owner]


@njit(nogil=True)
def write_line(lines: Any, rank: int, line: int) -> tuple[float, bool]:
    """Let a rank alone hold a line that it has read before; returns the seconds, and whether it was a clash."""
    me, owner = np.uint64(1) << np.uint64(rank), lines.state[line].owner
    others, held = lines.state[line].sharers & ~me, _holds(lines, rank, line)
    lines.state[line].sharers = me
    lines.state[line].owner = rank
    _keep(lines, rank, line)
    if held:
        if others == 0:
            return 0.0, False
        return lines.claim_s[1 if others & lines.remote[rank] else 0], False
    if others == 0 or owner >= len(lines.cached) or owner == rank:
        return lines.forgotten_s[rank, rank], False
    return lines.fetch_s[rank, owner], True
