"""Sequential stochastic gradient descent (Robbins and Monro, Ann. Math. Statist. 1951): everything else's baseline.

    w <- w - eta * gradient of the mean loss over the batch

With one sample per update, a problem that has a native kernel runs it: the best sequential code there is.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from algorithms.base import Algorithm
from algorithms.flat import flat_parameters, flatten_
from harness.problems.base import Problem
from harness.worker import Worker

CHUNK = 1024  # samples a worker takes at a time, where each is an update of its own


@dataclass(frozen=True)
class SGD(Algorithm):
    """Minibatch SGD on one worker."""

    synchronous: ClassVar[bool] = True
    max_workers: ClassVar[int | None] = 1

    def train(self, worker: Worker, problem: Problem) -> None:
        """W <- w - eta * g, `batch_size` samples at a time."""
        model = problem.build_model(worker.device, worker.seed)
        if self.releases_gil(problem):
            run_kernel(worker, problem, flat_parameters(model), self.learning_rate)
            return
        weights, gradient = flatten_(model)
        for batch in worker.batches(problem, self.batch_size):
            problem.loss(model, batch).backward()
            weights.sub_(gradient, alpha=self.learning_rate)
            gradient.zero_()
            worker.observe(weights, samples=len(batch))

    def releases_gil(self, problem: Problem) -> bool:
        """With one sample per update and a native kernel."""
        return self.batch_size == 1 and problem.kernel is not None


def run_kernel(worker: Worker, problem: Problem, weights: torch.Tensor, learning_rate: float) -> None:
    """Per-sample updates of the flat `weights`, natively, until the budget is spent."""
    assert problem.kernel is not None
    for samples in worker.batches(problem, CHUNK):
        worker.run(problem.kernel, weights, samples, learning_rate)
        worker.observe(weights, samples=len(samples), updates=len(samples))
