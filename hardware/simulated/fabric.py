"""The fabric: where the ranks of a run meet to exchange tensors, and what it costs them.

Once an exchange begins it follows its plan over the network, and ends for a rank when all that this rank sends and
receives has arrived.
"""

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import NoReturn

import numpy as np
import torch
from torch._subclasses.fake_tensor import unset_fake_temporarily

from hardware.simulated.engine import Engine
from hardware.simulated.exchange import Carry, Exchange, Part, Post
from hardware.simulated.network.base import Network
from hardware.simulated.network.collapsed import CollapsedLinks
from hardware.simulated.network.links import Links
from hardware.simulated.network.plans import Plan
from hardware.simulated.network.protocol import Protocol
from hardware.simulated.symmetry import HINT, Symmetry
from hardware.simulated.values import Call, described, is_fake, nbytes
from harness.errors import UserError, WorkerFailed

_KEPT_BYTES = 32 * 2**20  # of plans: a program repeats itself
ROOTED = ("broadcast", "reduce", "gather", "scatter")  # in which one rank does what others do not
_LISTED = 16  # ranks that are named one by one
GroupKey = tuple[str, tuple[int, ...]]  # torch's name of a group, its global ranks


class Fabric:
    """What connects the ranks of one run.

    Args:
        symmetry: of the ranks, of which the first of each class is simulated; None if all are.

    Attributes:
        links: what carries the plans.
        sent_bytes: payload each rank has handed in for others.
    """

    def __init__(
        self, engine: Engine, network: Network, protocol: Protocol, num_ranks: int, symmetry: Symmetry | None = None
    ) -> None:
        self.engine, self.protocol, self.symmetry = engine, protocol, symmetry
        self.sent_bytes = [0] * num_ranks
        self.links: Links | CollapsedLinks
        if symmetry is None:
            self.links = Links(network, engine, num_ranks)
        else:
            self.links = CollapsedLinks(network, engine, symmetry)
        self.hosts, self._network = network.hosts(num_ranks), network
        self._channels: dict[GroupKey, list[Channel]] = defaultdict(list)
        self._plans: dict[Hashable, Plan] = {}
        self._plans_bytes = 0
        self._numbers = count()

    def channel(self, key: GroupKey, rank: int) -> "Channel":
        """The meeting place of a group: the first of its name that `rank` has not been given, so that what is under way
        in a group that was destroyed stays there."""
        channels = self._channels[key]
        channel = next((one for one in channels if rank not in one.members), None)
        if channel is None:
            channel = Channel(self, key[1])
            channels.append(channel)
        channel.members.add(rank)
        return channel

    def simulated(self, ranks: np.ndarray) -> np.ndarray:
        """Those of a group that are simulated, by their rank in the group."""
        return np.arange(len(ranks)) if self.symmetry is None else np.flatnonzero(self.symmetry.classes[ranks] == ranks)

    def carry(
        self, kind: str, payload_bytes: float, root: int, parts: Callable[[], np.ndarray] | None, devices: np.ndarray
    ) -> Carry:
        """What carries an exchange of this kind."""
        env = self.engine.env

        def carry(exchange: Exchange) -> None:
            exchange.number = next(self._numbers)

            def ended(indices: np.ndarray) -> None:
                if self.engine.deaths and self._dead(exchange.unended(), env.now):
                    return  # nothing more comes from the dead, or gets to them
                exchange.ended(indices, env.now)

            table = None if parts is None else parts()
            if table is not None and (table == table[0, 0]).all():
                table = None  # they might differ, and do not
            if table is not None and self.symmetry is not None:
                self.engine.refuse(UserError(f"collapse: {kind} of parts that differ in size is not modelled: {HINT}"))
            plan = self._plan(kind, payload_bytes, root, table, devices)
            if exchange.began_s <= env.now:
                self._begin(plan, devices, ended)
            else:
                begin = env.timeout(exchange.began_s - env.now)
                begin.callbacks.append(lambda _: self._begin(plan, devices, ended))

        return carry

    def _begin(self, plan: Plan, devices: np.ndarray, ended: Callable[[np.ndarray], None]) -> None:
        try:
            self.links.carry(plan, devices, ended)
        except UserError as refusal:
            self.engine.refuse(refusal)

    def why(self, part: Part, by_s: float) -> str:
        """Why a part has not ended by then, in words; empty if that is not known."""
        missing = part.missing(by_s)
        anyone = range(len(self.sent_bytes))  # might have sent what is received from anyone
        concerned = missing or (anyone if part.exchange is None else part.exchange.unended())
        if dead := self._dead(concerned, by_s):
            return self._deaths(dead)
        if missing:
            who = f"{self.engine.named(missing[0])} has" if len(missing) == 1 else f"ranks {listed(missing)} have"
            others = self._dead(anyone, by_s)  # for whom those may wait who have not come
            return f"{who} not come" + (f", and {self._deaths(others)}" if others else "")
        broken = self.links.broken()
        return f"nothing passes link {', '.join(broken)}" if broken else ""

    def breaks(self, part: Part) -> list[tuple[float, int]]:
        """See `Part.breaks`; what is received from anyone may come from any rank."""
        if not (self.engine.deaths and self.protocol.notices_deaths):
            return []
        known = part.missing(float("inf")) if part.exchange is None else part.exchange.ranks
        me, heard = self.engine.current.rank, known or range(len(self.sent_bytes))
        dying = [rank for rank in heard if rank in self.engine.deaths and rank != me]
        return sorted((self.engine.deaths[rank] + self._latency_s(rank, me), rank) for rank in dying)

    def _latency_s(self, source: int, target: int) -> float:
        wires = self._network.wires(len(self.sent_bytes))
        (links,) = wires.route(np.array([source]), np.array([target]))
        return float(wires.latency_s[links[links >= 0]].sum())

    def _deaths(self, ranks: Sequence[int]) -> str:
        return ", ".join(f"{self.engine.named(rank)} died at {self.engine.deaths[rank]:.6g} s" for rank in ranks)

    def _dead(self, ranks: Sequence[int], by_s: float) -> list[int]:
        """Those of them that have died by then."""
        deaths = self.engine.deaths
        return [rank for rank in ranks if rank in deaths and deaths[rank] <= by_s]

    def _plan(self, kind: str, payload_bytes: float, root: int, parts: np.ndarray | None, devices: np.ndarray) -> Plan:
        key = kind, payload_bytes, root, None if parts is None else parts.tobytes(), devices.tobytes()
        plan = self._plans.get(key)
        if plan is None:
            if self._plans_bytes > _KEPT_BYTES:
                self._plans.clear()
                self._plans_bytes = 0
            plan = self._plans[key] = self.protocol.plan(kind, self.hosts[devices], payload_bytes, root, parts)
            self._plans_bytes += plan.nbytes
        return plan


