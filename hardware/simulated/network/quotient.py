"""A plan that alike groups carry out at the same time, transfer by transfer, with one for each that must be alike.

Translations (`symmetry.py`) that move a plan and its siblings to themselves, and links to links, leave every transfer
and its translated ones with the same rate at all times, since max-min fair rates are unique. So one of them is solved
for all, on one link for all that it is moved to. That they do so is checked transfer by transfer and link by link, in
the manner of an equitable partition (Godsil and Royle, Algebraic Graph Theory, 2001, section 9.3): every transfer of a
kind crosses as many links of each kind, and every link of a kind is crossed by as many transfers of each kind.
"""

from dataclasses import dataclass, replace

import numpy as np

from hardware.simulated.network import arrays
from hardware.simulated.network.base import Wires
from hardware.simulated.network.plans import Plan, Step
from hardware.simulated.network.program import Program
from hardware.simulated.symmetry import Symmetry


@dataclass(frozen=True, eq=False)
class Quotient:
    """One transfer for all alike.

    Args:
        program: of the first rank of each class.
        ranks: of the run, one for each rank of the program.
        links: that it uses, by the first of their kind.
    """

    program: Program
    ranks: np.ndarray
    links: np.ndarray


class LinkKinds:
    """Which links are moved to each other, as far as it is known from the transfers seen so far.

    Attributes:
        first: of each link, the first one of its kind, shape (links,).
    """

    def __init__(self, wires: Wires, capacity: np.ndarray) -> None:
        self.first = np.arange(len(capacity))
        self._used = np.zeros(len(capacity), bool)
        self._wires, self._capacity = wires, capacity

    def join(self, together: np.ndarray) -> bool:
        """Learn which links are of one kind; kinds that are in use do not change.

        Args:
            together: links, shape (kinds, links); those of a row are of one kind.

        Returns:
            whether they can be, and each kind's links are told apart by nothing.
        """
        rows = np.repeat(np.arange(len(together)), together.shape[1])
        links, first = together.ravel(), self.first.copy()
        while True:
            least = np.full(len(together), len(first))
            np.minimum.at(least, rows, first[links])
            joined = first.copy()
            np.minimum.at(joined, links, least[rows])
            joined = joined[joined]
            if np.array_equal(joined, first):
                break
            first = joined
        if (first[self._used] != self.first[self._used]).any():
            return False
        for values in (self._capacity, self._wires.latency_s):
            if (values[links] != values[first[links]]).any():
                return False
        self.first = first
        self._used[links] = True
        return True


def quotient(plan: Plan, siblings: np.ndarray, symmetry: Symmetry, wires: Wires, kinds: LinkKinds) -> Quotient | None:
    """What is left of a plan if one rank stands for all it can be moved to; None where they do not do the same.

    Args:
        plan: of each group.
        siblings: their ranks, shape (groups, ranks).
    """
    found = [_Transfers.of(step, plan, siblings, symmetry, wires) for step, _ in plan.rounds]
    if not all(each is not None and each.join(kinds) for each in found):
        return None
    ranks = np.unique(symmetry.classes[siblings])
    tables = [each.sends(np.searchsorted(ranks, symmetry.classes), kinds) for each in found if each is not None]
    if any(table is None for table in tables):
        return None
    return _assembled(plan, ranks, [table for table in tables if table is not None])


