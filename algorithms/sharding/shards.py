"""What a worker keeps of a model that all share: its layers, its shard of them, and where that lies in the whole."""

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn.functional import pad

from algorithms.common.optimizers import Optimizer


def shard_of(vector: torch.Tensor, rank: int, num_shards: int, filler: float = 0) -> torch.Tensor:
    """One of equal shards of a vector that is filled up at its end, shape (elements / shards, rounded up,).

    >>> shard_of(torch.arange(5), 2, 3, filler=-1)
    tensor([ 4, -1])
    """
    return pad(vector, (0, -len(vector) % num_shards), value=filler).chunk(num_shards)[rank]


class JoinedShards:
    """A worker's shards of several vectors, one after the other.

    Attributes:
        flat: all of them, what fills them up included.
        sizes: of each, likewise.
    """

    def __init__(self, vectors: Sequence[torch.Tensor], rank: int, num_shards: int) -> None:
        shards = [shard_of(vector, rank, num_shards) for vector in vectors]
        self.flat, self.sizes = torch.cat(shards), [len(shard) for shard in shards]
        self._kept, self._begins, start = [], [], 0
        for vector, size in zip(vectors, self.sizes, strict=True):
            begin, end = (min(place * size, len(vector)) for place in (rank, rank + 1))
            self._kept.append(end - begin)
            self._begins.append(start + begin)
            start += len(vector)

    @cached_property
    def indices(self) -> torch.Tensor:
        """Of the elements of `kept` among those of all vectors, int64."""
        spans = zip(self._begins, self._kept, strict=True)
        return torch.cat([torch.arange(begin, begin + kept) for begin, kept in spans])

    def kept(self) -> torch.Tensor:
        """The shards without what fills them up."""
        parts = zip(self.flat.split(self.sizes), self._kept, strict=True)
        return torch.cat([shard[:kept] for shard, kept in parts])


class Shards:
    """A worker's shards of a model of torch's FSDP2, whose parameters are DTensors that are split by rows.

    An optimiser goes over the local tensors: what it does is element by element.

    Args:
        optimizer: what makes steps.
        learning_rate: of the first step.

    Attributes:
        own: the shards, as parameters.
        optimizer: torch's, of them.
        indices: int64, of the shards' elements among the flat parameters of the whole model.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, learning_rate: float) -> None:
        self._sharded: list[DTensor] = list(model.parameters())  # type: ignore[arg-type]
        self.own = [nn.Parameter(parameter.to_local().detach()) for parameter in self._sharded]
        self.optimizer = optimizer.over(self.own, learning_rate)

    def step(self, learning_rate: float) -> None:
        """Take a step along the gradients of the backward pass, which the shards keep until they are set to zero."""
        for own, sharded in zip(self.own, self._sharded, strict=True):
            own.grad, sharded.grad = sharded.grad.to_local(), None  # type: ignore[union-attr]
        self.optimizer.param_groups[0]["lr"] = learning_rate
        self.optimizer.step()

    def forget(self) -> None:
        """Forget the gradients."""
        self.optimizer.zero_grad()

    @cached_property
    def indices(self) -> torch.Tensor:
        """Of the shards' elements among the flat parameters of the whole model, int64."""
        return _indices(self._sharded)

    def flat(self) -> torch.Tensor:
        """The shards, one after the other, shape (elements,)."""
        return torch.cat([own.detach().flatten() for own in self.own])


def _indices(parameters: Sequence[DTensor]) -> torch.Tensor:
    """Of this worker's rows, which lie in one piece of each parameter; the last workers may have fewer, or none."""
    found, start = [], 0
    for each in parameters:
        mesh, rows = each.device_mesh, len(each)
        begin = min(mesh.get_local_rank(mesh.ndim - 1) * -(-rows // mesh.size(-1)), rows)
        first = start + begin * each.shape[1:].numel()
        found.append(torch.arange(first, first + each.to_local().numel()))
        start += each.numel()
    return torch.cat(found)
