"""All of a network's state, in flat arrays that compiled code reads and writes."""

from typing import NamedTuple

import numpy as np

PAUSED, ENDED, FEW_TRANSFERS = range(3)  # why `run` returns
STARTS, FLOWS, TRAVELS = range(3)  # kinds of a transfer; the start of a job is one, too
HEAP, FREE, READY, OVER, DIRTY, SEQUENCE, MARK, CHANGE = range(8)  # of `State.counts`

LINK = np.dtype(
    [(name, "f8") for name in ("capacity", "left", "since_s", "busy_s", "wire_bytes", "payload_bytes")]
    + [(name, "i8") for name in ("flows", "open", "head", "mark", "dirty")]
)
TRANSFER = np.dtype(
    [(name, "f8") for name in ("key", "latency_s", "left_bytes", "rate", "new_rate", "since_s")]
    + [
        (name, "i8")
        for name in ("kind", "sequence", "position", "mark", "source", "destination", "step", "route", "hops")
    ]
)
SEND = np.dtype(
    [(name, "f8") for name in ("wire_bytes", "payload_bytes", "latency_s")]
    + [(name, "i8") for name in ("destination", "route", "hops")]
)
RANK = np.dtype(
    [(name, "i8") for name in ("job", "step", "round", "sending", "prefix", "prefix_round", "queued", "over")]
    + [(name, "i8") for name in ("waits", "first_waiter", "next_waiter")]
)
JOB = np.dtype([(name, "i8") for name in ("ranks", "first", "depth", "steps", "offsets", "expect", "until", "busy")])


class State(NamedTuple):
    """All of a network's state.

    Transfers are chained per link: node `transfer * hops + hop` of `nodes` has the next and previous node.
    """

    clock: np.ndarray  # (2,) virtual time in s: now, and of the next event
    counts: np.ndarray  # (8,) lengths of the lists below, and counters
    links: np.ndarray  # (links,) LINK
    transfers: np.ndarray  # (transfers,) TRANSFER
    heap: np.ndarray  # (transfers,) by key, then sequence
    free: np.ndarray  # (transfers,) a stack
    nodes: np.ndarray  # (transfers, hops, 2)
    ranks: np.ndarray  # (ranks,) RANK
    window: np.ndarray  # (ranks, steps) arrivals of the steps from a rank's prefix on; a power of two >= any depth
    ready: np.ndarray  # (ranks,) a stack of those that may be able to go on
    over: np.ndarray  # (ranks,) those that have ended
    jobs: np.ndarray  # (jobs,) JOB
    sends: np.ndarray  # SEND, of all programs
    routes: np.ndarray  # links, of all sends
    offsets: np.ndarray  # per round and rank, the first of its sends
    expect: np.ndarray  # per round and rank, how many transfers it takes part in
    until: np.ndarray  # per round, the step after its last
    dirty: np.ndarray  # (links,) those whose transfers have changed
    component: np.ndarray  # (links,)
    members: np.ndarray  # (transfers,)
    change_s: np.ndarray  # (changes,) virtual times, ascending
    change_link: np.ndarray  # (changes,)
    change_capacity: np.ndarray  # (changes,) bytes/s from then on
