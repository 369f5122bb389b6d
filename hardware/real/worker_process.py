"""A worker as an OS process: what runs in the child."""

import contextlib
import ctypes
import fcntl
import multiprocessing
import os
import resource
import signal
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from threading import Lock
from typing import Any

import torch
import torch.distributed as dist

from hardware.real.breakdown import Ledger
from hardware.real.counters import SharedCounters
from hardware.real.crew import Background, Crew, as_failure
from hardware.real.host_clock import HostClock
from hardware.real.messages import Arrived, Failed, Finished, Observed
from hardware.real.metered_group import Meter, init_metered_group
from hardware.real.parcel import Parcel
from hardware.real.placement import apply_policy, prove, tensor_over
from hardware.real.segment import Segment
from harness.kernels import Kernel
from harness.program import Program
from harness.worker import Observation, Place, Worker

PR_SET_PDEATHSIG = 1  # prctl(2)
F_SETSIG = 10  # fcntl(2)


@dataclass(frozen=True)
class Launch:
    """All a worker process starts from.

    Args:
        environment: the parent's environment variables, which the fork server may not have.
        program: the packed `Program`.
        rendezvous: where the ranks find each other.
        counters, shared: common to all workers.
        snapshots: this worker's own.
    """

    rank: int
    crew: Crew
    environment: dict[str, str]
    program: Parcel
    connection: Connection
    rendezvous: Segment
    counters: Segment
    shared: Segment
    snapshots: Segment


def main(launch: Launch) -> None:
    """Be one worker, from start to end; whatever goes wrong is told to the parent."""
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole terminal; the parent decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with contextlib.suppress(BrokenPipeError, EOFError, ConnectionResetError):  # the parent gave up meanwhile
        try:
            _work(launch)
        except BaseException as error:
            failure = as_failure(launch.rank, error, traceback.format_exc())
            launch.connection.send(Failed(failure, time.perf_counter()))


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent ends, however that ends.

    The parent holds the other end of our start-up pipe; the kernel signals its closing. PR_SET_PDEATHSIG alone would
    not do: our parent by birth is the fork server, which outlives the real one for as long as we live.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None
    fcntl.fcntl(parent.sentinel, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(parent.sentinel, F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(parent.sentinel, fcntl.F_SETFL, fcntl.fcntl(parent.sentinel, fcntl.F_GETFL) | fcntl.FASYNC)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if not parent.is_alive():
        os.kill(os.getpid(), signal.SIGKILL)


class ProcessPlace(Place):
    """Where a worker process runs."""

    def __init__(self, launch: Launch) -> None:
        self.rank, self.num_workers = launch.rank, launch.crew.num_workers
        self.device = torch.device("cpu")
        self.placement: dict[str, dict[str, object]] = {}
        self._launch = launch
        self._counters = SharedCounters(launch.counters)
        self._background = Background(launch.crew.timeout_s)
        self._shared: dict[str, torch.Tensor] = {}
        self._sending = Lock()

    def meet(self, arrived: Arrived) -> Any:
        """Wait until all workers are here. Returns the parent's answer."""
        with self._sending:
            self._launch.connection.send(arrived)
        return self._launch.connection.recv()

    def add(self, counter: str, amount: int) -> int:
        """Atomically add to a counter; returns its value before."""
        self._background.check()
        return self._counters.add(counter, amount)

    def shared(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """One tensor in shared memory, placed by the policy and initialised by rank 0."""
        offset = self.meet(Arrived.to_share(name, tensor))
        common = tensor_over(self._launch.shared.map(max(tensor.nbytes, 1), offset), tensor.shape, tensor.dtype)
        policy = self._launch.crew.memory_policy
        if self.rank == 0:
            policy = apply_policy(common, policy, self._launch.crew.nodes)
            common.copy_(tensor.detach())
        self.meet(Arrived("filled", repr(name)))
        self.placement[name] = {"policy": policy}
        self._shared[name] = common
        return common

    def run(self, kernel: Kernel, model: torch.Tensor, samples: torch.Tensor, learning_rate: float) -> None:
        """Run a native kernel."""
        kernel(model, samples, learning_rate)

    def background(self, activity: Callable[[], None]) -> None:
        """Start a helper activity, a thread of this process."""
        self._background.start(activity)

    def report(self, observation: Observation) -> None:
        """Put the snapshot where the parent finds it even if this process is killed next."""
        flat = observation.parameters.contiguous()
        with self._sending:
            offset = self._launch.snapshots.append(flat.view(-1).view(torch.uint8).numpy().data)
            self._launch.connection.send(
                Observed(
                    observation.time_s, observation.host_s, observation.samples, observation.updates,
                    offset, tuple(flat.shape), flat.dtype,
                )
            )  # fmt: skip

    def finish(self) -> None:
        """Wait for the helper activities, and look where the shared tensors lie."""
        self._background.finish()

    def prove_placement(self) -> dict[str, dict[str, object]]:
        """Where the pages of each shared tensor lie."""
        for name, tensor in self._shared.items():
            self.placement[name]["pages_by_node"] = prove(tensor)
        return self.placement


def touch(program: Program) -> None:
    """One forward and backward pass on a throw-away model: data are loaded, torch and kernels are warm."""
    model = program.problem.build_model(torch.device("cpu"), program.seed)
    program.problem.loss(model, torch.zeros(1, dtype=torch.int32)).backward()
    if program.problem.kernel is not None:
        program.problem.kernel.warm_up()


def _work(launch: Launch) -> None:
    os.environ.clear()
    os.environ.update(launch.environment)
    os.sched_setaffinity(0, launch.crew.cpus[launch.rank])
    torch.set_num_threads(launch.crew.intra_op_threads)
    program = launch.program.open()
    store = dist.FileStore(f"/proc/self/fd/{launch.rendezvous.fd}", launch.crew.num_workers)
    meter = init_metered_group(store, launch.rank, launch.crew.num_workers, launch.crew.timeout_s)
    place = ProcessPlace(launch)
    touch(program)
    ledger = _train(program, place, meter)
    launch.connection.send(Finished(ledger, place.prove_placement()))
    place.meet(Arrived("end"))
    dist.destroy_process_group()


def _train(program: Program, place: ProcessPlace, meter: Meter) -> Ledger:
    start_s = place.meet(Arrived("start"))
    time.sleep(max(0.0, start_s - time.perf_counter()))
    clock = place.clock = HostClock(start_s)
    worker = Worker(place, program)
    begin_cpu_s = time.thread_time()
    program.run(worker)
    place.finish()
    finish_s = time.perf_counter()
    return Ledger(
        finish_s=finish_s,
        busy_s=time.thread_time() - begin_cpu_s - clock.paused_cpu_s,
        pauses=clock.pauses,
        collectives={name: log.table() for name, log in meter.collectives.items()},
        messages=meter.messages.table(),
        sent_bytes=meter.sent_bytes,
        peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    )
