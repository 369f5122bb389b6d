"""What timing decides in an asynchronous run: enough to do the same again, on any hardware.

A worker that goes on as soon as it can takes the samples that are next when it asks, and a rank that serves whoever
comes first hears its peers in some order; some decide by the time. Given these, the weights follow from the seed; whose
weights are observed at a milestone depends on who gets there. `replay=<run>` decides all of it alike, so that a run of
processes is observed to have the same weights in virtual time.
"""

import json
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

from harness.errors import UserError

FILE = "interleaving.json"  # in a run's directory
CHUNK = 65_536  # numbers that become text at a time
Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class Interleaving:
    """What one rank met. A number takes the bytes that it must: an asynchronous run makes some at every update.

    Args:
        claims: where the batches that it claimed begin, in the order of their pool.
        sources: whom the messages came from that it took from anybody.
        counts: samples, then updates, that the run had got to before each of its own.
        turns: of the worker itself (0) and its background activity (1), in their order.
        times: what it read from the run's clock to decide by, in seconds.
    """

    claims: array = field(default_factory=partial(array, "q"))
    sources: array = field(default_factory=partial(array, "i"))
    counts: array = field(default_factory=partial(array, "q"))
    turns: array = field(default_factory=partial(array, "b"))
    times: array = field(default_factory=partial(array, "d"))


class Decisions:
    """One list of decisions of one rank: made by timing and noted, or those of an earlier run, made again.

    Args:
        kind: of decisions, a field of `Interleaving`.
        does: what the rank does that needs one, "receives".
        now: of this run, where all are noted.
        replay: by rank, of the run that is repeated; empty to let timing decide.
    """

    def __init__(self, kind: str, does: str, rank: int, now: Interleaving, replay: Sequence[Interleaving]) -> None:
        self._does, self._rank = does, rank
        self._noted: array = getattr(now, kind)
        self._known: array | None = getattr(replay[rank], kind) if replay else None
        self._taken = 0

    @property
    def exhausted(self) -> bool:
        """Whether the run that is repeated got no further."""
        return self._known is not None and self._taken == len(self._known)

    def foreseen(self) -> Any:
        """The next one; None where timing has yet to make it.

        Raises:
            UserError: if the run that is repeated did not get as far as this one.
        """
        if self._known is None:
            return None
        if self.exhausted:
            rule = "more often than in the run that is repeated, which is another one"
            raise UserError(f"replay: rank {self._rank} {self._does} {rule}")
        return self._known[self._taken]

    def take(self) -> Any:
        """The next one, as `foreseen`, and go on to the one after it."""
        decided = self.foreseen()
        self._taken += 1
        return decided

    def note(self, decided: float) -> None:
        """Remember what was decided."""
        self._noted.append(decided)

    def decide(self, by_timing: Number) -> Number:
        """What is decided where timing would decide so."""
        foreseen = self.take()
        decided = by_timing if foreseen is None else foreseen
        self.note(decided)
        return decided


def write(path: Path, interleavings: Sequence[Interleaving]) -> None:
    """Write those of all ranks to a file."""
    with path.open("w", encoding="utf-8") as file:
        file.write("[")
        for rank, each in enumerate(interleavings):
            file.write(", {" if rank else "{")
            for place, kind in enumerate(_KINDS):
                file.write(f'{", " if place else ""}"{kind}": [')
                file.writelines(_text(kind, getattr(each, kind)))
                file.write("]")
            file.write("}")
        file.write("]\n")


def read(path: Path) -> list[Interleaving]:
    """Those of all ranks, from a file.

    Raises:
        UserError: naming the setting, if there is none, it is none, or an older version wrote it.
    """
    try:
        ranks = json.loads(path.read_text(encoding="utf-8"))
        if any(set(each) != set(_KINDS) for each in ranks):
            raise UserError(f"replay={path.parent}: its {path.name} was written by an older version: run it again")
        return [Interleaving(**{kind: _array(kind, values) for kind, values in each.items()}) for each in ranks]
    except (OSError, ValueError, TypeError) as error:
        if isinstance(error, UserError):
            raise
        rule = "must name the directory of a run that finished, of an asynchronous algorithm that exchanges messages"
        raise UserError(f"replay={path.parent}: {rule} (no readable {path.name} there)") from error


_KINDS = tuple(each.name for each in fields(Interleaving))
_PAIRED = ("counts",)  # in the file: [samples, updates]


def _text(kind: str, values: array) -> Iterator[str]:
    """JSON of the items, a part at a time: all of them as Python objects would take many times the memory."""
    for begin in range(0, len(values), CHUNK):
        part: list = values[begin : begin + CHUNK].tolist()
        items = [*zip(part[::2], part[1::2], strict=True)] if kind in _PAIRED else part
        yield (", " if begin else "") + json.dumps(items, allow_nan=False)[1:-1]


def _array(kind: str, items: Iterable) -> array:
    values: array = getattr(Interleaving(), kind)
    values.extend(chain.from_iterable(items) if kind in _PAIRED else items)
    return values
