"""The fabric: where the ranks of a run meet to exchange tensors, and what it costs them.

Each rank takes part in an exchange twice: it *calls* it, which hands in its tensors, and it *arrives*, at the virtual
time at which its device comes to it (at once on a host; on an accelerator, when its stream has done what was issued
before). Values move when the last rank has called: nobody may read them before `wait`. A collective begins when the
last rank has arrived, a message when both sides have; each then follows its plan over the network, and ends for a rank
when all that this rank sends and receives has arrived.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count

import numpy as np
import torch

from hardware.simulated.engine import Engine, Signal
from hardware.simulated.network.base import Network
from hardware.simulated.network.links import Links
from hardware.simulated.network.plans import Plan
from hardware.simulated.network.protocol import Protocol
from hardware.simulated.values import Call
from harness.errors import WorkerFailed

_PLANS_KEPT = 4096  # a program repeats itself
GroupKey = tuple[str, tuple[int, ...]]  # torch's name of a group, its global ranks


class Exchange:
    """Something several ranks take part in, each by its index in the group (of a message: 0 sends, 1 receives).

    Args:
        carry: called with the exchange when all have arrived and all values have moved.

    Attributes:
        valued: happens when all have called and values have moved.
        began_s: virtual time at which the last arrived; infinite until known.
        number: the how-manieth of the run it is to begin.
        parts: by index, those who have called.
    """

    def __init__(self, num_ranks: int, carry: "Carry") -> None:
        self._carry = carry
        self.valued, self.began_s, self.number = Signal(), float("inf"), -1
        self.parts: list[Part | None] = [None] * num_ranks
        self._missing, self._last_s = num_ranks, 0.0

    def arrived(self, at_s: float) -> None:
        """One more has arrived, at `at_s`."""
        self._missing -= 1
        self._last_s = max(self._last_s, at_s)
        self._begin()

    def moved(self, at_s: float) -> None:
        """The values have moved."""
        self.valued.happen(at_s)
        self._begin()

    def ended(self, indices: np.ndarray, at_s: float) -> None:
        """These parts have ended."""
        for index in indices.tolist():
            part = self.parts[index]
            assert part is not None
            part.ended.happen(at_s)

    def _begin(self) -> None:
        if not self._missing and self.valued.happened:
            self.began_s = self._last_s
            self._carry(self)


Carry = Callable[[Exchange], None]


class Part:
    """One rank's part in an exchange.

    Attributes:
        description: the call, in words.
        lane: what a device puts in one order: a group's collectives, its messages to one peer, those from one peer.
        gives: whether this rank only gives values: it need not wait for those of others.
        exchange: None as long as a message has no other side.
        valued, ended: happen when its values have moved, and when all it sends and receives has arrived.
        arrived_s: virtual time at which its device came to it; infinite until then.
    """

    __slots__ = ("arrived_s", "description", "ended", "exchange", "gives", "lane", "valued")

    def __init__(self, description: str, lane: Hashable, exchange: Exchange | None = None, gives: bool = False) -> None:
        self.description, self.lane, self.exchange, self.gives = description, lane, exchange, gives
        self.valued = Signal() if exchange is None else exchange.valued
        self.ended = Signal()
        self.arrived_s = float("inf")

    @property
    def began_s(self) -> float:
        """Virtual time at which the last participant arrived; infinite until known."""
        return float("inf") if self.exchange is None else self.exchange.began_s

    @property
    def number(self) -> int:
        """Of its exchange; -1 until that has begun."""
        return -1 if self.exchange is None else self.exchange.number

    def arrive(self, at_s: float) -> None:
        """Its device has come to it, at `at_s`."""
        self.arrived_s = at_s
        if self.exchange is not None:
            self.exchange.arrived(at_s)


@dataclass(eq=False)
class Post:
    """One side of a message.

    Args:
        rank: of this side, in the group.
        peer: rank of the other side, or None for a receiver that takes from anyone; the sender once matched.
    """

    sends: bool
    rank: int
    peer: int | None
    tag: int
    tensor: torch.Tensor
    part: Part

    def matches(self, other: "Post") -> bool:
        """Whether `other` is the opposite side of the same message."""
        return (
            self.sends != other.sends
            and self.tag == other.tag
            and self.peer in (None, other.rank)
            and other.peer in (None, self.rank)
        )


class Fabric:
    """What connects the ranks of one run.

    Attributes:
        links: what carries the plans.
        sent_bytes: payload each rank has handed in for others.
        late: exchanges that began in SimPy's past: a stream came to them before what the host had waited for.
    """

    def __init__(self, engine: Engine, network: Network, protocol: Protocol, num_ranks: int) -> None:
        self.engine, self.protocol = engine, protocol
        self.sent_bytes = [0] * num_ranks
        self.late = 0
        self.links = Links(network, engine, num_ranks)
        self.hosts = network.hosts(num_ranks)
        self._channels: dict[GroupKey, Channel] = {}
        self._plans: dict[Hashable, Plan] = {}
        self._numbers = count()

    def channel(self, key: GroupKey) -> "Channel":
        """The one meeting place of a group."""
        return self._channels.setdefault(key, Channel(self, key[1]))

    def carry(
        self, kind: str, payload_bytes: float, root: int, parts: Callable[[], np.ndarray] | None, devices: np.ndarray
    ) -> Carry:
        """What carries an exchange of this kind."""
        env = self.engine.env

        def carry(exchange: Exchange) -> None:
            exchange.number = next(self._numbers)

            def ended(indices: np.ndarray) -> None:
                exchange.ended(indices, env.now)

            table = None if parts is None else parts()
            plan = self._plan(kind, payload_bytes, root, table, devices)
            if exchange.began_s < env.now:
                self.late += 1
            if exchange.began_s <= env.now:
                self.links.carry(plan, devices, ended)
            else:
                begin = env.timeout(exchange.began_s - env.now)
                begin.callbacks.append(lambda _: self.links.carry(plan, devices, ended))

        return carry

    def _plan(self, kind: str, payload_bytes: float, root: int, parts: np.ndarray | None, devices: np.ndarray) -> Plan:
        key = kind, payload_bytes, root, None if parts is None else parts.tobytes(), devices.tobytes()
        plan = self._plans.get(key)
        if plan is None:
            if len(self._plans) >= _PLANS_KEPT:
                self._plans.clear()
            plan = self._plans[key] = self.protocol.plan(kind, self.hosts[devices], payload_bytes, root, parts)
        return plan


@dataclass
class _Meeting:
    description: str
    exchange: Exchange
    calls: dict[int, Call]


def _parts(calls: dict[int, Call]) -> np.ndarray:
    """Bytes from each rank to each, shape (ranks, ranks)."""
    rows = [[tensor.nbytes for tensor in calls[rank].inputs] for rank in range(len(calls))]
    return np.array(rows, np.float64)


class Channel:
    """Where one group meets.

    Args:
        ranks: global ranks, by rank in the group.
    """

    def __init__(self, fabric: Fabric, ranks: Sequence[int]) -> None:
        self.ranks = ranks
        self._fabric, self._devices = fabric, np.array(ranks)
        self._meetings: dict[int, _Meeting] = {}
        self._posts: list[Post] = []

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

        Raises:
            WorkerFailed: if another rank has called something else at this number.
        """
        engine, fabric = self._fabric.engine, self._fabric
        meeting = self._meetings.get(number)
        if meeting is None:
            words = f"{call.description}, collective {number} of ranks {list(self.ranks)}"
            calls: dict[int, Call] = {}
            parts = partial(_parts, calls) if unequal else None
            carry = fabric.carry(kind, payload_bytes, root, parts, self._devices)
            meeting = self._meetings[number] = _Meeting(words, Exchange(len(self.ranks), carry), calls)
        self._check(meeting, number, rank, call)
        meeting.calls[rank] = call
        part = meeting.exchange.parts[rank] = Part(meeting.description, self, meeting.exchange)
        if len(self.ranks) > 1:
            fabric.sent_bytes[self.ranks[rank]] += call.sent_bytes
        if len(meeting.calls) == len(self.ranks):
            del self._meetings[number]
            with torch.no_grad(), engine.uncharged():
                combine([meeting.calls[i] for i in range(len(self.ranks))])
            meeting.exchange.moved(engine.env.now)
        return part

    def post(self, sends: bool, rank: int, peer: int | None, tag: int, tensor: torch.Tensor) -> Post:
        """Post one side of a message, now; once its other side is posted its exchange is known."""
        engine = self._fabric.engine
        other = "anyone" if peer is None else f"rank {self.ranks[peer]}"
        words = f"{'send' if sends else 'receive'} {described(tensor)} {'to' if sends else 'from'} {other}, tag {tag}"
        if sends:
            self._fabric.sent_bytes[self.ranks[rank]] += tensor.nbytes
        post = Post(sends, rank, peer, tag, tensor, Part(words, (self, sends, peer), gives=sends))
        engine.at(engine.current.now(), self.ranks[rank], partial(self._match, post))
        return post

    def _check(self, meeting: _Meeting, number: int, rank: int, call: Call) -> None:
        other, first = next(iter(meeting.calls.items()), (rank, call))
        if first.description != call.description:
            raise WorkerFailed(
                f"ranks disagree on collective {number} of ranks {list(self.ranks)}: rank {self.ranks[other]} "
                f"calls {first.description}, rank {self.ranks[rank]} calls {call.description}"
            )

    def _match(self, post: Post) -> None:
        opposite = next((other for other in self._posts if post.matches(other)), None)
        if opposite is None:
            self._posts.append(post)
            return
        self._posts.remove(opposite)
        sender, receiver = (post, opposite) if post.sends else (opposite, post)
        source, target = self.ranks[sender.rank], self.ranks[receiver.rank]
        if described(sender.tensor) != described(receiver.tensor):
            raise WorkerFailed(
                f"ranks disagree on a message: rank {source} sends {described(sender.tensor)}, "
                f"rank {target} receives {described(receiver.tensor)}"
            )
        with torch.no_grad():
            receiver.tensor.detach().copy_(sender.tensor)
        receiver.peer = sender.rank
        carry = self._fabric.carry("message", sender.tensor.nbytes, 0, None, np.array([source, target]))
        exchange = Exchange(2, carry)
        for index, part in enumerate((sender.part, receiver.part)):
            exchange.parts[index], part.exchange = part, exchange
            if part.arrived_s < float("inf"):
                exchange.arrived(part.arrived_s)
        now_s = self._fabric.engine.env.now
        exchange.moved(now_s)
        for part in (sender.part, receiver.part):
            part.valued.happen(now_s)


def described(tensor: torch.Tensor) -> str:
    """Its dtype and shape: "float32[2, 3]"."""
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"
