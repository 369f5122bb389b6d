"""What synchronous data parallel algorithms share, however they average: settings, and the loop around a step."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from algorithms.base import Algorithm
from algorithms.common.gradient import check_passes, notices_of_passes
from algorithms.common.optimizers import Descent, Optimizer
from algorithms.common.schedules import Schedule
from algorithms.compression.compressor import Compression, Uncompressed
from algorithms.flat import flatten_
from harness.alike import Axis
from harness.batch import Samples
from harness.errors import require
from harness.problems.base import Problem
from harness.worker import Worker


@dataclass(frozen=True)
class DataParallel(Algorithm, ABC):
    """Average the gradients of all workers at every step.

    Args:
        linear_scaling: multiply the step by the number of workers.
        accumulate: passes over parts of a batch that make up its gradient, >= 1.
        compression: of the gradients.
        optimizer: what makes a step of the average gradient, on every worker alike.
        schedule: factor of the step as training goes on.
    """

    synchronous: ClassVar[bool] = True
    supports_fake_tensors: ClassVar[bool] = True

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

    def alike(self, num_workers: int) -> list[Axis]:
        """All workers."""
        return [Axis(num_workers, alike=True)]

    def check(self, problem: Problem) -> None:
        """Nothing is compressed that has no values."""
        whole = not problem.is_fake or isinstance(self.compression, Uncompressed)
        rule = "must be none where the problem has shapes and no values, as what is sent may depend on values"
        require(whole, "algorithm/compression", rule, type(self.compression).__name__)

    def notices(self, problem: Problem, num_workers: int, epochs: float) -> list[str]:
        """More passes than samples."""
        return notices_of_passes(self.accumulate, self.batch_size)

    def bytes_per_update(self, problem: Problem, weights: torch.Tensor, num_workers: int) -> float:
        """Every worker hands in its gradient, as it is compressed."""
        return self.compression.bytes_of_mean(problem, weights, num_workers)

    def train(self, worker: Worker, problem: Problem) -> None:
        """Take steps along 1/P sum_i g_i."""
        model = problem.build_model(worker.device, worker.seed)
        weights, gradient = flatten_(model)
        learning_rate = self.learning_rate * (worker.num_workers if self.linear_scaling else 1)
        descent = Descent(self.optimizer, weights, gradient, learning_rate)
        average = self.averaged(model, gradient, worker, problem)
        for batch in worker.batches(problem, self.batch_size):
            average(batch)
            descent.step(learning_rate * self.schedule.at(worker))
            gradient.zero_()
            worker.observe(weights, samples=len(batch))

    @abstractmethod
    def averaged(
        self, model: nn.Module, gradient: torch.Tensor, worker: Worker, problem: Problem
    ) -> Callable[[Samples], None]:
        """What makes of zeros in `gradient` the mean over workers of those of their batches, the model's own."""
