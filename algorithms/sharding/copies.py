"""Weights that several workers train on batches of their own: copies whose gradients are averaged, or shards of one."""

from functools import cached_property

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard

from algorithms.common.optimizers import Descent, Optimizer
from algorithms.flat import flatten_
from algorithms.pipelining.stages import units


class Copies:
    """A worker's copy, of which the others of a group have the same.

    Args:
        optimizer: what makes steps, on all alike.
        learning_rate: of the first step.
        group: of those who have copies; None for a worker by itself.
    """

    def __init__(
        self, model: nn.Module, optimizer: Optimizer, learning_rate: float, group: dist.ProcessGroup | None
    ) -> None:
        self._weights, self._gradient = flatten_(model)
        self._descent = Descent(optimizer, self._weights, self._gradient, learning_rate)
        self._group = group

    @cached_property
    def indices(self) -> torch.Tensor:
        """Of its elements among the parameters of the model, int64: all of them."""
        return torch.arange(len(self._weights))

    def step(self, learning_rate: float) -> None:
        """Take a step along the average of all gradients, which travel in one buffer."""
        if self._group is not None:
            dist.all_reduce(self._gradient, group=self._group)
            self._gradient /= dist.get_world_size(self._group)
        self._descent.step(learning_rate)

    def forget(self) -> None:
        """Forget the gradients."""
        self._gradient.zero_()

    def flat(self) -> torch.Tensor:
        """Its weights."""
        return self._weights


def sharded(layers: nn.Sequential, mesh: DeviceMesh, reshard: bool) -> nn.Sequential:
    """The same layers by torch's FSDP2, gathered one at a time, whose shards `Shards` steps on.

    Args:
        mesh: of those who share them.
        reshard: whether a layer is given up after its forward pass: a pipeline keeps them until the batch is over, a
            `Chain` gathers them for each micro-batch, twice.
    """
    parts = units(layers)
    for part in parts:
        fully_shard(part, mesh=mesh, reshard_after_forward=reshard).set_force_sum_reduction_for_comms(
            True
        )  # as gloo can
    whole = nn.Sequential(*parts)
    fully_shard(whole, mesh=mesh)
    return whole
