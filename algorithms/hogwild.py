"""Hogwild! (Niu, Recht, Re, Wright, NIPS 2011, Algorithm 1): lock-free SGD on one shared model.

    loop: sample e; read the shared x_e; compute G_e(x); for v in e: x_v <- x_v - gamma * b_v^T G_e(x)

No lock is ever taken; where samples are sparse, workers seldom touch the same coordinate. Locks of all kinds, replicas
and rounded models are options (`shared_memory/shared_model.py`): what Hogwild! avoids can be measured. Deviations:
samples come from a shuffled queue instead of with replacement, and the step is constant unless `schedule` is another.
"""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from algorithms.flat import flat_parameters
from algorithms.sgd import descend, run_kernel
from algorithms.shared_memory.shared_model import SharedModelAlgorithm
from harness.problems.base import Problem
from harness.worker import Worker


@dataclass(frozen=True)
class Hogwild(SharedModelAlgorithm):
    """Every worker updates the shared model without asking anyone, unless told to."""

    visits_rows: ClassVar[bool] = True

    def train(self, worker: Worker, problem: Problem) -> None:
        """Descend on the shared model, or a replica of it."""
        model = problem.build_model(worker.device, worker.seed)
        layout = self.laid_out(worker, problem)
        replica = self.replica(worker, problem, flat_parameters(model), layout)
        if layout is not None:
            run_kernel(layout.kernel, worker, replica, partial(self.step, worker))
        else:
            descend(worker, problem, model, replica, self.batch_size, partial(self.step, worker))

    def warm_up(self, problem: Problem) -> None:
        """Compile the kernel."""
        if self.releases_gil(problem):
            assert problem.kernel is not None
            problem.kernel.warm_up(*self.example(problem))
