"""Workers as pinned threads of this process, for programs whose inner loop is a native kernel.

The kernel releases the interpreter's lock, the threads start in microseconds, and what they share is ordinary memory.
"""

import os
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch

from hardware.base import Execution
from hardware.real.breakdown import Ledger, break_down, shares_of
from hardware.real.counters import LocalCounters
from hardware.real.crew import Background, Crew, as_failure
from hardware.real.host_clock import HostClock
from hardware.real.interruptible import interruptible
from hardware.real.locks import LocalLocks, held
from hardware.real.messages import Arrived, disagreement, waited_in_vain
from hardware.real.placement import allocate, prove
from hardware.real.signals import deaf
from hardware.real.spending import spend
from hardware.real.waits import Waits
from harness.errors import WorkerFailed
from harness.kernels.access import Access
from harness.kernels.base import Kernel, Model, SplitModel
from harness.measures import Measures, copied, so_far
from harness.place import Observation, Place
from harness.program import Program
from harness.rows import Rows
from harness.worker import Worker

PROGRESS_S = 0.25  # between two calls of `progress`
GRACE_S = 4.0  # for all threads to leave once they should; a native call is of MAX_CHUNK updates at most


def run_in_threads(crew: Crew, program: Program, progress: Callable[[int], None]) -> Execution:
    """Run a program on one thread per worker; see `Hardware.execute`."""
    interruptible(program.warm_up)
    torch_threads = torch.get_num_threads()
    run = _Run(crew, program)
    try:
        progress(0)
        run.start()
        while not run.over.wait(PROGRESS_S):
            progress(run.counters.value("samples"))
        progress(run.counters.value("samples"))
    except KeyboardInterrupt as interrupt:
        run.failures.insert(0, interrupt)
    finally:
        run.stop()
        torch.set_num_threads(torch_threads)
    return run.execution()


class _Stopped(BaseException):
    """Raised in a worker once another one has failed, or the user has had enough."""


@dataclass(frozen=True)
class PlacedTensor:
    """A tensor, and what the manifest says of its place."""

    name: str
    tensor: torch.Tensor
    placed: dict[str, object]


