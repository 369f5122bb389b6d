"""Calls that mean something else in a rank's thread: the time, how ranks meet, and what they print."""
# mypy: disable-error-code="attr-defined"

import io
import os
import sys
import threading
import time
import timeit
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NoReturn, TextIO

import torch.profiler
from torch import distributed as dist
from torch.distributed import distributed_c10d as c10d

from hardware.simulated.engine import Engine
from hardware.simulated.process_group import BACKEND
from harness.errors import UserError

_here = threading.local()  # .rank, in a rank's thread


def _leave() -> None:
    """A process that a rank forks, such as a DataLoader's worker, is none: its clock is the host's."""
    vars(_here).clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave)


@contextmanager
def as_rank(rank: int) -> Iterator[None]:
    """A block in which the calling thread is a rank's."""
    _here.rank = rank
    try:
        yield
    finally:
        del _here.rank


@contextmanager
def patched(engine: Engine, store: dist.Store, num_ranks: int, shown: str, began_s: float) -> Iterator[None]:
    """A block in which the calls of ranks' threads have their simulated meaning; those of other threads their own.

    Args:
        shown: the rank whose output is shown, or "all".
        began_s: what `time.time` says at virtual time 0.
    """
    refused = _replaced(torch.profiler, {"profile": _no_profile})
    with _virtual_time(engine, began_s), _simulated_groups(store, num_ranks), refused, _output(shown):
        yield


def _no_profile(*arguments: Any, **options: Any) -> NoReturn:
    raise UserError("torch.profiler measures the host, and a process has one: look at the timeline of --timeline")


@contextmanager
def _virtual_time(engine: Engine, began_s: float) -> Iterator[None]:
    def now_s() -> float:
        return engine.current.now()

    def sleep(seconds: float) -> None:
        if seconds < 0:
            raise ValueError("sleep length must be non-negative")
        engine.current.now()
        engine.current.charge(seconds)
        engine.sync()  # a loop that sleeps can be ended

    meanings: dict[str, Callable] = {
        "time": lambda: began_s + now_s(),
        "time_ns": lambda: int((began_s + now_s()) * 1e9),
        "perf_counter": now_s,
        "perf_counter_ns": lambda: int(now_s() * 1e9),
        "monotonic": now_s,
        "monotonic_ns": lambda: int(now_s() * 1e9),
        "sleep": sleep,
    }
    with _replaced(time, meanings), _replaced(timeit, {"default_timer": now_s}):
        yield


@contextmanager
def _simulated_groups(store: dist.Store, num_ranks: int) -> Iterator[None]:
    new_group = c10d._new_process_group_helper

    def rendezvous(*arguments: Any, **options: Any) -> Iterator[tuple[dist.Store, int, int]]:
        yield store, _here.rank, num_ranks

    def simulated(size: int, rank: int, ranks: Any, backend: Any, *arguments: Any, **options: Any) -> Any:
        options.pop("backend_options", None)
        options.pop("device_id", None)
        group, store = new_group(size, rank, ranks, dist.Backend(BACKEND), *arguments, **options)
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

    def tcp(host: str, port: int, *arguments: Any, **options: Any) -> dist.Store:
        return dist.PrefixStore(f"{host}:{port}", store)

    def file(path: str, *arguments: Any, **options: Any) -> dist.Store:
        return dist.PrefixStore(str(path), store)

    version = {"version": lambda: (0, 0, 0)}  # for torch's log of failed calls, when the script asked for nccl
    with (
        _replaced(c10d, meanings),
        _replaced(torch.cuda.nccl, version),
        _replaced(dist, {"TCPStore": tcp, "FileStore": file}),
    ):
        yield


@contextmanager
def _output(shown: str) -> Iterator[None]:
    kept = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _Prefixed(sys.stdout, shown), _Prefixed(sys.stderr, shown)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.finish()
        sys.stdout, sys.stderr = kept


@contextmanager
def _replaced(module: Any, meanings: dict[str, Callable]) -> Iterator[None]:
    """A block in which functions of `module` have another meaning in the threads of ranks."""
    kept = {name: getattr(module, name) for name in meanings}

    def chosen(name: str) -> Callable:
        outside, inside = kept[name], meanings[name]

        def call(*arguments: Any, **options: Any) -> Any:
            return (inside if hasattr(_here, "rank") else outside)(*arguments, **options)

        return call

    try:
        for name in meanings:
            setattr(module, name, chosen(name))
        yield
    finally:
        for name, before in kept.items():
            setattr(module, name, before)


class _Prefixed(io.TextIOBase):
    """Writes the lines of ranks with their number in front; what other threads write, as it is."""

    encoding = "utf-8"

    def __init__(self, target: TextIO, shown: str) -> None:
        self._target, self._shown = target, shown
        self.buffer = _Decoded(self)
        self._begun: dict[int, str] = {}  # lines without an end, by rank

    def writable(self) -> bool:
        """It is."""
        return True

    def write(self, text: str) -> int:
        """Write whole lines; keep the rest."""
        rank = getattr(_here, "rank", None)
        if rank is None:
            return self._target.write(text)
        if self._shown in ("all", str(rank)):
            *lines, rest = (self._begun.get(rank, "") + text).split("\n")
            self._begun[rank] = rest
            for line in lines:
                self._target.write(f"[rank{rank}] {line}\n")
        return len(text)

    def flush(self) -> None:
        """Flush what is written."""
        self._target.flush()

    def finish(self) -> None:
        """Write lines that have no end."""
        for rank, rest in sorted(self._begun.items()):
            if rest:
                self._target.write(f"[rank{rank}] {rest}\n")
        self.flush()


class _Decoded(io.RawIOBase):
    """Bytes written here become text."""

    def __init__(self, target: _Prefixed) -> None:
        self._target = target

    def writable(self) -> bool:
        """It is."""
        return True

    def write(self, data: Any) -> int:
        """Write bytes."""
        self._target.write(bytes(data).decode("utf-8", "replace"))
        return len(data)
