"""A worker as an OS process: what runs in the child."""

import contextlib
import ctypes
import fcntl
import math
import multiprocessing
import os
import resource
import signal
import time
import traceback
from dataclasses import replace
from datetime import timedelta

import torch
import torch.distributed as dist

from hardware.real import simd
from hardware.real.breakdown import Ledger
from hardware.real.crew import as_failure
from hardware.real.host_clock import HostClock
from hardware.real.messages import Arrived, Failed, Finished, Line, PipeLine
from hardware.real.meter import Meter
from hardware.real.metered_group import GroupOptions, MeteredGroup, init_metered_group
from hardware.real.process_place import Launch, ProcessPlace
from hardware.real.rank_place import RankPlace
from harness.program import Program
from harness.worker import Worker

PR_SET_PDEATHSIG = 1  # prctl(2)
F_SETSIG = 10  # fcntl(2)


def main(launch: Launch) -> None:
    """Be one worker, from start to end; whatever goes wrong is told to the parent."""
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole terminal; the parent decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with contextlib.suppress(BrokenPipeError, EOFError, ConnectionResetError):  # the parent gave up meanwhile
        line = PipeLine(launch.connection)
        try:
            _work(launch, line)
        except BaseException as error:
            failure = as_failure(f"worker {launch.rank}", error, traceback.format_exc())
            line.say(Failed(failure, time.perf_counter()))


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


def import_optimizers() -> None:
    """Take a step: the first one of an optimiser imports a second's worth of torch, on the clock if not before.

    On "meta", which chooses no vector instructions: those are for each worker's environment to say.
    """
    parameter = torch.nn.Parameter(torch.zeros(1, device="meta"))
    parameter.grad = torch.zeros(1, device="meta")
    torch.optim.SGD([parameter]).step()


def touch(program: Program) -> None:
    """One forward and backward pass on a throw-away model: data are loaded, torch and kernels are warm."""
    program.touch(torch.device("cpu"))
    program.warm_up()


def moved(program: Program, device: torch.device) -> Program:
    """The program with its data on a device, which is warm then: CUDA loads kernels as sizes ask for them."""
    if device.type == "cpu":
        return program
    torch.cuda.set_device(device)
    program = replace(program, problem=program.problem.to(device))
    program.touch(device, samples=program.algorithm.batch_size)
    return program


def warm_up(meter: Meter, device: torch.device) -> None:
    """One collective, which nobody measures: the first one of a group costs many times what later ones do."""
    dist.all_reduce(torch.zeros(1, device=device))
    meter.clear()


def _work(launch: Launch, line: Line) -> None:
    os.environ.clear()
    os.environ.update(launch.environment)
    os.sched_setaffinity(0, launch.crew.cpus[launch.rank])
    torch.set_num_threads(launch.crew.intra_op_threads)
    simd.confirm(launch.crew.simd)
    program = launch.program.open()
    place = ProcessPlace(launch, line)
    touch(program)
    program = moved(program, place.device)
    place.ask(Arrived("ready"))  # from here on nobody is late, whatever gloo's time-out
    store = dist.FileStore(f"/proc/self/fd/{launch.rendezvous.fd}", launch.crew.num_workers)
    meter = connect(store, program, place)
    ledger = train(program, place, meter)
    line.say(Finished(ledger, place.prove_placement(), place.interleaving, place.measures))
    place.ask(Arrived("end"))
    dist.destroy_process_group()


def connect(store: dist.Store, program: Program, place: RankPlace) -> Meter:
    """Make the default group of the algorithm's ranks; where there are data servers, one of each, and one of all.

    Args:
        store: in which the ranks find each other.
    """
    crew, rank, num_ranks = place.crew, place.rank, place.crew.num_workers
    peers, common = num_ranks - program.data.servers(), (crew.timeout_s, place.device, crew.backend, crew.address(rank))
    if rank >= peers:
        meter = init_metered_group(dist.PrefixStore(f"alone {rank}", store), 0, 1, *common)
    else:
        meter = init_metered_group(store, rank, peers, *common)
    if peers < num_ranks:
        timeout, store = timedelta(seconds=crew.timeout_s), dist.PrefixStore("streams", store)
        options = GroupOptions(store, rank, num_ranks, "streams", timeout)
        place.everybody = MeteredGroup(options, meter, *common)
    warm_up(meter, place.device)
    return meter


def train(program: Program, place: RankPlace, meter: Meter) -> Ledger:
    """Train, from the moment at which all ranks start. Returns what this one noted."""
    worker, on_device = Worker(place, program), place.device.type == "cuda"
    if on_device:
        torch.cuda.reset_peak_memory_stats(place.device)
    place.settle()
    start_s = place.ask(Arrived("start"))
    time.sleep(max(0.0, start_s - time.perf_counter()))
    clock = place.clock = HostClock(start_s)
    begin_cpu_s = time.thread_time()
    program.run(worker)
    place.settle()
    finish_s, busy_s = time.perf_counter(), time.thread_time() - begin_cpu_s - clock.paused_cpu_s
    place.finish()
    seconds = meter.stopwatch.seconds
    return Ledger(
        finish_s=finish_s,
        busy_s=math.inf if on_device else busy_s + place.spent_s,
        pauses=clock.pauses,
        collectives={name: seconds(log.table()) for name, log in meter.collectives.items()},
        messages=seconds(meter.messages.table()),
        waits=place.waits.table(),
        sent_bytes=meter.sent_bytes,
        peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        device_peak_bytes=torch.cuda.max_memory_allocated(place.device) if on_device else None,
    )
