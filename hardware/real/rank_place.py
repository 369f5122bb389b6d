"""What a rank that is a process of its own offers to the `Worker` on it, on this machine or among several."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any

import torch
import torch.distributed as dist

from hardware.real.counters import Counters
from hardware.real.crew import Background, Crew, as_failure
from hardware.real.locks import Locks, held
from hardware.real.messages import Arrived, Failed, Line, Measured, waited_in_vain
from hardware.real.spending import spend
from hardware.real.waits import Waits
from harness.errors import UserError
from harness.kernels.access import Access
from harness.kernels.base import Kernel, Model
from harness.measures import copied
from harness.place import Place

ADVANCE_S = 0.25  # between two words of what was processed: it is for the eye


class RankPlace(Place):
    """Where one rank runs. How a tensor is shared, and where a snapshot goes, is for those that derive from it to say.

    Args:
        name: of the rank, as errors say it.
        line: to who runs the ranks.
        counters: common to all ranks.
        locks: common to all ranks, which say that they waited for too long by `say_failed`.
    """

    def __init__(self, rank: int, name: str, crew: Crew, line: Line, counters: Counters, locks: Locks) -> None:
        self.rank, self.num_workers, self._name = rank, crew.num_workers, name
        self.node, self.num_nodes = crew.nodes[rank], crew.num_nodes
        self.num_memories = len(crew.numa_nodes)
        self.device = crew.device(rank)
        self.crew, self.line = crew, line
        self._counters, self._locks = counters, locks
        self._background = Background(crew.timeout_s, self._tell)
        self.waits = Waits()
        self.spent_s = 0.0  # as computing, beyond what the CPU did meanwhile
        self._ahead, self._told_s = 0, 0.0  # samples that nobody has been told of, and when somebody was
        self.everybody: dist.ProcessGroup | None = None  # where there are data servers

    @property
    def nodes(self) -> tuple[int, ...]:
        """The node of every rank."""
        return tuple(self.crew.nodes)

    def ask(self, arrived: Arrived) -> Any:
        """Wait until all workers are here. Returns the answer."""
        return self.line.ask(arrived)

    def add(self, counter: str, amount: int) -> int:
        """Atomically add to a counter; returns its value before."""
        self._background.check()
        return self._counters.add(counter, amount)

    def count(self, samples: int, updates: int, alone: bool) -> tuple[int, int]:
        """Atomically add to both counters; returns their values before."""
        self._background.check()
        return self._counters.count(samples, updates, alone)

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
        timeout_s = self.crew.timeout_s
        self.settle()
        try:
            with self.waits.noted():
                self.line.ask(Arrived("meet", num_ranks=num_workers), timeout_s)
        except TimeoutError:
            raise waited_in_vain(self._name, timeout_s) from None
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
        return held(self._locks, name, self._name, self.waits)

    def advance(self, samples: int) -> None:
        """Count them, now and then: the counters may be on another host."""
        self._ahead += samples
        if (now_s := time.perf_counter()) >= self._told_s + ADVANCE_S:
            self._counters.add("advanced", self._ahead)
            self._ahead, self._told_s = 0, now_s

    def publish(self) -> None:
        """Tell who runs the ranks, as this process may be ended next."""
        self.line.say(Measured(copied(self.measures)))

    def settle(self) -> None:
        """Wait for the device, if it is not the CPU."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def finish(self) -> None:
        """Wait for the helper activities."""
        self._background.finish()

    def _refuse_on_device(self, what: str) -> None:
        if self.device.type != "cpu":
            raise UserError(f"{what}, which a CUDA device does not have: use hardware=cpu")

    def _tell(self, error: BaseException, details: str) -> None:
        say_failed(self.line, as_failure(f"a background activity of {self._name}", error, details))


def say_failed(line: Line, failure: Exception) -> None:
    """Tell who runs the ranks that this one cannot go on, from any thread."""
    with suppress(BrokenPipeError, ConnectionResetError):  # who runs them gave up meanwhile
        line.say(Failed(failure, time.perf_counter()))
