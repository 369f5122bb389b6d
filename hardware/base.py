"""The Hardware: where workers run and what time is."""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from harness.alike import Axis
from harness.errors import UserError, require
from harness.interleaving import Interleaving
from harness.measures import Measures, distributions
from harness.place import Observation
from harness.program import Program

MEMORY_POLICIES = r"first_touch|interleave|bind:(\d+)"  # where pages lie; see hardware/real/placement.py
PIN_POLICIES = ("spread", "fill")  # round robin over sockets; all cores of one socket before those of the next


def check_pin_policy(field_name: str, policy: str) -> None:
    """Refuse a policy that is neither.

    Raises:
        UserError: naming the field.
    """
    require(policy in PIN_POLICIES, field_name, f"must be one of {', '.join(PIN_POLICIES)}", policy)


def check_memory_policy(
    field_name: str, policy: str, nodes: Sequence[int] | None = None, place: str = "NUMA node"
) -> None:
    """Refuse a policy that is none of the three, or binds to a place that is not among `nodes`.

    Args:
        place: what a number stands for.

    Raises:
        UserError: naming the field.
    """
    known = re.fullmatch(MEMORY_POLICIES, policy)
    require(known is not None, field_name, f"must be first_touch, interleave or bind:<{place.split()[-1]}>", policy)
    assert known is not None
    present = nodes is None or known[1] is None or int(known[1]) in nodes
    numbers = ", ".join(map(str, nodes or ()))
    require(present, field_name, f"must bind to a {place} in use, one of {numbers}", policy)


@dataclass(frozen=True)
class WorkerReport:
    """Where one worker's time went. Seconds of the run's own clock; communication and idleness are the exposed parts.

    Args:
        finish_s: when it left `train`.
        comm_s: in communication, after the last participant arrived.
        idle_s: waiting for others to arrive.
        compute_s: in computation; the rest of workers x time is "other", such as issuing work to an accelerator.
        sent_bytes: payload sent.
        peak_bytes: peak memory, or None where it cannot be told apart (threads, simulated ranks).
        device_peak_bytes: that of the tensors on its own device, or None where it has none.
    """

    rank: int
    finish_s: float
    compute_s: float
    comm_s: float
    idle_s: float
    sent_bytes: int
    peak_bytes: int | None = None
    device_peak_bytes: int | None = None


@dataclass
class Execution:
    """What a hardware returns.

    Args:
        observations: in the order of `samples`.
        workers: one report per worker; empty if the run failed.
        facts: what happened to the machine (pinning, placement, virtual sockets), for the manifest.
        metrics: metrics only this hardware can measure, with keys of docs/metrics.md (`async/*`, `sim/*`).
        timeline: writes what each worker did when to a file, in the trace event format; None where that is not known.
        tags: marks that belong on every record of this run, e.g. "virtual-sockets".
        interleavings: by rank, what timing decided.
        failure: why the run did not finish, or None; what was observed until then is kept.
    """

    observations: list[Observation] = field(default_factory=list)
    workers: list[WorkerReport] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    timeline: Callable[[Path], object] | None = None
    tags: list[str] = field(default_factory=list)
    interleavings: list[Interleaving] = field(default_factory=list)
    failure: BaseException | None = None

    @property
    def run_s(self) -> float:
        """When the last worker finished, on the run's own clock."""
        return max((report.finish_s for report in self.workers), default=0.0)

    def told(self, measures: Sequence[Measures]) -> None:
        """Add what all ranks have measured; what they cannot all have meant is a failure."""
        try:
            self.metrics |= distributions(measures)
        except UserError as error:
            self.failure = self.failure or error


@dataclass(frozen=True)
class Hardware(ABC):
    """Where workers run and what time is.

    Args:
        num_workers: workers offered, >= 1; None for as many as the hardware has cores.
    """

    kind: ClassVar[str]  # "real" or "simulated"
    clock_kind: ClassVar[str]  # "wall" or "virtual"
    joins_world: ClassVar[bool] = False  # its workers have been started by a launcher
    device_per_rank: ClassVar[bool] = False  # an accelerator, which a rank that only serves would leave idle

    num_workers: int | None

    def __post_init__(self) -> None:
        require(
            self.num_workers is None or self.num_workers >= 1, "hardware.num_workers", "must be >= 1", self.num_workers
        )

    @property
    @abstractmethod
    def shares_memory(self) -> bool:
        """Whether workers can see one tensor."""

    @property
    @abstractmethod
    def workers_offered(self) -> int:
        """`num_workers`, or what None stands for on this machine."""

    @property
    def runs_kernels(self) -> bool:
        """Whether native kernels can run here."""
        return True

    @property
    def why_no_fake_tensors(self) -> str:
        """Why it cannot run a model that has shapes and no values; empty where it can."""
        return "computes with values"

    def sequential(self) -> "Hardware":
        """The same with one worker, and nothing in it parallel: what a baseline runs on."""
        return replace(self, num_workers=1)

    def check(self, num_servers: int = 0) -> list[str]:
        """Refuse what cannot work, before anything starts.

        Args:
            num_servers: how many of the workers are servers, in words for the user.

        Returns:
            notices: one line each on what differs from what was asked for (virtual sockets, shared cores).

        Raises:
            UserError: where the hardware cannot be had.
        """
        return []

    def check_there(self) -> None:  # noqa: B027 - most is
        """Refuse what this machine has not, before any data is loaded.

        Raises:
            UserError: naming what to use.
        """

    def check_size(self) -> None:  # noqa: B027 - most start as many workers as they are asked for
        """Refuse another number of ranks than there can be, before anything that follows from it is refused.

        Raises:
            UserError: naming the number that there is.
        """

    def in_its_words(self, refusal: str) -> str:
        """A refusal that names numbers of workers to set, as one does so on this hardware."""
        return refusal

    def check_alike(self, axes: Sequence[Axis]) -> None:  # noqa: B027 - most run every rank
        """Refuse what would make ranks differ of which one is to stand for all, as axes of their mesh say.

        Raises:
            UserError: naming the setting, and what would work.
        """

    @abstractmethod
    def execute(self, program: Program, progress: Callable[[int], None]) -> Execution:
        """Run the program on `workers_offered` workers and wait for the end.

        Whatever happens, no process, thread, shared segment or port is left behind. A failing worker is not raised but
        returned in `Execution.failure` (`WorkerFailed`, `Diverged`, `UserError` or KeyboardInterrupt), with what was
        observed until then.

        Args:
            progress: called now and then, in the calling thread, with the global samples processed so far.
        """


def crowd(num_ranks: int, num_servers: int) -> str:
    """Who shares something, for a user who has asked for workers alone.

    >>> crowd(3, 0), crowd(3, 1)
    ('hardware.num_workers=3: 3 workers', 'hardware.num_workers=2: 2 workers and 1 server')
    """
    counts = [(num_ranks - num_servers, "worker"), (num_servers, "server")]
    words = [f"{count} {noun}{'s' * (count > 1)}" for count, noun in counts if count]
    return f"hardware.num_workers={num_ranks - num_servers}: {' and '.join(words)}"