@dataclass(slots=True, eq=False)
class _Meeting:
    description: str
    exchange: Exchange
    first: int
    calls: dict[int, Call]


def _parts(calls: dict[int, Call]) -> np.ndarray:
    """Bytes from each rank to each, shape (ranks, ranks); who gives one tensor gives it to all."""
    rows = [[nbytes(tensor) for tensor in calls[rank].inputs] for rank in sorted(calls)]
    return np.broadcast_to(np.array(rows, np.float64), (len(calls), len(calls)))


class Channel:
    """Where one group meets.

    Args:
        ranks: global ranks, by rank in the group.

    Attributes:
        members: ranks in the group that have a handle on it.
    """

    def __init__(self, fabric: Fabric, ranks: Sequence[int]) -> None:
        self.ranks = ranks
        self.members: set[int] = set()
        self._fabric, self._devices = fabric, np.array(ranks)
        simulated = fabric.simulated(self._devices)
        self._simulated = [ranks[index] for index in simulated]
        self._places = {
            rank: place for place, rank in enumerate(simulated.tolist())
        }  # among them, by rank in the group
        self._words = listed(ranks)
        self._meetings: dict[int, _Meeting] = {}
        self._posts: list[Post] = []

    @property
    def library(self) -> str:
        """Torch's name of what moves the bytes."""
        return self._fabric.protocol.library

    def fail(self, message: str) -> NoReturn:
        """End the run with an error; see `Engine.fail`."""
        self._fabric.engine.fail(message)

    def meet(
        self,
        number: int,
        rank: int,
        call: Call,
        combine: Callable[[Sequence[Call]], None],
        kind: str,
        payload_bytes: float,
        root: int,
        unequal: bool,
    ) -> Part:
        """Call collective `number` of this group as `rank` of the group; arriving there is another matter.

        Args:
            unequal: whether what a rank gives to each other one differs in size.

        Another rank that has called something else at this number ends the run.
        """
        engine, fabric = self._fabric.engine, self._fabric
        if kind in ROOTED and len(self._simulated) < len(self.ranks):
            engine.refuse(UserError(f"collapse: {call} has a root, which does what ranks alike to it do not: {HINT}"))
        meeting = self._meetings.get(number)
        if meeting is None or unequal:
            call.place = engine.place()
        if meeting is None:
            calls: dict[int, Call] = {}
            carry = fabric.carry(kind, payload_bytes, root, partial(_parts, calls) if unequal else None, self._devices)
            words = f"{call}, collective {number} of ranks {self._words}"
            meeting = self._meetings[number] = _Meeting(words, Exchange(self._simulated, carry), rank, calls)
        elif not call.agrees(first := meeting.calls[meeting.first]):
            one, other = self.ranks[meeting.first], self.ranks[rank]
            engine.fail(
                f"ranks disagree on collective {number} of ranks {self._words}: rank {one} calls {first}, rank {other} "
                f"calls {call} (rank {one}{first.place}; rank {other}{engine.place()})",
                placed=True,
            )
        meeting.calls[rank] = call
        place = self._places[rank]
        part = Part(meeting.description, self, fabric.why, fabric.breaks, meeting.exchange)
        meeting.exchange.parts[place] = part
        if len(self.ranks) > 1:
            fabric.sent_bytes[self.ranks[rank]] += call.sent_bytes
        if len(meeting.calls) == len(self._simulated):
            del self._meetings[number]
            if not call.is_fake:
                self._combine(meeting, combine)
            meeting.exchange.moved(engine.env.now)
        return part

    def _combine(self, meeting: _Meeting, combine: Callable[[Sequence[Call]], None]) -> None:
        """Let values move."""
        engine = self._fabric.engine
        if self._fabric.symmetry is not None and any(call.inputs or call.outputs for call in meeting.calls.values()):
            what = f"{meeting.description} has values, those of ranks that are not simulated among them"
            engine.refuse(UserError(f"collapse: {what}: {HINT}, or let its tensors be fake"))
        with torch.no_grad(), engine.uncharged(), unset_fake_temporarily():
            try:
                combine([meeting.calls[i] for i in sorted(meeting.calls)])
            except WorkerFailed as disagreement:
                engine.fail(str(disagreement), placed=True)
            except Exception as error:
                engine.fail(f"{meeting.description} cannot be computed: {type(error).__name__}: {error}")

    def post(self, sends: bool, rank: int, peer: int | None, tag: int, tensor: torch.Tensor) -> Post:
        """Post one side of a message, now; once its other side is posted its exchange is known."""
        engine, device = self._fabric.engine, None if peer is None else self.ranks[peer]
        if self._fabric.symmetry is not None and peer not in self._places:
            whom = "anyone" if peer is None else f"rank {device}, which is not simulated"
            engine.refuse(UserError(f"collapse: rank {self.ranks[rank]} exchanges messages with {whom}: {HINT}"))
        other = "anyone" if device is None else engine.named(device)
        words = f"{'send' if sends else 'receive'} {described(tensor)} {'to' if sends else 'from'} {other}, tag {tag}"
        if sends:
            self._fabric.sent_bytes[self.ranks[rank]] += tensor.nbytes
        part = Part(words, (self, sends, peer), self._fabric.why, self._fabric.breaks, gives=sends, peer=device)
        post = Post(sends, rank, peer, tag, tensor, part, engine.place())
        engine.at(engine.current.now(), self.ranks[rank], partial(self._match, post))
        return post

    def _match(self, post: Post) -> None:
        opposite = next((other for other in self._posts if post.matches(other)), None)
        if opposite is None:
            self._posts.append(post)
            return
        self._posts.remove(opposite)
        sender, receiver = (post, opposite) if post.sends else (opposite, post)
        source, target = self.ranks[sender.rank], self.ranks[receiver.rank]
        if described(sender.tensor) != described(receiver.tensor):
            one, other = map(self._fabric.engine.named, (source, target))
            raise WorkerFailed(
                f"ranks disagree on a message, tag {post.tag}: {one} sends {described(sender.tensor)}, {other} "
                f"receives {described(receiver.tensor)} ({one}{sender.place}; {other}{receiver.place})"
            )
        if not is_fake(sender.tensor):
            with unset_fake_temporarily():  # whoever runs this may have it set
                receiver.tensor.data.copy_(sender.tensor)  # which autograd does not see
        receiver.peer = sender.rank
        carry = self._fabric.carry("message", sender.tensor.nbytes, 0, None, np.array([source, target]))
        exchange = Exchange((source, target), carry)
        for index, part in enumerate((sender.part, receiver.part)):
            exchange.parts[index], part.exchange = part, exchange
            if part.arrived_s < float("inf"):
                exchange.arrived(part.arrived_s)
        now_s = self._fabric.engine.env.now
        exchange.moved(now_s)
        for part in (sender.part, receiver.part):
            part.valued.happen(now_s)


def listed(ranks: Sequence[int]) -> str:
    """Ranks in words, of many only the ends: "[0, 1, 2, ..., 1023]"."""
    return str(list(ranks)) if len(ranks) <= _LISTED else f"[{', '.join(map(str, ranks[:3]))}, ..., {ranks[-1]}]"
