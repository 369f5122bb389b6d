"""Model parallelism: workers hold the stages of one model, and a batch goes through them as a whole.

The baseline of pipelines (GPipe: Huang et al., NeurIPS 2019, figure 2b): at any time one worker works, and the others
wait. It is a pipeline of one micro-batch, for which there is one order of passes only.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from algorithms.base import Algorithm
from algorithms.common.optimizers import Optimizer
from algorithms.common.schedules import Schedule
from algorithms.pipeline import Pipeline
from algorithms.pipelining.balance import check_balance
from algorithms.pipelining.schedules import GPipe
from harness.problems.base import Problem
from harness.shortage import Shortage, Way
from harness.worker import Worker


@dataclass(frozen=True)
class ModelParallel(Algorithm):
    """Stages of one model on all workers, one of which works at a time.

    Args:
        balance: by what layers cost the same: layers, parameters, flops or measured.
        optimizer: what makes a step of the gradient, on every worker for its own stage.
        schedule: factor of the step as training goes on.
    """

    synchronous: ClassVar[bool] = True
    splits_model: ClassVar[bool] = True
    supports_fake_tensors: ClassVar[bool] = True

    balance: str
    optimizer: Optimizer
    schedule: Schedule

    def __post_init__(self) -> None:
        super().__post_init__()
        check_balance(self.balance)

    @property
    def _pipeline(self) -> Pipeline:
        order, rest = GPipe(), (self.optimizer, self.schedule)
        return Pipeline(self.learning_rate, self.batch_size, 1, self.balance, order, *rest)

    def share(self, rank: int, num_workers: int) -> tuple[int, int]:
        """All work on the same samples."""
        return self._pipeline.share(rank, num_workers)

    def check(self, problem: Problem) -> None:
        """Its model is a chain of layers."""
        self._pipeline.check(problem)

    def check_workers(self, problem: Problem, num_workers: int) -> None:
        """There is a layer for every stage."""
        self._pipeline.check_workers(problem, num_workers)

    def constants(self, num_workers: int) -> dict[str, float]:
        """All but one of the workers wait."""
        return self._pipeline.constants(num_workers)

    def bytes_per_update(self, problem: Problem, weights: torch.Tensor, num_workers: int) -> float | None:
        """Activations of a batch that go from worker to worker, and their gradients."""
        return self._pipeline.bytes_per_update(problem, weights, num_workers)

    def frees_memory(self, problem: Problem, num_workers: int, lacks: Shortage) -> list[Way]:
        """More stages."""
        return self._pipeline.frees_memory(problem, num_workers, lacks)

    def train(self, worker: Worker, problem: Problem) -> None:
        """Take steps along the gradient of each batch."""
        self._pipeline.train(worker, problem)