@dataclass(frozen=True, eq=False)
class _Transfers:
    """The transfers of one step, by kind and translation.

    Args:
        sources, destinations: of the run, shape (kinds, translations); the first of each row is to stand for it.
        payload_bytes, latency_s: of each kind, shape (kinds,).
        routes: shape (kinds, translations, hops), -1 where there is none.
        efficiency: payload over bytes on the wire.
    """

    sources: np.ndarray
    destinations: np.ndarray
    payload_bytes: np.ndarray
    latency_s: np.ndarray
    routes: np.ndarray
    efficiency: float

    @staticmethod
    def of(step: Step, plan: Plan, siblings: np.ndarray, symmetry: Symmetry, wires: Wires) -> "_Transfers | None":
        """Those of all siblings; None where some transfer is moved to none."""
        sources, destinations = siblings[:, step.sources].ravel(), siblings[:, step.destinations].ravel()
        payload_bytes = np.tile(step.payload_bytes, len(siblings))
        elements = symmetry.elements[sources]
        back = symmetry.moved_back(destinations, elements)
        kind = symmetry.classes[sources] * symmetry.num_ranks + back
        order = np.lexsort((elements, kind))
        if len(order) % symmetry.size:
            return None
        order = order.reshape(-1, symmetry.size)
        grid = kind[order]
        alike = (grid == grid[:, :1]).all() and (elements[order] == np.arange(symmetry.size)).all()
        if not alike or (payload_bytes[order] != payload_bytes[order[:, :1]]).any():
            return None
        route = wires.route(sources, destinations)
        route[sources == destinations] = -1
        routed_s = np.where(route >= 0, wires.latency_s[route], 0.0).sum(1)
        latency_s = plan.latencies_s(step, routed_s.reshape(len(siblings), -1)).ravel()
        routes, latency_s = route[order], latency_s[order]
        if ((routes < 0) != (routes[:, :1] < 0)).any() or (latency_s != latency_s[:, :1]).any():
            return None
        first = payload_bytes[order[:, 0]], latency_s[:, 0]
        return _Transfers(sources[order], destinations[order], *first, routes, plan.efficiency)

    def join(self, kinds: LinkKinds) -> bool:
        """Tell which links are moved to each other."""
        by_hop = np.moveaxis(self.routes, 2, 1).reshape(-1, self.routes.shape[1])  # (kinds x hops, translations)
        used = by_hop[by_hop[:, 0] >= 0]
        return not len(used) or kinds.join(used)

    def sends(self, index: np.ndarray, kinds: LinkKinds) -> "_Table | None":
        """One for each kind; None where links of a kind are not crossed alike.

        Args:
            index: of each rank of the run, the rank of the program that stands for it.
        """
        sizes = np.bincount(kinds.first, minlength=len(kinds.first))
        by_hop = np.sort(np.moveaxis(self.routes, 2, 1), axis=2)  # (kinds, hops, translations)
        times = self.routes.shape[1] // np.maximum(1, 1 + (np.diff(by_hop, axis=2) > 0).sum(2))  # a link is crossed
        first = np.where(by_hop[..., 0] >= 0, kinds.first[by_hop[..., 0]], -1)  # (kinds, hops)
        used = first >= 0
        if (times * np.where(used, sizes[first], 0) != np.where(used, self.routes.shape[1], 0)).any():
            return None
        for many in np.unique(times[used]):
            rows = by_hop[used & (times == many)]
            if (rows.reshape(len(rows), -1, many) != rows[:, ::many, None]).any():
                return None
        order = np.argsort(index[self.sources[:, 0]], kind="stable")
        hops = np.where(used, times, 0)[order]
        table = np.zeros(len(order), arrays.SEND)
        table["payload_bytes"] = self.payload_bytes[order]
        table["wire_bytes"] = table["payload_bytes"] / self.efficiency
        table["latency_s"], table["hops"] = self.latency_s[order], hops.sum(1)
        table["destination"] = index[self.destinations[order, 0]]
        return _Table(index[self.sources[order, 0]], table, np.repeat(first[order].ravel(), hops.ravel()))


@dataclass(frozen=True, eq=False)
class _Table:
    """What a step sends, by source.

    Args:
        sources: ranks of the program, shape (sends,).
        sends: `arrays.SEND`, without where routes begin.
        routes: links, one route after the other.
    """

    sources: np.ndarray
    sends: np.ndarray
    routes: np.ndarray


def _assembled(plan: Plan, ranks: np.ndarray, tables: list[_Table]) -> Quotient:
    num_ranks, rounds = len(ranks), []
    expect, offsets, sends = [], [], [np.zeros(0, arrays.SEND)]
    begin = 0
    for table, (_, times) in zip(tables, plan.rounds, strict=True):
        destinations = table.sends["destination"]
        sent = np.bincount(table.sources, minlength=num_ranks)
        expect.append(sent + np.bincount(destinations, minlength=num_ranks))
        offsets.append(begin + np.append(0, np.cumsum(sent)))
        rounds.append((Step(table.sources, destinations, table.sends["payload_bytes"]), times))
        sends.append(table.sends)
        begin += len(table.sends)
    joined = np.concatenate(sends)
    joined["route"] = np.append(0, np.cumsum(joined["hops"]))[:-1]
    routes = np.concatenate([np.zeros(0, np.int64), *[table.routes for table in tables]])
    program = Program(
        replace(plan, num_ranks=num_ranks, rounds=tuple(rounds), hosts=None),
        np.cumsum([times for _, times in plan.rounds], dtype=np.int64),
        joined,
        routes,
        np.array(offsets, np.int64).reshape(len(rounds), num_ranks + 1),
        np.array(expect, np.int64).reshape(len(rounds), num_ranks),
    )
    return Quotient(program, ranks, np.unique(routes))
