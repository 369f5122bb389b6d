"""All of a network's state, in flat arrays that compiled code reads and writes; and making room in them."""

from functools import partial
from typing import NamedTuple

import numpy as np

from hardware.simulated.network.base import Network

PAUSED, ENDED, FEW_TRANSFERS = range(3)  # why `run` returns
STARTS, FLOWS, TRAVELS = range(3)  # kinds of a transfer; the start of a job is one, too
HEAP, FREE, READY, OVER, DIRTY, SEQUENCE, MARK, CHANGE = range(8)  # of `State.counts`

_RANKS, _TRANSFERS, _HOPS, _WINDOW, _JOBS, _SENDS = 64, 256, 4, 8, 16, 256  # capacities to begin with

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


def idle(network: Network, names: list[str], bandwidth: np.ndarray) -> State:
    """Links with nothing under way; links of `background` and `changes` that there are not are left out."""
    index = {name: i for i, name in enumerate(names)}
    taken = np.zeros(len(names))
    for name, rate in network.background.items():
        if name in index:
            taken[index[name]] = rate
    links = np.zeros(len(names), LINK)
    links["capacity"], links["head"] = bandwidth - taken, -1
    changes = sorted(
        (time_s, index[name], max(0.0, bandwidth[index[name]] * factor - taken[index[name]]))
        for name, factors in network.changes.items()
        if name in index
        for time_s, factor in factors.items()
    )
    change_s, change_link, change_capacity = np.array(changes, float).reshape(-1, 3).T
    integers = partial(np.zeros, dtype=np.int64)
    count = integers(8)
    count[FREE] = _TRANSFERS
    return State(
        clock=np.array([0.0, np.inf]),
        counts=count,
        links=links,
        transfers=np.zeros(_TRANSFERS, TRANSFER),
        heap=integers(_TRANSFERS),
        free=np.arange(_TRANSFERS),
        nodes=integers((_TRANSFERS, _HOPS, 2)),
        ranks=np.zeros(_RANKS, RANK),
        window=integers((_RANKS, _WINDOW)),
        ready=integers(_RANKS),
        over=integers(_RANKS),
        jobs=np.zeros(_JOBS, JOB),
        sends=np.zeros(_SENDS, SEND),
        routes=integers(_SENDS),
        offsets=integers(_SENDS),
        expect=integers(_SENDS),
        until=integers(_SENDS),
        dirty=integers(len(names)),
        component=integers(len(names)),
        members=integers(_TRANSFERS),
        change_s=change_s.copy(),
        change_link=change_link.astype(np.int64),
        change_capacity=change_capacity.copy(),
    )


def longer(array: np.ndarray) -> np.ndarray:
    """Twice as long, the new half zero."""
    return np.concatenate([array, np.zeros_like(array)])


def more_transfers(s: State) -> State:
    """Twice the transfers."""
    size, free = len(s.transfers), longer(s.free)
    count = s.counts[FREE]
    free[count : count + size] = np.arange(size, 2 * size)
    s.counts[FREE] += size
    return s._replace(
        transfers=longer(s.transfers),
        heap=longer(s.heap),
        free=free,
        nodes=longer(s.nodes),
        members=longer(s.members),
    )


def more_hops(s: State, hops: int) -> State:
    """Nodes for routes of so many hops."""
    before = s.nodes.shape[1]
    if hops <= before:
        return s
    nodes = np.zeros((len(s.nodes), hops, 2), np.int64)
    nodes[:, :before] = _renumbered(s.nodes, before, hops)
    s.links["head"] = _renumbered(s.links["head"], before, hops)
    return s._replace(nodes=nodes)


def _renumbered(nodes: np.ndarray, before: int, hops: int) -> np.ndarray:
    return np.where(nodes >= 0, nodes // before * hops + nodes % before, nodes)


def wider_window(s: State) -> State:
    """Twice the steps."""
    width = s.window.shape[1]
    window = np.zeros((len(s.window), 2 * width), np.int64)
    steps = s.ranks["prefix"][:, None] + np.arange(width)
    rows = np.arange(len(s.window))[:, None]
    window[rows, steps & (2 * width - 1)] = s.window[rows, steps & (width - 1)]
    return s._replace(window=window)


class Appended:
    """The arrays of all programs, which grow at their end.

    Attributes:
        used: entries of each, by name.
    """

    def __init__(self) -> None:
        self.used = dict.fromkeys(("sends", "routes", "offsets", "expect", "until"), 0)

    def append(self, s: State, **rows: np.ndarray) -> State:
        """Append to each of the arrays."""
        for name, values in rows.items():
            begin, array = self.used[name], getattr(s, name)
            self.used[name] = end = begin + len(values)
            if end > len(array):
                while end > len(array):
                    array = longer(array)
                s = s._replace(**{name: array})
            array[begin:end] = values
        return s


def moved(s: State, begins: np.ndarray, shifts: np.ndarray) -> None:
    """The programs of jobs have moved.

    Args:
        begins: of each job's offsets, expectations and rounds, shape (jobs, 3).
        shifts: of its routes, shape (jobs,).
    """
    s.jobs["offsets"], s.jobs["expect"], s.jobs["until"] = begins.T
    flowing = s.transfers["kind"] == FLOWS
    s.transfers["route"][flowing] += shifts[s.ranks["job"][s.transfers["source"][flowing]]]
