"""Sequential stochastic gradient descent (Robbins and Monro, Ann. Math. Statist. 1951): everything else's baseline.

    w <- w - eta * gradient of the mean loss over the batch

With one sample per update, a problem that has a native kernel runs it: the best sequential code there is.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from algorithms.base import Algorithm
from algorithms.flat import flat_parameters, flatten_
from harness.problems.base import Problem
from harness.worker import Worker


@dataclass(frozen=True)
class SGD(Algorithm):
    """Minibatch SGD on one worker."""

    synchronous: ClassVar[bool] = True
    max_workers: ClassVar[int | None] = 1

    def train(self, worker: Worker, problem: Problem) -> None:
        """Descend on a model of its own."""
        model = problem.build_model(worker.device, worker.seed)
        descend(self, worker, problem, model, flat_parameters(model))

    def warm_up(self, problem: Problem) -> None:
        """Compile the kernel."""
        if self.releases_gil(problem):
            warm_up_kernel(problem)

    def releases_gil(self, problem: Problem) -> bool:
        """With one sample per update and a native kernel."""
        return self.batch_size == 1 and problem.kernel is not None


def descend(algorithm: Algorithm, worker: Worker, problem: Problem, model: nn.Module, weights: torch.Tensor) -> None:
    """Take steps w <- w - eta * g on the flat `weights`, shape (parameters,), until the budget is spent.

    Args:
        model: computes the loss; its parameters become views into `weights`.
    """
    if algorithm.releases_gil(problem):
        _run_kernel(algorithm, worker, problem, weights)
        return
    _, gradient = flatten_(model, weights)
    for batch in worker.batches(problem, algorithm.batch_size):
        problem.loss(model, batch).backward()
        weights.sub_(gradient, alpha=algorithm.learning_rate)
        gradient.zero_()
        worker.observe(weights, samples=len(batch))


def warm_up_kernel(problem: Problem) -> None:
    """Compile the problem's kernel for its model."""
    assert problem.kernel is not None
    problem.kernel.warm_up(flat_parameters(problem.build_model(torch.device("cpu"), seed=0)))


def _run_kernel(algorithm: Algorithm, worker: Worker, problem: Problem, weights: torch.Tensor) -> None:
    assert problem.kernel is not None
    for samples in worker.batches(problem, worker.chunk_size):
        worker.run(problem.kernel, weights, samples, algorithm.learning_rate)
        worker.observe(weights, samples=len(samples), updates=len(samples))
