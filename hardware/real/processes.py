"""Workers as processes: what the parent does.

Processes come from a fork server that has already imported torch, so a second run starts in tens of milliseconds and
many workers start as fast as two. The parent only listens: it lets workers meet, keeps what they observe, notices who
died, and ends the others.
"""

import os
import signal
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Self

import torch

from hardware.base import Execution
from hardware.real import simd, worker_process
from hardware.real.breakdown import shares_of
from hardware.real.conclusion import conclude
from hardware.real.counters import SharedCounters, processed
from hardware.real.crew import Crew, as_failure
from hardware.real.fork_server import explained, start_fork_server
from hardware.real.interruptible import interruptible
from hardware.real.messages import Arrived, Failed, Finished, Measured, Observed, disagreement
from hardware.real.parcel import Parcel
from hardware.real.placement import tensor_over
from hardware.real.process_place import Launch
from hardware.real.segment import Segment
from hardware.real.signals import deaf, terminable
from harness.errors import WaitedInVain, WorkerFailed
from harness.measures import Measures, so_far
from harness.place import COUNTERS, Observation
from harness.program import Program

PROGRESS_S = 0.25  # between two calls of `progress`
LEAD_S = 0.001  # from the answer at "start" to the start of the clock
SETTLE_S = 0.5  # after a first failure, to see whether it was only the consequence of another
STOPPED_LOOKS = 20  # in a row, `PROGRESS_S` apart; who is stopped with us, as by Ctrl-Z, goes on with us
GRACE_S = 2.0  # for a process to end by itself, and then after SIGTERM


def run_in_processes(crew: Crew, program: Program, progress: Callable[[int], None]) -> Execution:
    """Run a program on one process per worker; see `Hardware.execute`."""
    try:
        interruptible(partial(worker_process.touch, program))
        parcel = Parcel(program)
    except Exception as error:
        return Execution(failure=as_failure("the program, before any worker started,", error, traceback.format_exc()))
    try:
        with terminable(), _Parent(crew, program, parcel) as parent:
            try:
                parent.listen(progress)
            except KeyboardInterrupt as interrupt:
                parent.fail(interrupt)
            return parent.execution()
    except WorkerFailed as failure:
        return Execution(failure=failure)


