"""A `torch.distributed` world per simulated rank: with futures.py, what touches torch's private state.

`torch.distributed` keeps its groups in one world object per process. Here the world is looked up by thread, so that
each simulated rank has its own; threads outside the simulation keep theirs. Everything is put back on exit.

Touched: the stream calls of `torch.cpu` (in torch_streams.py), waits for futures and works (in futures.py), where
tensors are fake what torch_fakes.py says, and `resize_` of storages (in device_memory.py),
`distributed_c10d._world`, `_backend` and `_default_pg_init_method`, the thread isolation mode of the registry of group
names, `sys.excepthook` (which `init_process_group` wraps anew for every rank), `_register_process_group` and
`_unregister_all_process_groups`.
"""
# mypy: disable-error-code="assignment, attr-defined"

import sys
import threading
import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.nn.functional  # while there is no group that its defaults would be
from torch._C import _distributed_c10d as native
from torch.distributed import distributed_c10d as c10d

from hardware.simulated import device_memory, futures, torch_streams
from harness.errors import UserError

_thread = threading.local()


class RankWorld(c10d._World):
    """The groups of one simulated rank.

    Args:
        fabric: what connects the ranks; handed to the groups as they are made.
        device: what the rank computes on; likewise.
    """

    # The base class keeps these in module globals, behind properties.
    pg_map: Any = None
    pg_names: Any = None
    pg_group_ranks: Any = None
    pg_backend_config: Any = None
    group_count: Any = None
    tags_to_pg: Any = None
    pg_to_tag: Any = None

    def __init__(self, fabric: Any, device: Any) -> None:
        super().__init__()
        self.fabric, self.device = fabric, device
        self.pg_map, self.pg_names, self.pg_group_ranks, self.pg_backend_config = {}, {}, {}, {}
        self.group_count, self.tags_to_pg, self.pg_to_tag = 0, {}, {}


class _WorldByThread:
    """Stands for `distributed_c10d._world`: every attribute is that of the calling thread's world.

    Args:
        outside: the world of the threads there were before the simulation.
    """

    def __init__(self, outside: Any) -> None:
        vars(self).update(outside=outside, before=weakref.WeakSet(threading.enumerate()))

    def world(self) -> Any:
        """That of the calling thread.

        Raises:
            UserError: in a thread that a rank has started.
        """
        world = getattr(_thread, "world", None)
        if world is None and threading.current_thread() not in self.before:
            raise UserError(
                "a thread that a rank has started asks for process groups, which the rank's own thread alone has: do "
                "there what this thread does, such as checkpoint.save for async_save"
            )
        return world or self.outside

    def __getattr__(self, name: str) -> Any:
        return getattr(self.world(), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.world(), name, value)


@contextmanager
def isolated(seed: int, fake: bool = False) -> Iterator[None]:
    """A block in which threads may have worlds of their own.

    Args:
        fake: whether their tensors are.

    Torch computes in one thread meanwhile, so that results depend on no core count, and its global random numbers
    begin at `seed`.
    """
    kept = c10d._world, c10d._backend, c10d._default_pg_init_method, sys.excepthook
    num_threads = torch.get_num_threads()
    c10d._world = _WorldByThread(c10d._world)
    native._set_thread_isolation_mode(True)
    torch.set_num_threads(1)
    try:
        with (
            torch.random.fork_rng(devices=[]),
            torch_streams.simulated(_device),
            futures.simulated(_outstanding),
            _fakes() if fake else nullcontext(),
            device_memory.resizes_seen(_memory) if fake else nullcontext(),
        ):
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(num_threads)
        native._set_thread_isolation_mode(False)
        c10d._world, c10d._backend, c10d._default_pg_init_method, sys.excepthook = kept


def _fakes() -> AbstractContextManager[None]:
    from hardware.simulated import torch_fakes  # noqa: PLC0415 - torch's pipelining takes a second to import

    return torch_fakes.adapted()


def _device() -> Any:
    """What the calling thread's rank computes on; None outside the simulation."""
    return _thread.world.device if hasattr(_thread, "world") else None


def _memory() -> Any:
    """That of the calling thread's rank; None outside the simulation."""
    return _thread.world.device.memory if hasattr(_thread, "world") else None


def _outstanding() -> Any:
    """The futures of the calling thread's rank; None outside the simulation."""
    return _thread.world.device.futures if hasattr(_thread, "world") else None


@contextmanager
def entered(world: RankWorld) -> Iterator[None]:
    """A block in which the calling thread belongs to the rank of `world`; its backward passes stay in the thread."""
    _thread.world = world
    threaded = torch.autograd.is_multithreading_enabled()
    torch.autograd.set_multithreading_enabled(False)
    for group, name in list(world.pg_names.items()):
        native._register_process_group(name, group)
    try:
        yield
    finally:
        if _simulating():
            native._unregister_all_process_groups()
        torch.autograd.set_multithreading_enabled(threaded)
        del _thread.world


@contextmanager
def default_group(backend: str, rank: int, num_ranks: int, store: dist.Store) -> Iterator[None]:
    """A block with a default process group of all ranks, in the world entered."""
    hook = sys.excepthook
    dist.init_process_group(backend, rank=rank, world_size=num_ranks, store=store)
    sys.excepthook = hook
    try:
        yield
    finally:
        if _simulating():
            dist.destroy_process_group()


def _simulating() -> bool:
    """False for a rank that was given up and ends late: the groups it would find are the caller's."""
    return isinstance(c10d._world, _WorldByThread)


def current_world() -> RankWorld:
    """The calling thread's world.

    Raises:
        RuntimeError: outside a simulation.
    """
    world: RankWorld | None = getattr(_thread, "world", None)
    if world is None:
        raise RuntimeError("the simulated backend exists only inside a simulation: run with a simulated hardware")
    return world
