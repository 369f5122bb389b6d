"""Hogwild! (Niu, Recht, Re, Wright, NIPS 2011, Algorithm 1): lock-free SGD on one shared model.

    loop: sample e; read the shared x_e; compute G_e(x); for v in e: x_v <- x_v - gamma * b_v^T G_e(x)

No lock is ever taken; where samples are sparse, workers seldom touch the same coordinate. Deviations: samples come from
a shuffled queue instead of with replacement, and the step is constant instead of decaying after every epoch.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from algorithms.base import Algorithm
from algorithms.flat import flat_parameters
from algorithms.sgd import descend
from harness.problems.base import Problem
from harness.worker import Worker


@dataclass(frozen=True)
class Hogwild(Algorithm):
    """Every worker updates the shared model without asking anyone."""

    synchronous: ClassVar[bool] = False
    needs_shared_memory: ClassVar[bool] = True

    def train(self, worker: Worker, problem: Problem) -> None:
        """Descend on the shared model, lock-free."""
        model = problem.build_model(worker.device, worker.seed)
        weights = worker.shared("model", flat_parameters(model))
        descend(self, worker, problem, model, weights)

    def warm_up(self, problem: Problem) -> None:
        """Compile the kernel."""
        if self.releases_gil(problem):
            problem.kernel.warm_up(flat_parameters(problem.build_model(torch.device("cpu"), seed=0)))

    def releases_gil(self, problem: Problem) -> bool:
        """With one sample per update and a native kernel."""
        return self.batch_size == 1 and problem.kernel is not None
