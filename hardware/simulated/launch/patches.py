"""Calls that mean something else in a rank's thread: the time, how ranks meet, and what they print."""
# mypy: disable-error-code="attr-defined"

import inspect
import os
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import Any, NoReturn

import torch.cuda.nccl
import torch.multiprocessing
import torch.profiler
from torch import distributed as dist
from torch.distributed import distributed_c10d as c10d

from hardware.simulated.launch import output
from hardware.simulated.launch.virtual_time import RankClock, virtual_time
from hardware.simulated.process_group import BACKEND
from hardware.simulated.replaced import replaced
from hardware.simulated.store import FileStore, SimulatedStore, TCPStore
from harness.errors import UserError


class NoCuda(UserError, AssertionError, RuntimeError):
    """A simulated machine has no torch.cuda; whoever can do without catches one of torch's own errors."""


_here = threading.local()  # .rank and .clock, in a rank's thread
_cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set[int]()  # ranks' threads share one
_forked = set[int]()  # the calling process, where a rank has forked it
_ENV = [*inspect.signature(subprocess.Popen.__init__).parameters].index("env")


def _leave() -> None:
    """A process that a rank forks, such as a DataLoader's worker, is none: it has the host's clock and cores."""
    if _in_rank():
        _forked.add(os.getpid())
        if _cores:
            os.sched_setaffinity(0, _cores)
    vars(_here).clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave)


def _in_rank() -> bool:
    return hasattr(_here, "rank")


def _in_child() -> bool:
    return os.getpid() in _forked


def _clock() -> RankClock | None:
    return getattr(_here, "clock", None)


@contextmanager
def as_rank(rank: int, clock: RankClock) -> Iterator[None]:
    """A block in which the calling thread is a rank's."""
    _here.rank, _here.clock = rank, clock
    try:
        yield
    finally:
        del _here.rank, _here.clock


@contextmanager
def patched(store: SimulatedStore, num_ranks: int, shown: str, compiles: bool) -> Iterator[None]:
    """A block in which the calls of ranks' threads have their simulated meaning; those of other threads their own.

    Args:
        shown: the rank whose output is shown, or "all".
        compiles: whether `torch.compile` does.
    """
    printed = output.prefixed(shown, lambda: getattr(_here, "rank", None))
    with (
        virtual_time(_clock),
        _simulated_groups(store, num_ranks),
        _children(),
        _refused(compiles),
        printed,
    ):
        yield


@contextmanager
def _refused(compiles: bool) -> Iterator[None]:
    def profile(*arguments: Any, **options: Any) -> NoReturn:
        raise UserError("torch.profiler measures the host, and a process has one: look at the timeline of --timeline")

    def cuda(*arguments: Any, **options: Any) -> NoReturn:
        raise NoCuda(
            "there is no torch.cuda on a simulated machine, whose GPUs compute on the device cpu: write "
            "device = 'cuda' if torch.cuda.is_available() else 'cpu', and torch.cpu.synchronize for torch.cuda's"
        )

    def started(*arguments: Any, **options: Any) -> NoReturn:
        raise UserError(
            "torch.multiprocessing.spawn has nothing to start, for the launcher has started the ranks already: call "
            "the function itself, once, with int(os.environ['LOCAL_RANK'])"
        )

    def handler(number: int, action: Any) -> Any:
        warnings.warn("signal.signal has no effect here: signals are the launcher's", stacklevel=3)
        return signal.getsignal(number)

    compile_ = torch.compile

    def uncompiled(*arguments: Any, **options: Any) -> Any:
        warnings.warn(
            "torch.compile compiles nothing here: operators cost what they cost one by one (hardware/compute=measured "
            "compiles)",
            stacklevel=3,
        )
        return compile_(*arguments, **options | {"disable": True})

    meanings: dict[str, Callable] = {"is_available": lambda: False, "device_count": lambda: 0}
    meanings |= {"set_device": cuda, "_lazy_init": cuda}  # with the latter begins what puts anything on a GPU
    with (
        replaced(torch.profiler, {"profile": profile}, _in_rank),
        replaced(torch.cuda, meanings, _in_rank),
        replaced(signal, {"signal": handler}, _in_rank),
        replaced(torch.multiprocessing, {"start_processes": started}, _in_rank),
        replaced(sys.modules["torch.multiprocessing.spawn"], {"start_processes": started}, _in_rank),
        replaced(torch, {"compile": uncompiled}, lambda: _in_rank() and not compiles),
    ):
        yield


@contextmanager
def _children() -> Iterator[None]:
    """A block in which a rank hands its environment to what it starts: C's is the launcher's."""
    start = subprocess.Popen.__init__

    def init(*arguments: Any, **options: Any) -> None:
        if options.get("env") is None and len(arguments) <= _ENV:
            options["env"] = dict(os.environ)
        start(*arguments, **options)

    with replaced(subprocess.Popen, {"__init__": init}, _in_rank):
        yield


@contextmanager
def _simulated_groups(store: SimulatedStore, num_ranks: int) -> Iterator[None]:
    new_group, views = c10d._new_process_group_helper, [store.view() for _ in range(num_ranks)]

    def check(rank: int, size: int) -> None:
        if _in_child():
            raise UserError(
                "init_process_group in a process that a rank has started: the launcher has started the ranks already, "
                "and only they are simulated"
            )
        if rank not in (-1, _here.rank) or size not in (-1, num_ranks):
            raise UserError(
                f"init_process_group(rank={rank}, world_size={size}) must say what the launcher does, that this is "
                f"rank {_here.rank} of {num_ranks}: leave both out, or read RANK and WORLD_SIZE"
            )

    def rendezvous(
        url: str, rank: int = -1, world_size: int = -1, **options: Any
    ) -> Iterator[tuple[SimulatedStore, int, int]]:
        check(rank, world_size)
        yield views[_here.rank], _here.rank, num_ranks

    def simulated(size: int, rank: int, ranks: Any, backend: Any, store: Any, *arguments: Any, **options: Any) -> Any:
        options.pop("backend_options", None)
        options.pop("device_id", None)
        if not ranks:  # the default group
            check(rank, size)
        if size < 0:  # torch leaves it to MPI
            size, rank, store = num_ranks, _here.rank, views[_here.rank]
        group, store = new_group(size, rank, ranks, dist.Backend(BACKEND), store, *arguments, **options)
        if group is not dist.GroupMember.NON_GROUP_MEMBER:
            c10d._world.pg_map[group] = backend, c10d._world.pg_map[group][1]  # what the script will be told
        return group, store

    def timeout(backend: Any) -> timedelta:
        return timedelta(minutes=10) if backend == dist.Backend.NCCL else dist.default_pg_timeout

    meanings: dict[str, Callable] = {
        "rendezvous": rendezvous,
        "_new_process_group_helper": simulated,
        "_get_default_timeout": timeout,  # torch's own refuses nccl where it is not compiled in
    }

    classes = {"TCPStore": TCPStore, "FileStore": FileStore}
    stores = {name: partial(cls, store) for name, cls in classes.items()}
    version = {"version": lambda: (0, 0, 0)}  # torch's report of an error asks for NCCL's, which may not be there
    with (
        replaced(c10d, meanings, lambda: _in_rank() or _in_child()),
        replaced(dist, stores, _in_rank, classes),
        replaced(torch.cuda.nccl, version, _in_rank),
    ):
        yield
