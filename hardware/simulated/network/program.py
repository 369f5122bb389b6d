"""A plan on given devices of given links, as the solver reads it."""

from dataclasses import dataclass

import numpy as np

from hardware.simulated.network import arrays
from hardware.simulated.network.base import Wires
from hardware.simulated.network.plans import Plan, Step


@dataclass(frozen=True, eq=False)
class Program:
    """A plan, transfer by transfer.

    Args:
        plan: what it was made of.
        until: per round, the step after its last, shape (rounds,).
        sends: of all rounds, by round and source, shape (sends,), `arrays.SEND`; routes begin in `routes`.
        routes: links, shape (hops,).
        offsets: per round and rank, the first of its sends, and the end, shape (rounds, ranks + 1).
        expect: per round and rank, how many transfers it takes part in, shape (rounds, ranks).
    """

    plan: Plan
    until: np.ndarray
    sends: np.ndarray
    routes: np.ndarray
    offsets: np.ndarray
    expect: np.ndarray

    @property
    def nbytes(self) -> int:
        """Of its arrays."""
        return self.sends.nbytes + self.routes.nbytes + self.offsets.nbytes + self.expect.nbytes

    @property
    def num_steps(self) -> int:
        """Of the plan."""
        return int(self.until[-1]) if len(self.until) else 0


def program(plan: Plan, devices: np.ndarray, wires: Wires) -> Program:
    """Look up the routes of a plan."""
    tables = [_sends(step, plan, devices, wires) for step, _ in plan.rounds]
    empty = np.zeros(0, arrays.SEND), np.zeros(0, np.int64), np.zeros(plan.num_ranks, np.int64)
    sends, routes, counts = zip(*(tables or [empty]), strict=True)
    receives = [np.bincount(step.destinations, minlength=plan.num_ranks) for step, _ in plan.rounds]
    expect = [sent + received for sent, received in zip(counts, receives, strict=False)]
    begins = np.cumsum([0, *map(len, sends)])
    route_begins = np.cumsum([0, *map(len, routes)])
    for table, begin in zip(sends, route_begins, strict=False):
        table["route"] += begin
    return Program(
        plan,
        np.cumsum([times for _, times in plan.rounds], dtype=np.int64),
        np.concatenate(sends),
        np.concatenate(routes),
        np.array([begin + np.append(0, np.cumsum(count)) for begin, count in zip(begins, counts, strict=False)]),
        np.array(expect, np.int64).reshape(len(plan.rounds), plan.num_ranks),
    )


def lockstep_s(made: Program, capacity: np.ndarray) -> float | None:
    """Seconds in which the program ends where all ranks do the same at the same time on links of their own.

    Then a step takes tau to leave and alpha to arrive. With d steps under way of N: step t begins at t tau where
    d tau >= tau + alpha, else step q d + r begins at q (tau + alpha) + r tau.

    Args:
        capacity: of every link in bytes/s.

    Returns:
        None where it is not so.
    """
    paces = []
    for index in range(len(made.until)):
        pace = _pace(made, index, capacity)
        if pace is None:
            return None
        paces.append(pace)
    steps = [times for _, times in made.plan.rounds]
    if made.plan.depth == 1:
        return sum(times * (tau + alpha) for times, (tau, alpha) in zip(steps, paces, strict=True))
    if len(set(paces)) != 1:
        return None
    ((tau, alpha),) = set(paces)
    last, depth = made.num_steps - 1, made.plan.depth
    if depth * tau >= tau + alpha:
        return last * tau + tau + alpha
    return last // depth * (tau + alpha) + last % depth * tau + tau + alpha


def _pace(made: Program, index: int, capacity: np.ndarray) -> tuple[float, float] | None:
    """Seconds to leave and to arrive of every transfer of a round, if they are the same and share no link."""
    offsets, num_ranks = made.offsets[index], made.plan.num_ranks
    sends = made.sends[offsets[0] : offsets[-1]]
    if len(sends) != num_ranks or (np.diff(offsets) != 1).any() or (made.expect[index] != 2).any():
        return None
    first, latency_s = sends["wire_bytes"][0], sends["latency_s"][0]
    if (sends["wire_bytes"] != first).any() or (sends["latency_s"] != latency_s).any():
        return None
    begin, end = int(sends["route"][0]), int(sends["route"][-1] + sends["hops"][-1])
    if (capacity[made.routes[begin:end]] <= 0).any():
        return None
    if first == 0 or sends["hops"].max() == 0:
        return 0.0, float(latency_s)
    links, hops = made.routes[begin:end], sends["hops"]
    if hops.min() == 0 or np.bincount(links).max() > 1:
        return None
    rate = np.minimum.reduceat(capacity[links], sends["route"] - begin)
    if (rate != rate[0]).any():
        return None
    return float(first / rate[0]), float(latency_s)


def _sends(step: Step, plan: Plan, devices: np.ndarray, wires: Wires) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The transfers of a step by source, their routes one after the other, and how many each rank sends."""
    order = np.argsort(step.sources, kind="stable")
    sources, destinations = step.sources[order], step.destinations[order]
    route = wires.route(devices[sources], devices[destinations])
    route[devices[sources] == devices[destinations]] = -1
    used = route >= 0
    routed_s = np.where(used, wires.latency_s[route], 0.0).sum(1)
    sends = np.zeros(len(order), arrays.SEND)
    sends["payload_bytes"] = step.payload_bytes[order]
    sends["wire_bytes"] = sends["payload_bytes"] / plan.efficiency
    sends["latency_s"] = plan.latencies_s(Step(sources, destinations, sends["payload_bytes"]), routed_s)
    sends["destination"], sends["hops"] = destinations, used.sum(1)
    sends["route"] = np.append(0, np.cumsum(sends["hops"]))[:-1]
    return sends, route[used], np.bincount(sources, minlength=plan.num_ranks)
