"""Carries plans of groups for which a few ranks stand, with those that their siblings carry out at the same time.

Three cases, by what can be shown of a plan and its siblings on the links:

- translations that move hosts to hosts move all of it to itself: one transfer is solved for all that are alike
  (`quotient.py`), with whatever else is under way;
- they do not, as in a tree: the plans of all siblings are solved together beforehand, and nothing else may use their
  links meanwhile;
- where ranks of a class do not end together, the one that ends last sets the pace. That is exact if one and the same
  of them, the leader, does so every time, since then no other rank of its class ever holds it up; see `verdict`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations

import numpy as np
import simpy

from hardware.simulated.engine import Engine
from hardware.simulated.network.base import Network
from hardware.simulated.network.links import Ended, Links, Traffic
from hardware.simulated.network.plans import Plan, Step
from hardware.simulated.network.program import Program
from hardware.simulated.network.quotient import LinkKinds, quotient
from hardware.simulated.symmetry import HINT, Symmetry, keeping
from harness.errors import UserError

_SAME = 1e-11  # of an exchange's duration: ends that differ by less differ by rounding


@dataclass(frozen=True, eq=False)
class _Known:
    """What is known of a plan with its siblings.

    Args:
        ends: for each class of the group and translation, where in an array of ends the rank is that ends then, shape
            (classes, translations).
        links: that are used, by the first of their kind.
        colours: of each kind of sibling, the translations that lead into it, and its links.
        program: of those that stand for all; None where all siblings are solved beforehand.
        taken_s: then, how long each of their ranks takes.
        carried: then, of each link: payload bytes, bytes on the wire, seconds; shape (3, links).
    """

    ends: np.ndarray
    links: np.ndarray
    colours: list[tuple[bytes, np.ndarray]]
    program: Program | None = None
    taken_s: np.ndarray | None = None
    carried: np.ndarray | None = None


class CollapsedLinks:
    """The links of a run of which the first rank of each class is simulated.

    Args:
        network: the links.
        engine: whose clock it is.
        symmetry: of the ranks.
    """

    def __init__(self, network: Network, engine: Engine, symmetry: Symmetry) -> None:
        self._network, self._engine, self._env, self._symmetry = network, engine, engine.env, symmetry
        self._hosts = network.hosts(symmetry.num_ranks)
        self._fine = keeping(symmetry, self._hosts)
        self._links, self._wires = Links(network, engine, symmetry.num_ranks), network.wires(symmetry.num_ranks)
        self._kinds = LinkKinds(self._wires, self._wires.bandwidth_bytes_per_s)
        self._known: dict[tuple[Plan, bytes], _Known] = {}
        self._active: dict[int, _Known] = {}
        self._number = 0
        self._carried = np.zeros((3, len(self._wires.names)))
        self.begin_together()

    def begin_together(self) -> None:
        """All ranks of each class are at one time now, whatever was before."""
        self._leaders, self._spread_s = np.ones(self._symmetry.size, bool), 0.0
        self._colours: dict[bytes, np.ndarray] = {}

    def carry(self, plan: Plan, devices: np.ndarray, ended: Ended) -> None:
        """Begin a plan, and those of its siblings, now.

        Args:
            devices: the ranks of the group, shape (ranks,).
            ended: called with those that are simulated, numbered in the order of the group, shape (some,), when all
                that they and all they stand for send and receive has arrived.

        Raises:
            UserError: where it cannot be shown what that costs.
        """
        known = self._look_up(plan, devices)
        self._check_links_free(known)
        self._number += 1
        self._active[self._number] = known
        for colour, links in known.colours:
            self._colours.setdefault(colour, np.zeros(len(self._wires.names), bool))[links] = True
        if known.program is not None:
            self._links.begin(known.program, _Gathered(known, self._env, ended, self._judge, self._number).over)
            return
        assert known.taken_s is not None and known.carried is not None
        self._carried += known.carried
        gathered = _Gathered(known, self._env, ended, self._judge, self._number)
        for taken_s in np.unique(known.taken_s).tolist():
            indices = np.flatnonzero(known.taken_s == taken_s)
            event = self._env.timeout(taken_s)
            event.callbacks.append(partial(gathered.over, indices))

    def traffic(self) -> dict[str, Traffic]:
        """What each link has carried so far, by name, of links that are alike the first."""
        first, rows = self._kinds.first, self._links.carried()[:, self._kinds.first] + self._carried
        names = self._wires.names
        return {names[i]: Traffic(*rows[:, i].tolist()) for i in np.flatnonzero(first == np.arange(len(first)))}

    def broken(self) -> list[str]:
        """None: it is refused to collapse such a network."""
        return []

    def verdict(self) -> str:
        """Why the ranks simulated do not tell the time of all; empty where it is shown that they do."""
        if not self._spread_s:
            return ""
        leaders = self._leaders.copy()
        for (one, its_links), (other, their_links) in combinations(self._colours.items(), 2):
            if (its_links & their_links).any():  # whose group the leader is not in may begin earlier, in its way
                leaders &= np.frombuffer(one, bool) == np.frombuffer(other, bool)
        if leaders.any():
            return ""
        return (
            f"collapse: ranks that do the same end exchanges up to {self._spread_s:.2g} s apart, and none is always "
            f"the last, so that one cannot stand for all: {HINT}, or let groups of alike ranks fill hosts"
        )

    def _look_up(self, plan: Plan, devices: np.ndarray) -> _Known:
        key = plan, devices.tobytes()
        if key not in self._known:
            messages = plan.num_ranks == 2 and len(plan.rounds) == 1 and len(plan.rounds[0][0].sources) == 1
            siblings = self._translated(devices) if messages else self._symmetry.siblings(devices)
            self._check_hosts(siblings)
            self._known[key] = self._on_links(plan, devices, siblings)
        return self._known[key]

    def _translated(self, devices: np.ndarray) -> np.ndarray:
        return self._symmetry.translated(devices[None, :], np.arange(self._symmetry.size)[:, None])

    def _check_hosts(self, siblings: np.ndarray) -> None:
        """Who shares a host with whom decides which plan a library makes."""
        hosts = self._hosts[siblings]
        first = (hosts[:, :, None] == hosts[:, None, :]).argmax(2) if hosts.shape[1] <= 64 else _first_places(hosts)
        if (first != first[0]).any():
            group = f"{siblings[0].tolist()[:4]} ..."
            raise UserError(f"collapse: groups of alike ranks, such as {group}, lie differently on hosts: {HINT}")

    def _on_links(self, plan: Plan, devices: np.ndarray, siblings: np.ndarray) -> _Known:
        classes = self._symmetry.classes[devices]
        present = devices[classes == devices]
        everyone = self._symmetry.translated(present[:, None], np.arange(self._symmetry.size)[None, :])
        made = quotient(plan, siblings, self._fine, self._wires, self._kinds)
        if made is None:
            return self._all_together(plan, siblings, everyone)

        def links_of(ranks: np.ndarray) -> np.ndarray:
            return _links_of(made.program, np.isin(made.ranks, self._fine.classes[ranks]))

        ends = np.searchsorted(made.ranks, self._fine.classes[everyone])
        return _Known(ends, made.links, self._colours_of(siblings, everyone[0], links_of), made.program)

    def _all_together(self, plan: Plan, siblings: np.ndarray, everyone: np.ndarray) -> _Known:
        """Solved beforehand, transfer by transfer."""

        def links_of(ranks: np.ndarray) -> np.ndarray:
            groups = siblings[np.isin(siblings[:, 0], ranks)]
            used = [np.zeros(0, np.int64)]
            for step, _ in plan.rounds:
                ends = groups[:, step.sources].ravel(), groups[:, step.destinations].ravel()
                used.append(self._wires.route(*ends).ravel())
            links = np.unique(np.concatenate(used))
            return np.unique(self._kinds.first[links[links >= 0]])

        order = np.argsort(siblings.ravel())
        ends = order[np.searchsorted(siblings.ravel(), everyone, sorter=order)]
        colours = self._colours_of(siblings, everyone[0], links_of)
        return _Known(ends, links_of(siblings.ravel()), colours, None, *self._solved(plan, siblings))

    def _colours_of(
        self, siblings: np.ndarray, of_class: np.ndarray, links_of: Callable[[np.ndarray], np.ndarray]
    ) -> list[tuple[bytes, np.ndarray]]:
        """Of each kind of sibling the translations that lead into it, and the links it uses."""
        kinds: dict[bytes, list[int]] = {}
        for number, row in enumerate(np.sort(self._fine.classes[siblings], axis=1)):
            kinds.setdefault(np.unique(row).tobytes(), []).append(number)
        found = []
        for rows in kinds.values():
            ranks = siblings[rows].ravel()
            found.append((np.isin(of_class, ranks).tobytes(), links_of(ranks)))
        return found

    def _solved(self, plan: Plan, siblings: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """How long each rank of all siblings takes, by itself, and what links carry meanwhile."""
        quiet = _Quiet()
        links = Links(self._network, quiet, self._symmetry.num_ranks)  # type: ignore[arg-type]
        taken_s = np.zeros(siblings.size)

        def ended(indices: np.ndarray) -> None:
            taken_s[indices] = quiet.env.now

        links.carry(_side_by_side(plan, len(siblings)), siblings.ravel(), ended)
        quiet.env.run()
        return taken_s, links.carried()

    def _check_links_free(self, known: _Known) -> None:
        for other in self._active.values():
            if known.program is not None and other.program is not None:
                continue
            if len(np.intersect1d(known.links, other.links)):
                raise UserError(
                    f"collapse: an exchange whose ranks are not alike, such as one along a tree, is under way together "
                    f"with another on the same links, which is not modelled: {HINT}"
                )

    def _judge(self, number: int, ends_s: np.ndarray) -> None:
        """All has ended: note who sets the pace."""
        known = self._active.pop(number)
        by_class = ends_s[known.ends]  # (classes, translations)
        last_s = by_class.max(1, keepdims=True)
        spread_s = float((last_s - by_class).max())
        if spread_s > _SAME * float(last_s.max()):
            self._spread_s = max(self._spread_s, spread_s)
            self._leaders &= (by_class >= last_s * (1 - _SAME)).all(0)


class _Gathered:
    """Waits for all that a simulated rank stands for.

    Args:
        ended: called with simulated ranks all of whose kind have ended.
        judge: called with the number and how long each rank took, when all have.
    """

    def __init__(
        self, known: _Known, env: simpy.Environment, ended: Ended, judge: Callable[[int, np.ndarray], None], number: int
    ) -> None:
        self._env, self._ended, self._judge, self._number = env, ended, judge, number
        self._begin_s = env.now
        size = int(known.ends.max()) + 1
        self._taken_s = np.zeros(size)
        self._owner = np.zeros(size, np.int64)
        for index, row in enumerate(known.ends):
            self._owner[row] = index
        self._left = np.bincount(self._owner[np.unique(known.ends)], minlength=len(known.ends))

    def over(self, indices: np.ndarray, _: object = None) -> None:
        """These ranks of the program have ended now."""
        self._taken_s[indices] = self._env.now - self._begin_s
        np.subtract.at(self._left, self._owner[indices], 1)
        over = np.unique(self._owner[indices])
        over = over[self._left[over] == 0]
        if not self._left.any():
            self._judge(self._number, self._taken_s)
        if len(over):
            self._ended(over)


class _Quiet:
    """A clock of which nobody else knows."""

    def __init__(self) -> None:
        self.env = simpy.Environment()

    def next_s(self) -> float:
        """Virtual time of the next event."""
        return self.env.peek()


def _side_by_side(plan: Plan, times: int) -> Plan:
    """The same plan of several groups."""
    shifts = np.repeat(np.arange(times) * plan.num_ranks, [1] * times)

    def of_all(one: Step) -> Step:
        sources = (shifts[:, None] + one.sources).ravel()
        return Step(sources, (shifts[:, None] + one.destinations).ravel(), np.tile(one.payload_bytes, times))

    hosts = None if plan.hosts is None else np.tile(plan.hosts, times)
    rounds = tuple((of_all(one), repeats) for one, repeats in plan.rounds)
    return replace(plan, num_ranks=times * plan.num_ranks, rounds=rounds, hosts=hosts)


def _links_of(program: Program, sources: np.ndarray) -> np.ndarray:
    """The links over which these ranks of a program send."""
    found = [np.zeros(0, np.int64)]
    for offsets in program.offsets:
        for rank in np.flatnonzero(sources):
            for send in program.sends[offsets[rank] : offsets[rank + 1]]:
                found.append(program.routes[send["route"] : send["route"] + send["hops"]])
    return np.unique(np.concatenate(found))


def _first_places(hosts: np.ndarray) -> np.ndarray:
    """Of each rank of each group, the place of the first that shares its host."""
    return np.stack([np.unique(row, return_index=True)[1][np.unique(row, return_inverse=True)[1]] for row in hosts])
