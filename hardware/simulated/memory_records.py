"""What the inner loop of shared memory (memory_loop.py) knows of each worker, and what decides its seconds."""

from typing import NamedTuple

import numpy as np

NOBODY = -1

BEGIN, READ, WRITE, STORE = range(4)  # a worker's next event

WORKER = np.dtype(
    [
        ("next_s", np.float64),  # virtual time of its next event, inf without a chunk or while it waits for a lock
        ("finish_s", np.float64),  # when its last chunk ended
        ("since_s", np.float64),  # since when it waits for a lock, inf if it does not
        ("looked_s", np.float64),  # when it last found the lock held
        ("waited_s", np.float64),  # for locks, in its chunk
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
        ("row_s", np.float64),  # until the row of a sample has come from where it lies
        ("row_nonzero_s", np.float64),  # the same, each of its nonzeros
        ("event", np.int64),  # what its next event is
    ],
    align=True,
)


class Costs(NamedTuple):
    """Seconds, and what decides them."""

    sample_s: float
    nonzero_s: float  # of a coordinate whose row is at hand
    delay_s: float
    atomic_s: float
    wake_s: float
    sleep_s: float
    doze_s: float
    futex_s: float
    lock_s: float
    spin_s: float
    yield_s: float
    line_shift: np.uint64  # log2 of the parameters in a line
    block: np.uint64  # parameters in a coordinate
    row_lines: tuple[float, float]  # of a row, and of each of its nonzeros, that pass through a cache
