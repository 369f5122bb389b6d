"""Synchronous data parallel SGD by all-reduce (Goyal et al., arXiv:1706.02677, section 2).

P workers take a batch of b samples each, average their gradients and take the same step: minibatch SGD with a batch of
P * b samples, whatever P is. With the step of a batch of b samples that costs up to P times the epochs; the linear
scaling rule (section 2.1) wins them back while P * b is small.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.distributed as dist

from algorithms.base import Algorithm
from algorithms.flat import flatten_
from algorithms.gradient import add_gradient, check_passes
from algorithms.optimizers import Descent, Optimizer
from harness.problems.base import Problem
from harness.worker import Worker


@dataclass(frozen=True)
class AllReduce(Algorithm):
    """Average the gradients of all workers at every step, in one buffer.

    Args:
        linear_scaling: multiply the step by the number of workers.
        accumulate: passes over parts of a batch that make up its gradient, >= 1.
        optimizer: what makes a step of the average gradient, on every worker alike.
    """

    synchronous: ClassVar[bool] = True

    linear_scaling: bool
    accumulate: int
    optimizer: Optimizer

    def __post_init__(self) -> None:
        super().__post_init__()
        check_passes(self.accumulate)

    def bytes_per_update(self, weights: torch.Tensor, num_workers: int) -> float:
        """Every worker hands in its gradient."""
        return weights.nbytes * num_workers if num_workers > 1 else 0

    def train(self, worker: Worker, problem: Problem) -> None:
        """Take steps along 1/P sum_i g_i."""
        model = problem.build_model(worker.device, worker.seed)
        weights, gradient = flatten_(model)
        learning_rate = self.learning_rate * (worker.num_workers if self.linear_scaling else 1)
        descent = Descent(self.optimizer, weights, gradient, learning_rate)
        for batch in worker.batches(problem, self.batch_size):
            add_gradient(problem, model, batch, self.accumulate)
            dist.all_reduce(gradient)
            gradient /= worker.num_workers
            descent.step()
            gradient.zero_()
            worker.observe(weights, samples=len(batch))
