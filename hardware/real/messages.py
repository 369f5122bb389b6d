"""What a worker process and its parent say to each other over their pipe.

The worker says `Arrived` when it gets to a point where all must meet, and waits for the parent's answer; the other
messages need none.

    worker                       parent
    Arrived("ready")        ->
                            <-   None
    Arrived("start")        ->
                            <-   host time at which the clock starts
    Arrived("shared", ...)  ->                                         once per shared tensor
                            <-   its offset in the common segment
    Arrived("filled", ...)  ->
                            <-   None
    Arrived("meet")         ->                                         once per meeting
                            <-   None
    Observed(...)           ->                                         at milestones
    Measured(...)           ->                                         when the algorithm says so
    Finished(...)           ->
    Arrived("end")          ->
                            <-   None
    Failed(...)             ->                                         instead of all that should have followed

A background activity that fails says so itself, while the worker may be blocked for long: hence `Line`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from threading import Lock
from typing import Any, Protocol

import torch

from hardware.real.breakdown import Ledger
from harness.errors import UserError, WorkerFailed
from harness.interleaving import Interleaving
from harness.measures import Measures
from harness.place import Observation

VERBS = {
    "ready": "is ready",
    "start": "begins",
    "shared": "shares",
    "filled": "has shared",
    "meet": "meets",
    "end": "ends",
}


@dataclass(frozen=True)
class Arrived:
    """A worker is where all must meet.

    Args:
        place: "ready", "start", "shared", "filled", "meet" or "end".
        detail: equal on every worker, or the run is wrong.
        length_bytes: memory wanted.
        num_ranks: that come, the first ones; None for all.
    """

    place: str
    detail: str = ""
    length_bytes: int = 0
    num_ranks: int | None = None

    @classmethod
    def to_share(cls, name: str, tensor: torch.Tensor, node: int | None) -> "Arrived":
        """At a call of `shared`."""
        where = "" if node is None else f" on node {node}"
        detail = f"{name!r} of shape {tuple(tensor.shape)} and {tensor.dtype}{where}"
        return cls("shared", detail, max(tensor.nbytes, 1))

    def __str__(self) -> str:
        return f"{VERBS[self.place]} {self.detail}".rstrip()


def disagreement(first: Arrived, who: str, other: Arrived) -> UserError:
    """Workers are not where they should all be."""
    rule = "all must share the same tensors, and meet, in the same order"
    return UserError(f"worker 0 {first}, but {who} {other}: {rule}")


def waited_in_vain(who: str, timeout_s: float) -> WorkerFailed:
    """A worker was the only one to meet, or one of few."""
    return WorkerFailed(f"{who} waited at worker.meet() for more than hardware.timeout_s={timeout_s:g}")


@dataclass(frozen=True)
class Observed:
    """An observation, whose parameters lie in the worker's segment of snapshots."""

    time_s: float
    host_s: float
    samples: int
    updates: int
    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    member: int | None
    milestone: int
    part_offset: int | None


@dataclass(frozen=True)
class Measured:
    """What a worker has measured and concluded so far."""

    measures: Measures


@dataclass(frozen=True)
class Finished:
    """A worker has left `train`.

    Args:
        placement: where the pages of each shared tensor lie, and the policy they were given.
        interleaving: what timing decided.
        measures: what it measured, values by key.
        observed_s: in a world, when it made its observations, in their order: host times as they are known at the end.
    """

    ledger: Ledger
    placement: dict[str, dict[str, object]]
    interleaving: Interleaving
    measures: dict[str, list[float]]
    observed_s: Sequence[float] = ()


@dataclass(frozen=True)
class Failed:
    """A worker cannot go on.

    Args:
        host_s: when it found out.
    """

    error: BaseException
    host_s: float


Message = Arrived | Observed | Observation | Measured | Finished | Failed


class Line(Protocol):
    """How a worker speaks with who runs it. Several threads may."""

    def say(self, message: Message) -> None:
        """Send a message."""

    def ask(self, arrived: Arrived, timeout_s: float | None = None) -> Any:
        """Wait until all workers have arrived. Returns the answer. For one thread.

        Raises:
            TimeoutError: if that takes longer.
        """


class PipeLine:
    """The worker's end of the pipe.

    Args:
        connection: to the parent.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._speaking = Lock()

    def say(self, message: Message) -> None:
        """Send a message."""
        with self._speaking:
            self._connection.send(message)

    def ask(self, arrived: Arrived, timeout_s: float | None = None) -> Any:
        """Wait until all workers have arrived. Returns the parent's answer. For one thread.

        Raises:
            TimeoutError: if that takes longer.
        """
        self.say(arrived)
        if not self._connection.poll(timeout_s):
            raise TimeoutError
        return self._connection.recv()
