"""What timing decides in an asynchronous run: enough to do the same again, on any hardware.

A worker that goes on as soon as it can takes the samples that are next when it asks, and a rank that serves whoever
comes first hears its peers in some order; some decide by the time. Given these, the weights follow from the seed; whose
weights are observed at a milestone depends on who gets there. `replay=<run>` decides all of it alike, so that a run of
processes is observed to have the same weights in virtual time.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from harness.canonical import to_json
from harness.errors import UserError

FILE = "interleaving.json"  # in a run's directory


@dataclass(frozen=True)
class Interleaving:
    """What one rank met.

    Args:
        claims: where the batches that it claimed begin, in the order of their pool.
        sources: whom the messages came from that it took from anybody.
        counts: samples and updates that the run had got to before each of its own.
        turns: of the worker itself (0) and its background activity (1), in their order.
        times: what it read from the run's clock to decide by, in seconds.
    """

    claims: list[int] = field(default_factory=list)
    sources: list[int] = field(default_factory=list)
    counts: list[tuple[int, int]] = field(default_factory=list)
    turns: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)


def write(path: Path, interleavings: Sequence[Interleaving]) -> None:
    """Write those of all ranks to a file."""
    path.write_text(to_json([asdict(each) for each in interleavings]) + "\n", encoding="utf-8")


def read(path: Path) -> list[Interleaving]:
    """Those of all ranks, from a file.

    Raises:
        UserError: naming the setting, if there is none, it is none, or an older version wrote it.
    """
    try:
        ranks = json.loads(path.read_text(encoding="utf-8"))
        known, found = {each.name for each in fields(Interleaving)}, [set(each) for each in ranks]
    except (OSError, ValueError, TypeError) as error:
        rule = "must name the directory of a run that finished, of an asynchronous algorithm that exchanges messages"
        raise UserError(f"replay={path.parent}: {rule} (no readable {path.name} there)") from error
    if any(keys != known for keys in found):
        raise UserError(f"replay={path.parent}: its {path.name} was written by an older version: run it again")
    return [Interleaving(**each) for each in ranks]


def exhausted(rank: int, what: str) -> UserError:
    """The run that is repeated did not get as far as this one."""
    return UserError(f"replay: rank {rank} {what} more often than in the run that is repeated, which is another one")
