"""What torch shall do otherwise where tensors are fake.

Which rank is where, and how stages of a pipeline vote at first, keep their values. Optimizers take fake
tensors for those of a device. FSDP2 looks at its own chunk of a parameter without making those of all other ranks.
DistributedDataParallel keeps its first buckets, of layers from the last one to the first: after a step it would make
them anew in the order in which gradients came, as rank 0 tells all others, by values.

Touched: methods of `DeviceMesh` and of `torch.distributed.pipelining`, `_foreach_supported_types` of optimizers,
`_chunk_with_empty` of FSDP2 and `_rebuild_buckets` of DistributedDataParallel's reducer; put back on exit.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any

import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp._fully_shard import _fsdp_param
from torch.distributed.pipelining.schedules import _PipelineSchedule

from hardware.simulated import optimizers
from hardware.simulated.values import is_fake

_METHODS: dict[type, tuple[str, ...]] = {
    DeviceMesh: ("__init__", "__getitem__", "_flatten", "_unflatten", "_concatenate", "_get_all_submeshes"),
    _PipelineSchedule: ("_warmup_p2p",),
}

_FOREACH = vars(optimizers.MODULE)["_foreach_supported_types"]


@contextmanager
def adapted() -> Iterator[None]:
    """A block in which torch does so."""
    with ExitStack() as stack:
        _replace(stack, optimizers.MODULE, "_foreach_supported_types", [*_FOREACH, FakeTensor])
        _replace(stack, _fsdp_param, "_chunk_with_empty", _Chunks)
        _replace(stack, dist.Reducer, "_rebuild_buckets", lambda _: False)
        for owner, names in _METHODS.items():
            for name in names:
                method = vars(owner)[name]
                static = isinstance(method, staticmethod)
                wrapped = _unfaked(method.__func__ if static else method)
                _replace(stack, owner, name, staticmethod(wrapped) if static else wrapped)
        yield


def _replace(stack: ExitStack, owner: Any, name: str, value: Any) -> None:
    stack.callback(setattr, owner, name, vars(owner)[name])
    setattr(owner, name, value)


class _Chunks:
    """Equal chunks of a tensor, the last ones smaller or empty, each made when it is asked for."""

    def __init__(self, tensor: torch.Tensor, num_chunks: int, dim: int) -> None:
        self._tensor, self._dim = tensor, dim
        self._size = -(-tensor.size(dim) // num_chunks)

    def __getitem__(self, number: int) -> torch.Tensor:
        begin = number * self._size
        length = min(self._size, self._tensor.size(self._dim) - begin)
        return self._tensor.narrow(self._dim, begin, length) if length > 0 else self._tensor.new_empty(0)


def _unfaked(method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    def call(*arguments: Any, **options: Any) -> Any:
        with unset_fake_temporarily():
            numbers = options.get("_rank_map")
            if numbers is not None and is_fake(numbers):  # what init_device_mesh makes: all ranks in their order
                options["_rank_map"] = torch.arange(numbers.numel(), dtype=torch.int)
            return method(*arguments, **options)

    return call
