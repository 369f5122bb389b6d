"""What is counted of simulated updates, and what is lost, compiled.

What others have stored in a coordinate between load and store is *lost*: overwritten by an addition that does not know
of it. The gap is the stall of the write, nothing else; it closes where no line travels. An `atomic` addition loads at
its store, so none is lost; under locks nobody else stores meanwhile. All loads of an update are at the beginning and
all stores at the end of its stall, though a core stores what has come first earlier: what is lost is an upper bound.
"""

from typing import NamedTuple

import numpy as np
from numba import njit

from harness.kernels.native import INLINE

STALENESS_BINS = 4096  # the last one holds all beyond
COORDINATE = np.dtype([("version", np.int64), ("additions", np.int64)])  # update that wrote it last; what is in it
TALLY = np.dtype([(name, np.int64) for name in ("updates", "conflicts", "staleness", "stalest", "additions", "lost")])


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


@njit(**INLINE)
def load(values, additions, weights, written, base, touched, block):
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


@njit(**INLINE)
def put_back(values, additions, weights, written, base, touched, block, loaded):
    """Let coordinates that were written after update `loaded` be what they were when they were loaded.

    Returns:
        by how many additions the model is poorer for it.
    """
    lost = np.int64(0)
    for position in range(np.uint64(len(touched))):  # no branches: what is late alternates unpredictably
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


@njit(**INLINE)
def _mark(written, base, version, touched):
    """Note that update `version` adds to these coordinates; returns the latest update that did before."""
    latest = np.int64(0)
    for j in touched:
        coordinate = base + np.uint64(np.uint32(j))
        latest = max(latest, written[coordinate].version)
        written[coordinate].version = version
        written[coordinate].additions += 1
    return latest


@njit(**INLINE)
def count_update(ledger, worker, touched):
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
