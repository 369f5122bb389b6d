"""What has values even where tensors are fake: which rank is where, and what stages of a pipeline tell each other.

Touched: methods of `DeviceMesh`, and of `torch.distributed.pipelining`, put back on exit.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any

import torch
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.pipelining.schedules import _PipelineSchedule
from torch.distributed.pipelining.stage import PipelineStage

from hardware.simulated.values import is_fake

_METHODS: dict[type, tuple[str, ...]] = {
    DeviceMesh: ("__init__", "__getitem__", "_flatten", "_unflatten", "_concatenate", "_get_all_submeshes"),
    _PipelineSchedule: ("_warmup_p2p",),
    PipelineStage: ("_send_meta", "_recv_meta"),
}


@contextmanager
def kept() -> Iterator[None]:
    """A block in which they have."""
    with ExitStack() as stack:
        for owner, names in _METHODS.items():
            for name in names:
                method = vars(owner)[name]
                stack.callback(setattr, owner, name, method)
                static = isinstance(method, staticmethod)
                wrapped = _unfaked(method.__func__ if static else method)
                setattr(owner, name, staticmethod(wrapped) if static else wrapped)
        yield


def _unfaked(method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    def call(*arguments: Any, **options: Any) -> Any:
        with unset_fake_temporarily():
            numbers = options.get("_rank_map")
            if numbers is not None and is_fake(numbers):  # what init_device_mesh makes: all ranks in their order
                options["_rank_map"] = torch.arange(numbers.numel(), dtype=torch.int)
            return method(*arguments, **options)

    return call
