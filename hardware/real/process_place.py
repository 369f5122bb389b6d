"""What a worker process is given, and what it offers to the `Worker` on it."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from threading import Lock
from typing import Any

import torch
import torch.distributed as dist

from hardware.real.counters import SharedCounters
from hardware.real.crew import Background, Crew, as_failure
from hardware.real.locks import SharedLocks, held
from hardware.real.messages import Arrived, Failed, Line, Observed, waited_in_vain
from hardware.real.parcel import Parcel
from hardware.real.placement import apply_policy, prove, tensor_over
from hardware.real.segment import Segment
from hardware.real.spending import spend
from hardware.real.waits import Waits
from harness.errors import UserError
from harness.kernels.access import Access
from harness.kernels.base import Kernel, Model
from harness.place import Observation, Place


@dataclass(frozen=True)
class Launch:
    """All a worker process starts from.

    Args:
        name: who it is, in words.
        environment: the parent's environment variables, which the fork server may not have.
        program: the packed `Program`.
        rendezvous: where the ranks find each other.
        counters, locks, shared: common to all workers.
        snapshots: this worker's own.
    """

    rank: int
    name: str
    crew: Crew
    environment: dict[str, str]
    program: Parcel
    connection: Connection
    rendezvous: Segment
    counters: Segment
    locks: Segment
    shared: Segment
    snapshots: Segment


class ProcessPlace(Place):
    """Where a worker process runs."""

    def __init__(self, launch: Launch, line: Line) -> None:
        self.rank, self.num_workers = launch.rank, launch.crew.num_workers
        self.node, self.num_nodes = launch.crew.nodes[launch.rank], launch.crew.num_nodes
        self.num_memories = len(launch.crew.numa_nodes)
        self.device = launch.crew.device(launch.rank)
        self.placement: dict[str, dict[str, object]] = {}
        self._launch, self._line = launch, line
        self._counters = SharedCounters(launch.counters)
        self._background = Background(launch.crew.timeout_s, self._tell)
        self._shared: dict[str, torch.Tensor] = {}
        self._appending = Lock()
        self.waits = Waits()
        self.spent_s = 0.0  # as computing, beyond what the CPU did meanwhile
        self.everybody: dist.ProcessGroup | None = None  # where there are data servers
        self._locks = SharedLocks(launch.locks, launch.crew.timeout_s, self._say_failed)

    @property
    def nodes(self) -> tuple[int, ...]:
        """The node of every rank."""
        return tuple(self._launch.crew.nodes)

    def ask(self, arrived: Arrived) -> Any:
        """Wait until all workers are here. Returns the parent's answer."""
        return self._line.ask(arrived)

    def add(self, counter: str, amount: int) -> int:
        """Atomically add to a counter; returns its value before."""
        self._background.check()
        return self._counters.add(counter, amount)

    def count(self, samples: int, updates: int, alone: bool) -> tuple[int, int]:
        """Atomically add to both counters; returns their values before."""
        self._background.check()
        return self._counters.count(samples, updates, alone)

    def shared(self, name: str, tensor: torch.Tensor, node: int | None) -> torch.Tensor:
        """One tensor in shared memory, placed on the node or by the policy, and initialised by rank 0."""
        self._refuse_on_device(f"worker.shared({name!r}) needs memory that all workers share")
        crew = self._launch.crew
        offset = self.ask(Arrived.to_share(name, tensor, node))
        common = tensor_over(self._launch.shared.map(max(tensor.nbytes, 1), offset), tensor.shape, tensor.dtype)
        policy = crew.policy(node)
        if self.rank == 0:
            policy = apply_policy(common, policy, crew.numa_nodes)
            common.copy_(tensor.detach())
        self.ask(Arrived("filled", repr(name)))
        self.placement[name] = crew.placed(node, policy)
        self._shared[name] = common
        return common

    def run(
        self,
        kernel: Kernel,
        model: Model,
        samples: torch.Tensor,
        learning_rate: float,
        access: Access,
        salt: int,
    ) -> None:
        """Run a native kernel."""
        self._refuse_on_device("worker.run(...) runs a native kernel of CPUs")
        kernel(model, samples, learning_rate, access, salt)

    def background(self, activity: Callable[[], None]) -> None:
        """Start a helper activity, a thread of this process."""
        self._background.start(activity)

    def all_ranks(self) -> dist.ProcessGroup:
        """All ranks, connected before the clock started."""
        assert self.everybody is not None
        return self.everybody

    def meet(self, num_workers: int) -> None:
        """Wait until all workers are here.

        Raises:
            WorkerFailed: if that takes too long.
        """
        timeout_s = self._launch.crew.timeout_s
        self.settle()
        try:
            with self.waits.noted():
                self._line.ask(Arrived("meet", num_ranks=num_workers), timeout_s)
        except TimeoutError:
            raise waited_in_vain(self._launch.name, timeout_s) from None
        self._background.check()

    def spend(self, seconds: float, idle: bool) -> None:
        """Sleep, once the device is done."""
        self.settle()
        begin_s, begin_cpu_s = time.perf_counter(), time.thread_time()
        with self.waits.noted() if idle else nullcontext():
            spend(seconds, self._background.check)
        self.spent_s += (0.0 if idle else time.perf_counter() - begin_s) - (time.thread_time() - begin_cpu_s)

    def lock(self, name: str) -> AbstractContextManager[None]:
        """A block of one thread at a time, of all processes."""
        self._background.check()
        self.settle()
        return held(self._locks, name, self._launch.name, self.waits)

    def settle(self) -> None:
        """Wait for the device, if it is not the CPU."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def report(self, observation: Observation) -> None:
        """Put the snapshot where the parent finds it even if this process is killed next."""
        flat, part = observation.parameters, observation.part
        with self._appending:
            offset = self._append(flat)
            part_offset = None if part is None else self._append(part)
        self._line.say(
            Observed(
                observation.time_s, observation.host_s, observation.samples, observation.updates,
                offset, tuple(flat.shape), flat.dtype, observation.member, observation.milestone, part_offset,
            )
        )  # fmt: skip

    def _append(self, tensor: torch.Tensor) -> int:
        """Put a tensor where the parent finds it; returns where."""
        return self._launch.snapshots.append(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)

    def finish(self) -> None:
        """Wait for the helper activities, and look where the shared tensors lie."""
        self._background.finish()

    def prove_placement(self) -> dict[str, dict[str, object]]:
        """Where the pages of each shared tensor lie."""
        for name, tensor in self._shared.items():
            self.placement[name]["pages_by_node"] = prove(tensor)
        return self.placement

    def _refuse_on_device(self, what: str) -> None:
        if self.device.type != "cpu":
            raise UserError(f"{what}, which hardware=gpus does not have: use hardware=cpu")

    def _tell(self, error: BaseException, details: str) -> None:
        self._say_failed(as_failure(f"a background activity of {self._launch.name}", error, details))

    def _say_failed(self, failure: Exception) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):  # the parent gave up meanwhile
            self._line.say(Failed(failure, time.perf_counter()))
