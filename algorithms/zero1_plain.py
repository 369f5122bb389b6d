"""Data parallel SGD whose optimiser's state is sharded: ZeRO-1 (Rajbhandari et al., SC 2020, section 5.1).

Every worker has the whole model and all of its gradient, but takes the step of 1/P of the parameters, of which alone it
has the optimiser's state. As section 7.1 counts, a gradient is summed on its way to who takes the step, and the new
parameters are gathered: the two halves of an all-reduce, so that as many bytes are on the wire as of `all_reduce`. The
model is one vector, filled up with zeros to P equal shards.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.distributed as dist
from torch.nn.functional import pad

from algorithms.base import Algorithm
from algorithms.common.optimizers import Descent, Optimizer
from algorithms.common.schedules import Schedule
from algorithms.flat import flat_parameters, flatten_
from algorithms.sharding.footprint import Footprint
from algorithms.sharding.shards import shard_of
from harness.alike import Axis
from harness.problems.base import Problem
from harness.worker import Worker


@dataclass(frozen=True)
class PlainZero1(Algorithm):
    """Average the gradients of all workers at every step, each of which takes the step of its shard for all.

    Args:
        linear_scaling: multiply the step by the number of workers.
        optimizer: what makes a step of the average gradient, of every shard alike.
        schedule: factor of the step as training goes on.
    """

    synchronous: ClassVar[bool] = True
    supports_fake_tensors: ClassVar[bool] = True

    linear_scaling: bool
    optimizer: Optimizer
    schedule: Schedule

    def alike(self, num_workers: int) -> list[Axis]:
        """All workers."""
        return [Axis(num_workers, alike=True)]

    def bytes_per_update(self, problem: Problem, weights: torch.Tensor, num_workers: int) -> float | None:
        """Every worker hands in its gradient, and the new parameters of its shard, filled up."""
        filled_bytes = weights.nbytes + -weights.numel() % num_workers * weights.itemsize
        return filled_bytes * (num_workers + 1) if num_workers > 1 else 0.0

    def train(self, worker: Worker, problem: Problem) -> None:
        """Take steps along 1/P sum_i g_i."""
        model = problem.build_model(worker.device, worker.seed)
        elements = sum(parameter.numel() for parameter in model.parameters())
        whole, gradient = flatten_(model, pad(flat_parameters(model), (0, -elements % worker.num_workers)))
        shard = shard_of(whole, worker.rank, worker.num_workers).clone()
        shard_gradient = torch.zeros_like(shard)
        learning_rate = self.learning_rate * (worker.num_workers if self.linear_scaling else 1)
        descent = Descent(self.optimizer, shard, shard_gradient, learning_rate)
        footprint = Footprint(worker)
        for batch in worker.batches(problem, self.batch_size):
            with footprint.forward([whole]):
                loss = problem.loss(model, batch)
            loss.backward()
            dist.reduce_scatter_single(shard_gradient, gradient)
            shard_gradient /= worker.num_workers
            descent.step(learning_rate * self.schedule.at(worker))
            footprint.tell(model.parameters(), descent.state)
            dist.all_gather_single(whole, shard)
            gradient.zero_()
            worker.observe(whole[:elements], samples=len(batch))
