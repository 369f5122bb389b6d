"""An exchange of tensors between ranks, and one rank's part in it.

Each rank takes part twice: it *calls* it, which hands in its tensors, and it *arrives*, at the virtual time at which
its device comes to it (at once on a host; on an accelerator, when its stream has done what was issued before). Values
move when the last rank has called: nobody may read them before `wait`. A collective begins when the last rank has
arrived, a message when both sides have.
"""

import sys
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from hardware.simulated.activity import Signal

_EVER_S = sys.float_info.max  # later than anything that has a time


class Exchange:
    """Something several ranks take part in, each by its index in the group (of a message: 0 sends, 1 receives).

    Args:
        ranks: of the run, by index.
        carry: called with the exchange when all have arrived and all values have moved.

    Attributes:
        valued: happens when all have called and values have moved.
        began_s: virtual time at which the last arrived; infinite until known.
        number: the how-manieth of the run it is to begin.
        parts: by index, those who have called.
    """

    def __init__(self, ranks: Sequence[int], carry: "Carry") -> None:
        self.ranks, self._carry = ranks, carry
        self.valued, self.began_s, self.number = Signal(), float("inf"), -1
        self.parts: list[Part | None] = [None] * len(ranks)
        self._missing, self._last_s = len(ranks), 0.0

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
            if not part.ended.happened:  # it may have been aborted
                part.ended.happen(at_s)

    def missing(self, by_s: float) -> list[int]:
        """Ranks of the run that have not arrived by then."""
        parts = zip(self.ranks, self.parts, strict=True)
        return [rank for rank, part in parts if part is None or not part.arrived_s <= min(by_s, _EVER_S)]

    def unended(self) -> list[int]:
        """Ranks of the run whose part has not ended."""
        return [rank for rank, part in zip(self.ranks, self.parts, strict=True) if part and not part.ended.happened]

    def _begin(self) -> None:
        if not self._missing and self.valued.happened:
            self.began_s = self._last_s
            self._carry(self)


Carry = Callable[[Exchange], None]


class Part:
    """One rank's part in an exchange.

    Args:
        why: says in words why a part has not ended by a virtual time.
        breaks: says when connections to ranks of the run break which the current rank may have to do with in a part,
            in the order of time.
        peer: rank of the run on the other side of a message, where it is known.

    Attributes:
        description: the call, in words.
        lane: what a device puts in one order: a group's collectives, its messages to one peer, those from one peer.
        gives: whether this rank only gives values: it need not wait for those of others.
        exchange: None as long as a message has no other side.
        valued, ended: happen when its values have moved, and when all it sends and receives has arrived.
        arrived_s: virtual time at which its device came to it; infinite until then.
    """

    __slots__ = ("_breaks", "_peer", "_why", "arrived_s", "description", "ended", "exchange", "gives", "lane", "valued")

    def __init__(
        self,
        description: str,
        lane: Hashable,
        why: "Callable[[Part, float], str]",
        breaks: "Callable[[Part], list[tuple[float, int]]]",
        exchange: Exchange | None = None,
        gives: bool = False,
        peer: int | None = None,
    ) -> None:
        self.description, self.lane, self.exchange, self.gives = description, lane, exchange, gives
        self.valued = Signal() if exchange is None else exchange.valued
        self.ended = Signal()
        self.arrived_s = float("inf")
        self._why, self._breaks, self._peer = why, breaks, peer

    def waited_for(self) -> str:
        """What one waits for who waits for its end, and why that does not come, in words."""
        return ": ".join(filter(None, (self.description, self.why(float("inf")))))

    def why(self, by_s: float) -> str:
        """Why it has not ended by then, in words; empty if that is not known."""
        return self._why(self, by_s)

    def breaks(self) -> list[tuple[float, int]]:
        """When connections break that it may need, and to which rank of the run, in the order of time."""
        return self._breaks(self)

    def needs(self, rank: int, by_s: float) -> bool:
        """Whether a rank of the run still has to do something for it at that time, as far as is known."""
        return rank in self.missing(by_s) or (self.exchange is not None and rank in self.exchange.unended())

    def missing(self, by_s: float) -> list[int]:
        """Ranks of the run that have not come by then, as far as it is known who should."""
        if self.exchange is None:
            return [] if self._peer is None else [self._peer]
        return self.exchange.missing(by_s)

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
        place: where in the user's code it was posted.
    """

    sends: bool
    rank: int
    peer: int | None
    tag: int
    tensor: torch.Tensor
    part: Part
    place: object

    def matches(self, other: "Post") -> bool:
        """Whether `other` is the opposite side of the same message."""
        return (
            self.sends != other.sends
            and self.tag == other.tag
            and self.peer in (None, other.rank)
            and other.peer in (None, self.rank)
        )