class _Parent:
    """The processes of one run, and what is known of them."""

    def __init__(self, crew: Crew, program: Program, parcel: Parcel) -> None:
        self._crew, self._program = crew, parcel
        self._shares = shares_of(program, crew.num_workers)
        self._names = [program.name_of(rank, crew.num_workers) for rank in range(crew.num_workers)]
        self._common = {name: Segment() for name in ("rendezvous", "locks", "shared")}
        self._common["counters"] = Segment(8 * len(COUNTERS))
        self._snapshots = [Segment() for _ in crew.cpus]
        self._counters = SharedCounters(self._common["counters"])
        modules = [type(program.algorithm).__module__, type(program.problem).__module__]
        self._context = start_fork_server(modules)
        self._processes: list[Any] = []
        self._pipes: list[Connection] = []
        self._open: dict[Connection, int] = {}  # pipes that may still say something, by rank
        self._arrived: dict[int, Arrived] = {}
        self._observed: list[tuple[int, Observed]] = []
        self._measured: dict[int, Measures] = {}
        self._finished: dict[int, Finished] = {}
        self._failures: list[Failed] = []
        self._ended: set[int] = set()
        self._stopped: dict[int, int] = {}  # by rank, looks that have found its process stopped
        self._start_s = 0.0

    def __enter__(self) -> Self:
        try:
            for rank in range(self._crew.num_workers):
                self._start(rank)
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def listen(self, progress: Callable[[int], None]) -> None:
        """Serve the workers until all have ended or one has failed."""
        due_s = time.perf_counter() + PROGRESS_S
        while not self._failures and len(self._ended) < self._crew.num_workers:
            self._serve(due_s - time.perf_counter())
            if time.perf_counter() >= due_s:
                progress(processed(self._counters))
                self._look_for_stopped(STOPPED_LOOKS)
                due_s = time.perf_counter() + PROGRESS_S
        settled_s = time.perf_counter() + SETTLE_S
        while self._failures and self._open and time.perf_counter() < settled_s:
            self._serve(settled_s - time.perf_counter())
        if self._in_vain():
            self._look_for_stopped(1)
        progress(processed(self._counters))

    def fail(self, error: BaseException) -> None:
        """Note why the run ends, whatever its workers say."""
        self._failures.append(Failed(error, float("-inf")))

    def execution(self) -> Execution:
        """What came of it."""
        execution = Execution(observations=self._observations(), failure=self._failure())
        if self._failures:
            execution.told(so_far([*self._measured.values()]))
            return execution
        finished = [self._finished[rank] for rank in range(self._crew.num_workers)]
        conclude(execution, finished, self._start_s, self._shares)
        return execution

    def _start(self, rank: int) -> None:
        ours, theirs = self._context.Pipe()
        launch = Launch(
            rank=rank,
            name=self._names[rank],
            crew=self._crew,
            environment=dict(os.environ) | simd.environment(self._crew.simd),
            program=self._program,
            connection=theirs,
            snapshots=self._snapshots[rank],
            **self._common,
        )
        process = self._context.Process(target=worker_process.main, args=(launch,), name=f"worker {rank}")
        self._processes.append(process)
        self._pipes.append(ours)
        with explained():
            process.start()
        theirs.close()
        self._open[ours] = rank

    def _serve(self, timeout_s: float) -> None:
        sentinels = {self._processes[rank].sentinel: pipe for pipe, rank in self._open.items()}
        for ready in wait([*self._open, *sentinels], max(timeout_s, 0.0)):
            if isinstance(ready, Connection):
                self._receive(ready)
            elif sentinels[ready] in self._open:
                self._bury(sentinels[ready])
        self._let_meet()

    def _receive(self, pipe: Connection) -> bool:
        """Take one message. Returns false once there will be no more."""
        rank = self._open[pipe]
        try:
            message = pipe.recv()
        except (EOFError, ConnectionResetError):
            return False  # its sentinel tells the rest
        match message:
            case Arrived():
                self._arrived[rank] = message
            case Observed():
                self._observed.append((rank, message))
            case Measured():
                self._measured[rank] = message.measures
            case Finished():
                self._finished[rank] = message
            case Failed():
                self._failures.append(message)
                del self._open[pipe]
                return False
        return True

    def _bury(self, pipe: Connection) -> None:
        """A process is gone: take what it still said, then say how it went."""
        rank = self._open[pipe]
        while pipe in self._open and pipe.poll() and self._receive(pipe):
            pass
        if self._open.pop(pipe, None) is not None and rank not in self._ended:
            self._processes[rank].join()
            # A death explains the broken connections of all others, which may have been quicker to complain.
            self.fail(WorkerFailed(self._obituary(rank)))

    def _look_for_stopped(self, looks: int) -> None:
        """Give up on who has been stopped, and not continued, for so many looks in a row."""
        stopped = [rank for rank in self._open.values() if _state(self._processes[rank].pid) == "T"]
        self._stopped = {rank: self._stopped.get(rank, 0) + 1 for rank in stopped}
        for rank in [rank for rank, seen in self._stopped.items() if seen >= looks][:1]:
            who = f"{self._names[rank]} (pid {self._processes[rank].pid})"
            self.fail(WorkerFailed(f"{who} was stopped by a signal (SIGSTOP), and the others wait for it"))

    def _obituary(self, rank: int) -> str:
        process = self._processes[rank]
        who, code = f"{self._names[rank]} (pid {process.pid})", process.exitcode
        if code >= 0:
            return f"{who} ended with exit code {code} in mid-run: see what it printed"
        return f"{who} was killed by signal {-code} ({signal.Signals(-code).name})"

    def _let_meet(self) -> None:
        """Answer the workers, once all have arrived at the same place; a server may be at the end meanwhile."""
        come = min(
            (each.num_ranks for each in self._arrived.values() if each.num_ranks), default=self._crew.num_workers
        )
        if any(rank not in self._arrived for rank in range(come)):
            return
        arrived = {rank: self._arrived.pop(rank) for rank in range(come)}
        for rank, place in arrived.items():
            if place != arrived[0]:
                self._failures.append(Failed(disagreement(arrived[0], self._names[rank], place), time.perf_counter()))
                return
        answer = self._answer(arrived[0])
        for pipe in self._pipes[:come]:
            with suppress(BrokenPipeError):  # it died since; its sentinel tells
                pipe.send(answer)

    def _answer(self, arrived: Arrived) -> float | int | None:
        if arrived.place == "start":
            self._start_s = time.perf_counter() + LEAD_S
            return self._start_s
        if arrived.place == "shared":
            return self._common["shared"].grow(arrived.length_bytes)
        if arrived.place == "end":
            self._ended.update(range(self._crew.num_workers))
        return None

    def _failure(self) -> BaseException | None:
        if not self._failures:
            return None
        first = min(self._failures, key=lambda failed: failed.host_s).error
        silent = [self._names[rank] for rank in self._open.values() if rank not in self._finished]
        if not self._in_vain() or not silent:
            return first
        return WaitedInVain(f"{first}; nothing was heard from {' and '.join(silent)}")

    def _in_vain(self) -> bool:
        """Whether all who failed have waited for somebody else."""
        return bool(self._failures) and all(isinstance(failed.error, WaitedInVain) for failed in self._failures)

    def _observations(self) -> list[Observation]:
        maps = [segment.map(shared=False) if self._any(rank) else None for rank, segment in enumerate(self._snapshots)]
        observations = [_observation(seen, maps[rank]) for rank, seen in self._observed]
        return sorted(observations, key=lambda observation: observation.samples)

    def _any(self, rank: int) -> bool:
        return any(observer == rank for observer, _ in self._observed)

    def _stop(self) -> None:
        """End every process and let go of everything, whatever state it is in."""
        with deaf():
            started = [process for process in self._processes if process.pid is not None]
            if len(self._ended) == self._crew.num_workers and not self._failures:
                _join(started)
            for rank in self._stopped:
                self._processes[rank].kill()  # nothing else reaches it
            for end in ("terminate", "kill"):
                for process in started:
                    getattr(process, end)()
                _join(started)
            for process in started:
                if process.exitcode is not None:  # killed, and not gone yet on a machine that has no time for it
                    process.close()
            for pipe in self._pipes:
                pipe.close()
            segments: list[Any] = [self._program, *self._common.values(), *self._snapshots]
            for segment in segments:
                segment.close()


def _observation(seen: Observed, pages: Any) -> Observation:
    parameters = tensor_over(pages, seen.shape, seen.dtype, seen.offset)
    part = None if seen.part_offset is None else tensor_over(pages, seen.shape, torch.int64, seen.part_offset)
    counted = seen.samples, seen.updates
    return Observation(seen.time_s, seen.host_s, *counted, parameters, seen.member, seen.milestone, part)


def _state(pid: int) -> str:
    """Of a process, as the kernel says it: "T" where a signal has stopped it; empty where it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _join(processes: list[Any]) -> None:
    deadline_s = time.perf_counter() + GRACE_S
    for process in processes:
        process.join(max(0.0, deadline_s - time.perf_counter()))
