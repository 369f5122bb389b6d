"""Where one worker runs: what a hardware provides for it, and what a worker hands to the harness."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from harness.clock import Clock
from harness.data import Share
from harness.errors import UserError
from harness.interleaving import Interleaving
from harness.kernels.access import Access
from harness.kernels.base import Kernel, Model
from harness.kernels.merge import merge
from harness.rows import Rows, copied

COUNTERS = ("dealt", "samples", "updates", "advanced")  # samples handed out, and processed; updates applied; the
# samples of `Worker.advance`, which show how far a run is and decide nothing


@dataclass(frozen=True)
class Observation:
    """A snapshot of the model, taken off the clock and evaluated after the run.

    Args:
        time_s: the run's own clock; on real hardware that of who took it, put on the run's once that has ended well.
        host_s: `time.perf_counter()` of the host at that time.
        samples: global samples processed.
        updates: updates applied to the model.
        parameters: flat copy on the CPU, shape (parameters,).
        member: rank of the worker whose own model, or own part of it, it is; None where it is the run's.
        milestone: number of the milestone at which it was taken, from 0.
        part: int64 positions of `parameters` among those of the whole model, of the same shape; None if it is whole.
    """

    time_s: float
    host_s: float
    samples: int
    updates: int
    parameters: torch.Tensor
    member: int | None = None
    milestone: int = 0
    part: torch.Tensor | None = None


class Place(ABC):
    """Where one worker runs: what a hardware provides for it.

    Attributes:
        node: of the socket it sits on, among those that hold workers of this run; 0 where workers share no memory.
        num_nodes: how many sockets hold workers; 1 where workers share no memory.
        num_memories: NUMA nodes in use, on which what is shared may lie.
        interleaving: what timing has decided here.
        measures: what the worker has measured here, and concluded; see `harness.measures`.
    """

    rank: int
    num_workers: int
    node: int = 0
    num_nodes: int = 1
    num_memories: int = 1
    device: torch.device
    clock: Clock
    interleaving: Interleaving
    measures: dict[str, Any]

    @property
    def nodes(self) -> tuple[int, ...]:
        """The node of every rank."""
        return (0,) * self.num_workers

    @abstractmethod
    def add(self, counter: str, amount: int) -> int:
        """Atomically add to a counter of the run; returns its value before.

        Args:
            counter: one of `COUNTERS`, or where threads or simulated ranks share memory `dealing.counter` of any pool.
        """

    @abstractmethod
    def count(self, samples: int, updates: int, alone: bool) -> tuple[int, int]:
        """Atomically add to `samples` and `updates` of the run; returns their values before.

        Args:
            alone: whether no other rank counts, so that there is nobody to lock out.
        """

    @abstractmethod
    def shared(self, name: str, tensor: torch.Tensor, node: int | None) -> torch.Tensor:
        """One tensor seen by all workers, initialised from rank 0's `tensor`.

        Every worker calls it with the same names in the same order, shapes, dtypes and nodes, and returns when it is
        ready.

        Args:
            node: 0 .. num_nodes - 1, in whose memory it lies; None leaves that to the hardware's settings.

        Raises:
            UserError: where workers share no memory.
        """

    def rows(
        self,
        name: str,
        kernel: Kernel,
        shares: Mapping[int | None, Share],
        share: Share,
        fresh: bool = False,
        sequential: bool = False,
    ) -> Rows:
        """A kernel over rows that lie where they shall: copies of its own rows. All workers call it alike.

        Args:
            name: of the rows.
            kernel: one whose rows can be moved, or nothing is done.
            shares: the rows that lie in each node's memory, or wherever the hardware's settings say (None).
            share: of these, the worker's.
            fresh: whether there must be a copy even where nothing would lie elsewhere.
            sequential: whether they will be visited as they are stored; only virtual time depends on it.
        """
        if kernel.row_data is None or (not fresh and self.num_memories == 1 and None in shares):
            return Rows(kernel, share.first)
        return copied(name, kernel, shares, share, self.shared)

    def gather(self, source: Rows, target: Rows, rows: torch.Tensor, begin: int, end: int) -> None:
        """Copy rows[begin] .. rows[end - 1] of `source` to where they are begin .. end - 1 of `target`.

        Args:
            rows: int32, in the numbers of `source.kernel`.
        """
        data, into = source.kernel.row_data, target.kernel.row_data
        assert data is not None and into is not None
        data.gather_into(into, rows, begin, end, source.first)

    @abstractmethod
    def run(
        self,
        kernel: Kernel,
        model: Model,
        samples: torch.Tensor,
        learning_rate: float,
        access: Access,
        salt: int,
    ) -> None:
        """Run a native kernel over a chunk of samples, and spend its time; see `Kernel.__call__`."""

    def merge(self, model: torch.Tensor, known: torch.Tensor, common: torch.Tensor, share: float) -> None:
        """Merge a replica into the common model natively, and spend its time; see `harness.kernels.merge`."""
        merge(model, known, common, share)

    @abstractmethod
    def background(self, activity: Callable[[], None]) -> None:
        """Start a helper activity of this worker; it may communicate, and ends before the run does."""

    def all_ranks(self) -> dist.ProcessGroup:
        """A process group of all ranks, data servers among them, whose messages are not the algorithm's. Called once.

        Raises:
            UserError: where workers exchange no messages.
        """
        raise UserError("data=streamed needs workers that exchange messages: use data=partitioned")

    @abstractmethod
    def meet(self, num_workers: int) -> None:
        """Wait until all workers have come, the first ranks. In the thread that trains, if there are others."""

    @abstractmethod
    def lock(self, name: str) -> AbstractContextManager[None]:
        """A block in which no other activity of any worker is that asks for the same name; no activity asks twice."""

    @abstractmethod
    def spend(self, seconds: float, idle: bool) -> None:
        """Let run time pass, once all that the device has been given is done. Called in the thread that trains.

        Args:
            idle: whether the worker waits; else it counts as computing.
        """

    def dealt(self, num_samples: int) -> None:  # noqa: B027 - only virtual time depends on it
        """Hear that a batch has been handed to the worker. Real hardware has nothing to do."""

    def advance(self, samples: int) -> None:  # noqa: B027 - who watches then sees less
        """Let who watches the run know that samples were processed which will be observed later."""

    def publish(self) -> None:  # noqa: B027 - simulated ranks are read as they are
        """Hand what has been measured so far to the harness."""

    def settle(self) -> None:  # noqa: B027 - only a device that runs behind its host has anything under way
        """Wait for all that this worker's device has been given."""

    @abstractmethod
    def report(self, observation: Observation) -> None:
        """Hand an observation to the harness. Called with the clock paused."""
