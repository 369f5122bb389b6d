"""Sequential stochastic gradient descent (Robbins and Monro, Ann. Math. Statist. 1951): everything else's baseline.

    w <- w - eta * gradient of the mean loss over the batch, or another step along it (algorithms/common/optimizers.py)

With one sample per update, a problem that has a native kernel runs it: the best sequential code there is. With all
samples in every update it is gradient descent (Cauchy 1847).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from algorithms.base import Algorithm
from algorithms.common.gradient import add_gradient, check_passes, notices_of_passes
from algorithms.common.optimizers import Descent, Optimizer
from algorithms.common.schedules import Schedule
from algorithms.flat import flat_parameters, flatten_
from algorithms.shared_memory.replicas import Alone, Replica
from harness.kernels.base import Kernel
from harness.problems.base import Problem
from harness.worker import Worker


@dataclass(frozen=True)
class SGD(Algorithm):
    """Minibatch SGD on one worker.

    Args:
        accumulate: passes over parts of a batch that make up its gradient, >= 1: less memory, the same step.
        optimizer: what makes a step of a gradient.
        schedule: factor of the step as training goes on.
    """

    synchronous: ClassVar[bool] = True
    max_workers: ClassVar[int | None] = 1
    has_kernel: ClassVar[bool] = True
    visits_rows: ClassVar[bool] = True
    takes_all: ClassVar[bool] = True

    accumulate: int
    optimizer: Optimizer
    schedule: Schedule

    def __post_init__(self) -> None:
        super().__post_init__()
        check_passes(self.accumulate)

    def notices(self, problem: Problem, num_workers: int, epochs: float) -> list[str]:
        """More passes than samples."""
        return notices_of_passes(self.accumulate, self.batch_size or problem.num_samples)

    def train(self, worker: Worker, problem: Problem) -> None:
        """Descend on a model of its own."""
        model = problem.build_model(worker.device, worker.seed)

        def step() -> float:
            return self.learning_rate * self.schedule.at(worker)

        if self.releases_gil(problem):
            assert problem.kernel is not None
            run_kernel(problem.kernel, worker, Alone(worker, flat_parameters(model)), step)
            return
        weights, gradient = flatten_(model)
        descent = Descent(self.optimizer, weights, gradient, self.learning_rate)
        for batch in worker.batches(problem, self.batch_size or problem.num_samples):
            add_gradient(problem, model, batch, self.accumulate)
            descent.step(step())
            gradient.zero_()
            worker.observe(weights, samples=len(batch))

    def warm_up(self, problem: Problem) -> None:
        """Compile the kernel."""
        if self.releases_gil(problem):
            assert problem.kernel is not None
            problem.kernel.warm_up(flat_parameters(problem.build_model(torch.device("cpu"), seed=0)))

    def releases_gil(self, problem: Problem) -> bool:
        """With one sample per update, plain steps and a native kernel."""
        return self.batch_size == 1 and self.optimizer.is_plain and problem.kernel is not None


def descend(
    worker: Worker, problem: Problem, model: nn.Module, replica: Replica, batch_size: int, step: Callable[[], float]
) -> None:
    """Take steps w <- w - eta * g by torch until the budget is spent.

    Args:
        model: computes the loss; its parameters become views into the replica's.
        step: eta, asked for at every step.
    """
    assert isinstance(replica.model, torch.Tensor)
    weights, gradient = flatten_(model, replica.model)
    for batch in worker.batches(problem, batch_size):
        with replica.locked(worker):
            problem.loss(model, batch).backward()
            weights.sub_(gradient, alpha=step())
        gradient.zero_()
        replica.processed(len(batch))
    replica.finish()


def chunk_of(worker: Worker, replica: Replica) -> int:
    """Samples to give a kernel at a time: as many as the replica allows, or gradients that take less than a second."""
    chunk = min(worker.chunk_size, replica.max_chunk or worker.chunk_size)
    delay_s = replica.access.delay_s
    return max(1, min(chunk, int(1 / delay_s))) if delay_s else chunk


def run_kernel(kernel: Kernel, worker: Worker, replica: Replica, step: Callable[[], float]) -> None:
    """Take a step per sample by a native kernel until the budget is spent.

    Args:
        step: eta, asked for at every chunk of samples.
    """
    chunk = chunk_of(worker, replica)
    for visited, samples in worker.visits(kernel, chunk):
        worker.run(visited, replica.model, samples, step(), replica.access)
        replica.processed(len(samples), updates=len(samples))
    replica.finish()
