"""Fully sharded data parallel SGD as a lecture has it: ZeRO-3 (Rajbhandari et al., SC 2020, section 5.3), by layers.

What `fsdp` computes, by two collectives and without hooks. A worker keeps 1/P of every layer; in a step, of each one:

    forward    gather it; compute; give it up
    backward   gather it again; compute its gradient; sum that on the way to who keeps it; give both up

Nothing overlaps. A layer is one vector here, filled up with zeros to P equal shards; FSDP2 shards tensors by rows.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.distributed as dist
from torch import nn

from algorithms.base import Algorithm
from algorithms.common.optimizers import Descent, Optimizer
from algorithms.common.schedules import Schedule
from algorithms.flat import flat_parameters, flatten_
from algorithms.pipelining.stages import check_layered, units
from algorithms.sharding.shards import JoinedShards
from harness.alike import Axis
from harness.batch import Samples
from harness.problems.base import Problem
from harness.problems.layered import Layered
from harness.worker import Worker


class Layer:
    """A layer of which this worker keeps a shard; the whole is there from `gather` to `give_up`."""

    def __init__(self, module: nn.Module, shard: torch.Tensor, gradient: torch.Tensor) -> None:
        self.module, self.shard, self.gradient = module, shard, gradient
        self.whole, self.whole_gradient = flatten_(module, shard.new_zeros(dist.get_world_size() * len(shard)))
        self.give_up()

    def gather(self) -> None:
        """Have the whole layer."""
        self.whole.untyped_storage().resize_(self.whole.nbytes)
        dist.all_gather_single(self.whole, self.shard)

    def give_up(self) -> None:
        """Keep the shards alone."""
        for vector in (self.whole, self.whole_gradient):
            vector.untyped_storage().resize_(0)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Inputs to outputs."""
        self.gather()
        self.inputs = inputs.detach().requires_grad_(inputs.is_floating_point())
        self.outputs = self.module(self.inputs)
        self.give_up()
        return self.outputs

    def backward(self, gradient: torch.Tensor | None) -> torch.Tensor | None:
        """The outputs' gradient to the inputs'; the layer's is summed over workers."""
        self.gather()
        self.whole_gradient.untyped_storage().resize_(self.whole_gradient.nbytes)
        self.whole_gradient.zero_()
        self.outputs.backward(gradient)
        dist.reduce_scatter_single(self.gradient, self.whole_gradient)
        self.give_up()
        passed = self.inputs.grad
        del self.inputs, self.outputs
        return passed


@dataclass(frozen=True)
class PlainFSDP(Algorithm):
    """Average the gradients of all workers at every step, each of which keeps a shard of every layer.

    Args:
        optimizer: what makes a step of the average gradient, on every shard alike.
        schedule: factor of the step as training goes on.
    """

    synchronous: ClassVar[bool] = True
    splits_model: ClassVar[bool] = True
    supports_fake_tensors: ClassVar[bool] = True

    optimizer: Optimizer
    schedule: Schedule

    def alike(self, num_workers: int) -> list[Axis]:
        """All workers."""
        return [Axis(num_workers, alike=True)]

    def check(self, problem: Problem) -> None:
        """Layers are what is gathered."""
        check_layered(problem)

    def bytes_per_update(self, problem: Problem, weights: torch.Tensor, num_workers: int) -> float | None:
        """Every worker hands in its shard twice and a whole gradient, without what fills shards up."""
        return weights.nbytes * (2 + num_workers) if num_workers > 1 else 0.0

    def train(self, worker: Worker, problem: Problem) -> None:
        """Take steps along 1/P sum_i g_i, each worker of its own shards."""
        problem = check_layered(problem)
        modules = units(problem.build_model(worker.device, worker.seed))
        shards = JoinedShards([flat_parameters(module) for module in modules], worker.rank, worker.num_workers)
        gradient = torch.zeros_like(shards.flat)
        cut = zip(modules, shards.flat.split(shards.sizes), gradient.split(shards.sizes), strict=True)
        layers = [Layer(*each) for each in cut]
        descent = Descent(self.optimizer, shards.flat, gradient, self.learning_rate)
        part = shards.indices if worker.sees_values else None
        for batch in worker.batches(problem, self.batch_size):
            self._backpropagate(layers, problem, batch)
            gradient /= worker.num_workers
            descent.step(self.learning_rate * self.schedule.at(worker))
            worker.observe(shards.kept, samples=len(batch), part=part)

    def _backpropagate(self, layers: list[Layer], problem: Layered, batch: Samples) -> None:
        passed, targets = (rows.to(layers[0].shard.device) for rows in problem.rows_of(batch))
        for layer in layers:
            passed = layer.forward(passed)
        outputs = passed.detach().requires_grad_()
        problem.objective(outputs, targets).backward()
        gradient = outputs.grad
        for layer in reversed(layers):
            gradient = layer.backward(gradient)
