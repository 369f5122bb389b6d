"""Who is told the virtual time: the script, installed packages, and of Python and torch what reads time for them.

The rest of Python's standard library (`subprocess` that waits, `threading`) and of torch (`torch.compile`) works on the
host while virtual time stands still, and keeps the host's clock: it measures and waits for what the host does.
"""

import logging
import os
import sys
import sysconfig
import time
import timeit
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from hardware.simulated.engine import Engine
from hardware.simulated.replaced import replaced

_TORCH, _ROOT = os.path.dirname(torch.__file__), Path(__file__).parents[3]
_CLOCKS = (  # the longest beginning of a file's path decides
    *[(os.path.join(sysconfig.get_path(name), ""), False) for name in ("stdlib", "platstdlib")],
    *[(os.path.join(sysconfig.get_path(name), ""), True) for name in ("purelib", "platlib")],
    *[(os.path.join(_ROOT, part, ""), False) for part in ("hardware", "harness")],
    (os.path.join(_TORCH, ""), False),
    (os.path.join(_TORCH, "distributed", ""), True),
    (os.path.join(_TORCH, "utils", ""), True),
    (logging.__file__, True),
)


@cache
def has_virtual_time(path: str) -> bool:
    """Whether the code of a file is told the virtual time.

    >>> has_virtual_time("/home/me/train.py"), has_virtual_time(os.__file__), has_virtual_time(logging.__file__)
    (True, False, True)
    """
    known = [(len(beginning), virtual) for beginning, virtual in _CLOCKS if path.startswith(beginning)]
    return max(known)[1] if known else True


def _caller_has(depth: int) -> bool:
    """Whether the caller has, so many frames up; code without a file is its caller's."""
    frame = sys._getframe(depth)
    while frame.f_code.co_filename.startswith("<") and frame.f_back is not None:
        frame = frame.f_back
    return has_virtual_time(frame.f_code.co_filename)


@dataclass(frozen=True)
class RankClock:
    """What the clocks of a run say.

    Args:
        engine: of the run.
        began_s: what `time.time` says at virtual time 0.
    """

    engine: Engine
    began_s: float

    def now_s(self) -> float:
        """Virtual time of the calling rank."""
        return self.engine.current.now()

    def time_s(self) -> float:
        """The same since 1970."""
        return self.began_s + self.now_s()

    def sleep(self, seconds: float) -> None:
        """Let virtual time pass."""
        if seconds < 0:
            raise ValueError("sleep length must be non-negative")
        self.engine.current.now()
        self.engine.current.charge(seconds)
        self.engine.sync()  # a loop that sleeps can be ended


@contextmanager
def virtual_time(clock_of_thread: Callable[[], RankClock | None]) -> Iterator[None]:
    """A block in which ranks' threads read and spend virtual time.

    Args:
        clock_of_thread: that of the calling thread, which is asked each time: a module that has imported one of these
            functions may outlast the run. None for a thread of no rank.
    """

    def clock() -> RankClock:
        found = clock_of_thread()
        assert found is not None
        return found

    def now_s() -> float:
        return clock().now_s()

    meanings: dict[str, Callable] = {
        "time": lambda: clock().time_s(),
        "time_ns": lambda: int(clock().time_s() * 1e9),
        "perf_counter": now_s,
        "perf_counter_ns": lambda: int(now_s() * 1e9),
        "monotonic": now_s,
        "monotonic_ns": lambda: int(now_s() * 1e9),
        "sleep": lambda seconds: clock().sleep(seconds),
    }
    host_timer, make_timer = time.perf_counter, timeit.Timer.__init__

    def init(
        self: timeit.Timer, stmt: Any = "pass", setup: Any = "pass", timer: Any = now_s, globals: Any = None
    ) -> None:
        make_timer(self, stmt, setup, now_s if timer is host_timer else timer, globals)

    def in_rank() -> bool:
        return clock_of_thread() is not None

    imported = _imported({name: getattr(time, name) for name in meanings})
    with (
        replaced(time, meanings, lambda: in_rank() and _caller_has(3)),
        replaced(timeit, {"default_timer": now_s}, in_rank),
        replaced(timeit.Timer, {"__init__": init}, in_rank),
    ):
        for names, here, name, _ in imported:
            names[here] = getattr(time, name)
        try:
            yield
        finally:
            for names, here, _, before in imported:
                names[here] = before


def _imported(functions: Mapping[str, Callable]) -> list[tuple[dict[str, Any], str, str, Callable]]:
    """Where packages, such as tqdm with torch, have imported functions by `from time import`.

    Returns:
        A module's names, which of them, what `time` calls it, and the function.
    """
    called = {id(function): name for name, function in functions.items()}
    modules = [vars(it) for it in [*sys.modules.values()] if has_virtual_time(getattr(it, "__file__", None) or "<")]
    return [
        (names, here, called[id(value)], value)
        for names in modules
        if names is not vars(time)
        for here, value in [*names.items()]
        if id(value) in called
    ]
