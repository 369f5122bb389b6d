"""Synchronous data parallel SGD by all-reduce (Goyal et al., arXiv:1706.02677, section 2).

P workers take a batch of b samples each, average their gradients and take the same step: minibatch SGD with a batch of
P * b samples, whatever P is. With the step of a batch of b samples that costs up to P times the epochs; the linear
scaling rule (section 2.1) wins them back while P * b is small, after a warm-up (section 2.2), as `schedule` has it.

Gradients may be compressed, by one worker as by many: with error feedback every worker does what EF-SGD does
(Karimireddy et al., ICML 2019, Algorithm 2).
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from algorithms.base import Algorithm
from algorithms.compression import Compression
from algorithms.flat import flatten_
from algorithms.gradient import add_gradient, check_passes
from algorithms.optimizers import Descent, Optimizer
from algorithms.schedules import Schedule
from harness.problems.base import Problem
from harness.worker import Worker


@dataclass(frozen=True)
class AllReduce(Algorithm):
    """Average the gradients of all workers at every step, in one buffer.

    Args:
        linear_scaling: multiply the step by the number of workers.
        accumulate: passes over parts of a batch that make up its gradient, >= 1.
        compression: of the gradients.
        optimizer: what makes a step of the average gradient, on every worker alike.
        schedule: factor of the step as training goes on.
    """

    synchronous: ClassVar[bool] = True

    linear_scaling: bool
    accumulate: int
    compression: Compression
    optimizer: Optimizer
    schedule: Schedule

    def __post_init__(self) -> None:
        super().__post_init__()
        check_passes(self.accumulate)

    @property
    def is_sgd(self) -> bool:  # type: ignore[override]
        """Where gradients are whole."""
        return self.compression.is_exact

    def bytes_per_update(self, weights: torch.Tensor, num_workers: int) -> float | None:
        """Every worker hands in its gradient, as it is compressed."""
        return self.compression.bytes_of_mean(weights, num_workers)

    def train(self, worker: Worker, problem: Problem) -> None:
        """Take steps along 1/P sum_i g_i."""
        model = problem.build_model(worker.device, worker.seed)
        weights, gradient = flatten_(model)
        learning_rate = self.learning_rate * (worker.num_workers if self.linear_scaling else 1)
        descent = Descent(self.optimizer, weights, gradient, learning_rate)
        averaging = self.compression.averaging(model, worker)
        for batch in worker.batches(problem, self.batch_size):
            add_gradient(problem, model, batch, self.accumulate)
            averaging.average_(gradient)
            descent.step(learning_rate * self.schedule.at(worker))
            gradient.zero_()
            worker.observe(weights, samples=len(batch))