class _Run:
    """The threads of one run, and what they share."""

    def __init__(self, crew: Crew, program: Program) -> None:
        self.crew, self.program = crew, program
        self.counters = LocalCounters()
        self.over = threading.Event()
        self.stopping = False
        self.locks = LocalLocks(crew.timeout_s, self.leave_if_stopping)
        self._meeting = threading.Barrier(crew.num_workers)
        self.shared: list[PlacedTensor] = []
        self.replicas: dict[tuple[int, str], torch.Tensor] = {}  # what kernels worked on that is not shared
        self.loaded_rows: dict[str, torch.Tensor] = {}  # likewise, by array
        self.may_lose: set[bool] = set()  # whether updates of a kernel that ran could overwrite each other
        self._arrivals: list[list[Arrived]] = [[] for _ in crew.cpus]  # of each worker, one per meeting
        self.observations: list[Observation] = []
        self.start_s = 0.0
        self._ledgers: dict[int, Ledger] = {}
        self._measures: dict[int, Measures] = {}
        self.failures: list[BaseException] = []
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._work, args=(rank,), name=f"worker {rank}", daemon=True)
            for rank in range(crew.num_workers)
        ]

    def start(self) -> None:
        """Start all workers; the last one ready starts the clock."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Have the workers leave at their next call, and wait until they have, or until that seems hopeless."""
        self.stopping = True
        self._meeting.abort()
        started = [thread for thread in self._threads if thread.ident is not None]
        deadline_s = time.perf_counter() + GRACE_S
        with deaf():
            for thread in started:
                thread.join(max(0.0, deadline_s - time.perf_counter()))
        if stuck := [thread.name for thread in started if thread.is_alive()]:
            self._give_up(", ".join(stuck))

    def fail(self, who: str, error: BaseException, details: str) -> None:
        """Note why the run ends, and have all workers leave."""
        if not isinstance(error, _Stopped):
            with self._lock:
                self.failures.append(as_failure(who, error, details))
        self.stopping = True
        self._meeting.abort()
        self.over.set()

    def leave_if_stopping(self) -> None:
        """Called by workers now and then."""
        if self.stopping:
            raise _Stopped

    def meet(self, rank: int, arrived: Arrived, timeout_s: float | None = None) -> None:
        """Wait for all workers, which must have come for the same.

        Raises:
            UserError: if they have not.
            WorkerFailed: if it takes longer than `timeout_s`.
        """
        self._arrivals[rank].append(arrived)
        begin_s = time.perf_counter()
        try:
            self._meeting.wait(timeout_s)
        except threading.BrokenBarrierError:
            if timeout_s is not None and time.perf_counter() - begin_s >= timeout_s:
                raise waited_in_vain(f"worker {rank}", timeout_s) from None
            raise _Stopped from None
        together = [arrivals[len(self._arrivals[rank]) - 1] for arrivals in self._arrivals]
        for other, place in enumerate(together):
            if place != together[0]:
                raise disagreement(together[0], f"worker {other}", place)

    def holds(self, model: Model) -> bool:
        """Whether other workers see the model too, or what of it is not replicated."""
        return self._shares(model.cold if isinstance(model, SplitModel) else model)

    def note(self, rank: int, kernel: Kernel, model: Model) -> None:
        """Remember for the manifest what a kernel works on that is not shared: a replica, rows as they were loaded."""
        own, name = (model.hot, "hot coordinates") if isinstance(model, SplitModel) else (model, kernel.model_name)
        if not self._shares(own):
            self.replicas.setdefault((rank, name), own)
        if not self._shares(kernel.indptr):
            self.loaded_rows = kernel.arrays | self.loaded_rows

    def publish(self, rank: int, measures: Measures) -> None:
        """Keep what a worker has measured so far, as it does not go on changing."""
        self._measures[rank] = copied(measures)

    def execution(self) -> Execution:
        """What came of it."""
        execution = Execution(observations=sorted(self.observations, key=lambda observation: observation.samples))
        if self.failures:
            execution.failure = self.failures[0]
            execution.told(so_far(self._told()))
            return execution
        ledgers = [self._ledgers[rank] for rank in range(self.crew.num_workers)]
        breakdown = break_down(ledgers, self.start_s, shares_of(self.program, self.crew.num_workers))
        execution.observations = breakdown.on_its_clock(execution.observations)
        execution.workers = breakdown.workers
        execution.told(self._told())
        if self.may_lose == {False}:
            execution.metrics["async/lost_frac"] = 0.0
        if tensors := [*self.shared, *self._private()]:
            execution.facts["placement"] = {
                each.name: {**each.placed, "pages_by_node": prove(each.tensor)} for each in tensors
            }
        return execution

    def _told(self) -> list[Measures]:
        return [self._measures[rank] for rank in sorted(self._measures)]

    def _private(self) -> Iterator[PlacedTensor]:
        for rank, name in sorted(self.replicas):
            yield PlacedTensor(f"{name} of worker {rank}", self.replicas[rank, name], {"policy": "first_touch"})
        for name, array in self.loaded_rows.items():
            yield PlacedTensor(name, array, {"policy": "first_touch"})

    def _shares(self, tensor: torch.Tensor) -> bool:
        address = tensor.untyped_storage().data_ptr()
        return any(each.tensor.untyped_storage().data_ptr() == address for each in self.shared)

    def _give_up(self, who: str) -> None:
        """Nothing can end a thread that makes no call: it is left behind, which the failure must say."""
        stuck = f"{who} did not leave within {GRACE_S:g} s: left behind, until this process ends"
        with self._lock:
            reason = self.failures[0] if self.failures else None
            if isinstance(reason, KeyboardInterrupt):
                reason.add_note(stuck)
            else:
                message = f"{reason}; {stuck}" if reason else stuck
                self.failures.insert(0, WorkerFailed(message, getattr(reason, "details", "")))

    def _work(self, rank: int) -> None:
        try:
            os.sched_setaffinity(0, self.crew.cpus[rank])
            torch.set_num_threads(self.crew.intra_op_threads)
            self._train(ThreadPlace(rank, self))
        except BaseException as error:
            self.fail(f"worker {rank}", error, traceback.format_exc())

    def _train(self, place: "ThreadPlace") -> None:
        worker = Worker(place, self.program)
        self.meet(place.rank, Arrived("start"))
        with self._lock:
            self.start_s = self.start_s or time.perf_counter()
        place.clock = clock = HostClock(self.start_s)
        self.program.run(worker)
        finish_s = time.perf_counter()
        place.finish()
        none = np.empty((0, 4))
        waits = place.waits.table()
        ledger = Ledger(finish_s, place.kernel_s, clock.pauses, {}, none, waits, sent_bytes=0, peak_bytes=None)
        self.meet(place.rank, Arrived("end"))
        self.publish(place.rank, place.measures)
        with self._lock:
            self._ledgers[place.rank] = ledger
            if len(self._ledgers) == self.crew.num_workers:
                self.over.set()


