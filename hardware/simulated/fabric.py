"""The fabric: where the ranks of a run meet to exchange tensors, and what it costs them.

A collective begins when the last rank of its group has called it, a message when both its sides have been posted; each
then follows its plan over the network and ends for all its participants together. Values move when the last call is
made: nobody may read them before `wait`, and nobody returns from `wait` before the virtual end.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial

import numpy as np
import simpy
import torch

from hardware.simulated.collectives import Plan, Step, Transfer
from hardware.simulated.engine import Engine
from hardware.simulated.network import Network
from hardware.simulated.values import Call
from harness.errors import WorkerFailed

GroupKey = tuple[str, tuple[int, ...]]  # torch's name of a group, its global ranks


class Exchange:
    """Something several ranks wait for.

    Attributes:
        done: happens when it has ended.
        began_s, ended_s: virtual times; infinite until known.
    """

    def __init__(self, env: simpy.Environment, description: str) -> None:
        self.description, self.done = description, env.event()
        self.began_s = self.ended_s = float("inf")


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
    exchange: Exchange

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
        sent_bytes: payload each rank has handed in for others.
    """

    def __init__(self, engine: Engine, network: Network, num_hosts: int) -> None:
        self.engine = engine
        self.sent_bytes = [0] * num_hosts
        self._links = network.connect(engine.env, num_hosts)
        self._channels: dict[GroupKey, Channel] = {}

    def channel(self, key: GroupKey) -> "Channel":
        """The one meeting place of a group."""
        return self._channels.setdefault(key, Channel(self, key[1]))

    def carry(self, steps: Sequence[Step], hosts: np.ndarray, start_s: float, exchanges: Sequence[Exchange]) -> None:
        """Carry out `steps` from `start_s` on, on behalf of `exchanges`."""
        for exchange in exchanges:
            exchange.began_s = start_s
        self.engine.env.process(self._carry(steps, hosts, start_s, exchanges))

    def _carry(
        self, steps: Sequence[Step], hosts: np.ndarray, start_s: float, exchanges: Sequence[Exchange]
    ) -> Generator[simpy.Event, None, None]:
        env = self.engine.env
        if start_s > env.now:
            yield env.timeout(start_s - env.now)
        for step in steps:
            yield self._links.send(step, hosts)
        for exchange in exchanges:
            exchange.ended_s = env.now
            exchange.done.succeed()


@dataclass
class _Meeting:
    exchange: Exchange
    calls: dict[int, Call] = field(default_factory=dict)
    last_s: float = 0.0


class Channel:
    """Where one group meets.

    Args:
        ranks: global rank of every rank of the group.
    """

    def __init__(self, fabric: Fabric, ranks: tuple[int, ...]) -> None:
        self.ranks = ranks
        self._fabric = fabric
        self._hosts = np.array(ranks)
        self._meetings: dict[int, _Meeting] = {}
        self._posts: list[Post] = []

    def meet(
        self,
        number: int,
        rank: int,
        call: Call,
        combine: Callable[[Sequence[Call]], None],
        plan: Plan,
        payload_bytes: float,
        root: int,
    ) -> Exchange:
        """Call collective `number` of this group, now, as `rank` of the group.

        Raises:
            WorkerFailed: if another rank has called something else at this number.
        """
        engine = self._fabric.engine
        meeting = self._meetings.get(number)
        if meeting is None:
            words = f"{call.description}, collective {number} of ranks {list(self.ranks)}"
            meeting = self._meetings[number] = _Meeting(Exchange(engine.env, words))
        self._check(meeting, number, rank, call)
        meeting.calls[rank] = call
        if len(self.ranks) > 1:
            self._fabric.sent_bytes[self.ranks[rank]] += call.sent_bytes
        meeting.last_s = max(meeting.last_s, engine.current.now())
        if len(meeting.calls) == len(self.ranks):
            del self._meetings[number]
            with torch.no_grad(), engine.uncharged():
                combine([meeting.calls[i] for i in range(len(self.ranks))])
            steps = _steps(plan, len(self.ranks), payload_bytes, root)
            self._fabric.carry(steps, self._hosts, meeting.last_s, [meeting.exchange])
        return meeting.exchange

    def post(self, sends: bool, rank: int, peer: int | None, tag: int, tensor: torch.Tensor) -> Post:
        """Post one side of a message, now."""
        engine = self._fabric.engine
        other = "anyone" if peer is None else f"rank {self.ranks[peer]}"
        words = f"{'send' if sends else 'receive'} {described(tensor)} {'to' if sends else 'from'} {other}, tag {tag}"
        if sends:
            self._fabric.sent_bytes[self.ranks[rank]] += tensor.nbytes
        post = Post(sends, rank, peer, tag, tensor, Exchange(engine.env, words))
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
        step = Step((Transfer(0, 1, sender.tensor.nbytes),))
        exchanges = [sender.exchange, receiver.exchange]
        self._fabric.carry([step], np.array([source, target]), self._fabric.engine.env.now, exchanges)


def described(tensor: torch.Tensor) -> str:
    """Its dtype and shape: "float32[2, 3]"."""
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"


@lru_cache(maxsize=1024)
def _steps(plan: Plan, num_ranks: int, payload_bytes: float, root: int) -> tuple[Step, ...]:
    return tuple(plan(num_ranks, payload_bytes, root))