class ThreadPlace(Place):
    """Where a worker thread runs."""

    def __init__(self, rank: int, run: _Run) -> None:
        self.rank, self.num_workers = rank, run.crew.num_workers
        self.node, self.num_nodes = run.crew.nodes[rank], run.crew.num_nodes
        self.num_memories = len(run.crew.numa_nodes)
        self.device = torch.device("cpu")
        self.kernel_s = 0.0
        self.waits = Waits()
        self._run = run
        self._num_shared = 0
        self._kernel: Kernel | None = None  # that ran last
        self._background = Background(run.crew.timeout_s, self._tell)

    @property
    def nodes(self) -> tuple[int, ...]:
        """The node of every rank."""
        return tuple(self._run.crew.nodes)

    def add(self, counter: str, amount: int) -> int:
        """Atomically add to a counter; returns its value before."""
        self._leave_if_stopping()
        return self._run.counters.add(counter, amount)

    def count(self, samples: int, updates: int, alone: bool) -> tuple[int, int]:
        """Atomically add to both counters; returns their values before."""
        self._leave_if_stopping()
        return self._run.counters.count(samples, updates, alone)

    def shared(self, name: str, tensor: torch.Tensor, node: int | None) -> torch.Tensor:
        """One tensor of this process, placed on the node or by the policy, and initialised by rank 0."""
        run, crew = self._run, self._run.crew
        if self.rank == 0:
            common, policy = allocate(tensor.shape, tensor.dtype, crew.policy(node), crew.numa_nodes)
            run.shared.append(PlacedTensor(name, common.copy_(tensor.detach()), crew.placed(node, policy)))
        run.meet(self.rank, Arrived.to_share(name, tensor, node))
        self._num_shared += 1
        return run.shared[self._num_shared - 1].tensor

    def gather(self, source: Rows, target: Rows, rows: torch.Tensor, begin: int, end: int) -> None:
        """Copy rows natively."""
        self._leave_if_stopping()
        begin_s = time.perf_counter()
        super().gather(source, target, rows, begin, end)
        self.kernel_s += time.perf_counter() - begin_s

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
        self._leave_if_stopping()
        common = kernel.adds_beyond_model or self._run.holds(model)
        self._run.may_lose.add(access.locking == "none" and self.num_workers > 1 and common)
        if kernel is not self._kernel:
            self._kernel = kernel
            self._run.note(self.rank, kernel, model)
        begin_s = time.perf_counter()
        kernel(model, samples, learning_rate, access, salt)
        self.kernel_s += time.perf_counter() - begin_s

    def merge(self, model: torch.Tensor, known: torch.Tensor, common: torch.Tensor, share: float) -> None:
        """Merge natively; no lock of kernels keeps out who shares the replica."""
        self._run.may_lose.add(self.num_workers > 1 and self._run.holds(model))
        begin_s = time.perf_counter()
        super().merge(model, known, common, share)
        self.kernel_s += time.perf_counter() - begin_s

    def background(self, activity: Callable[[], None]) -> None:
        """Start a helper activity, another thread on the same CPUs."""
        self._background.start(activity)

    def meet(self, num_workers: int) -> None:
        """Wait for all workers, who have no servers beside them."""
        self._leave_if_stopping()
        with self.waits.noted():
            self._run.meet(self.rank, Arrived("meet"), self._run.crew.timeout_s)

    def spend(self, seconds: float, idle: bool) -> None:
        """Sleep."""
        begin_s = time.perf_counter()
        with self.waits.noted() if idle else nullcontext():
            spend(seconds, self._leave_if_stopping)
        self.kernel_s += 0.0 if idle else time.perf_counter() - begin_s

    def lock(self, name: str) -> AbstractContextManager[None]:
        """A block of one thread at a time."""
        self._leave_if_stopping()
        return held(self._run.locks, name, f"worker {self.rank}", self.waits)

    def report(self, observation: Observation) -> None:
        """Keep an observation."""
        self._run.observations.append(observation)

    def publish(self) -> None:
        """Leave it with the run, which may end next."""
        self._run.publish(self.rank, self.measures)

    def finish(self) -> None:
        """Wait for the helper activities."""
        self._background.finish()

    def _tell(self, error: BaseException, details: str) -> None:
        self._run.fail(f"a background activity of worker {self.rank}", error, details)

    def _leave_if_stopping(self) -> None:
        self._run.leave_if_stopping()
        self._background.check()
