"""SVRG: stochastic gradients whose variance falls as the optimum comes near (Johnson and Zhang, NIPS 2013, Figure 1).

    w~ <- w;  mu <- 1/n sum_i grad f_i(w~)                        one epoch
    repeat:  w <- w - eta * (grad f_i(w) - grad f_i(w~) + mu)     `inner_epochs` epochs

Without locks it is KroMagnon (Mania et al., SIAM J. Optim. 2017): workers compute the full gradient
together, each a part, meet, and then update one model without asking anyone. By native kernels an update touches only
the nonzeros of its sample (harness/kernels/variance_reduced.py); by torch it is dense, and costs two gradients.

A full gradient counts as n samples of the budget, and as no update: an epoch is n gradients at new points, whoever
computes them, so that epochs compare with those of SGD. Deviations: the next snapshot is the last iterate (the paper's
option I), and samples are shuffled, not drawn with replacement.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch

from algorithms.flat import flat_parameters, flatten_
from algorithms.sgd import chunk_of
from algorithms.shared_memory.replicas import Replica
from algorithms.shared_memory.shared_model import SharedModelAlgorithm
from harness.errors import UserError, require
from harness.kernels.access import Access
from harness.kernels.sparse_linear import HINGE, SparseLinearKernel
from harness.kernels.variance_reduced import FullGradientKernel, VarianceReducedKernel
from harness.problems.base import Problem
from harness.worker import Worker


@dataclass(frozen=True)
class SVRG(SharedModelAlgorithm):
    """Every worker updates the shared model by gradients of reduced variance.

    Args:
        inner_epochs: epochs of updates after each full gradient, >= 1 (the paper's m / n).
    """

    is_sgd: ClassVar[bool] = False
    why_rows_stay: ClassVar[str] = "keeps a slope per sample, which stays where it is"

    inner_epochs: int

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.inner_epochs >= 1, "algorithm.inner_epochs", "must be >= 1", self.inner_epochs)

    def train(self, worker: Worker, problem: Problem) -> None:
        """Alternate full gradients and descent."""
        start = flat_parameters(problem.build_model(worker.device, worker.seed))
        replica = self.replica(worker, problem, start)
        if self.releases_gil(problem):
            gradients: _Gradients = _ByKernel(worker, problem, replica, start)
            chunk = chunk_of(worker, replica)
        else:
            gradients, chunk = _ByTorch(worker, problem, replica, start), self.batch_size
        for epoch, batches in worker.epochs(problem, chunk):
            if epoch % (1 + self.inner_epochs) == 0:
                replica.merge()
                worker.meet()  # from here on nobody descends
                gradients.look()
                for samples in batches:
                    gradients.gather(torch.arange(worker.position, worker.position + len(samples), dtype=torch.int32))
                    replica.processed(len(samples), updates=0)
                gradients.share()
            else:
                for samples in batches:
                    updates = gradients.descend(samples, self.step(worker))
                    replica.processed(len(samples), updates)
        replica.finish()

    def warm_up(self, problem: Problem) -> None:
        """Compile the kernels."""
        if self.releases_gil(problem):
            linear = _linear(problem)
            model, access = self.example(problem)
            gradient = linear.rows.values.new_zeros(linear.num_coordinates)
            slopes = linear.rows.values.new_zeros(0)
            FullGradientKernel(linear, gradient, slopes).warm_up(gradient)
            VarianceReducedKernel(linear, gradient, slopes).warm_up(model, access)

    def notices(self, problem: Problem, num_workers: int, epochs: float) -> list[str]:
        """Say where there is no step."""
        few = f"budget.epochs={epochs:g} is spent on the first full gradient, and no step is made: a round takes"
        steps = f"1 + algorithm.inner_epochs = {1 + self.inner_epochs} epochs"
        return [*super().notices(problem, num_workers, epochs), *([f"{few} {steps}"] if epochs <= 1 else [])]

    def releases_gil(self, problem: Problem) -> bool:
        """With one sample per update and a linear model on sparse rows."""
        return self.batch_size == 1 and isinstance(problem.kernel, SparseLinearKernel)

    def check(self, problem: Problem) -> None:
        """Refuse a loss that is not smooth, whose gradients do not approach those at a snapshot.

        Raises:
            UserError: naming the field.
        """
        super().check(problem)
        if isinstance(problem.kernel, SparseLinearKernel) and problem.kernel.loss_code == HINGE:
            raise UserError(
                "algorithm=svrg needs a smooth loss, and the hinge is none: set problem.squared=true, or use "
                "algorithm=hogwild"
            )


class _Gradients(ABC):
    """The gradients of one worker, and what all know of the snapshot.

    Attributes:
        common: mu, shape (parameters,), shared.
    """

    def __init__(self, worker: Worker, problem: Problem, replica: Replica, start: torch.Tensor) -> None:
        self.worker, self.problem, self.replica = worker, problem, replica
        self.common = worker.shared("full gradient", torch.zeros_like(start))
        self.own = torch.zeros_like(self.common)

    def look(self) -> None:
        """Take the model as it is as the snapshot, and begin a full gradient."""
        self.own.zero_()
        if self.worker.rank == 0:
            self.common.zero_()
        self.worker.meet()

    def share(self) -> None:
        """Add this worker's part of the full gradient to that of the others."""
        with self.worker.lock("full gradient"):
            self.common.add_(self.own)
        self.worker.meet()

    @abstractmethod
    def gather(self, samples: torch.Tensor) -> None:
        """Add gradients at the snapshot to this worker's part."""

    @abstractmethod
    def descend(self, samples: torch.Tensor, step: float) -> int:
        """Update the model; returns how many times."""


class _ByKernel(_Gradients):
    """Of each sample, touching its nonzeros only."""

    def __init__(self, worker: Worker, problem: Problem, replica: Replica, start: torch.Tensor) -> None:
        super().__init__(worker, problem, replica, start)
        self.linear = _linear(problem)
        self.slopes = worker.shared("slopes at the snapshot", torch.zeros_like(self.linear.labels))
        self.steps = VarianceReducedKernel(self.linear, self.common, self.slopes)

    def look(self) -> None:
        super().look()
        self.full = FullGradientKernel(self.linear, self.replica.whole().to(self.common.dtype), self.slopes)

    def gather(self, samples: torch.Tensor) -> None:
        delayed = Access(delay_s=self.replica.access.delay_s)
        self.worker.run(self.full, self.own, samples, 1 / self.problem.num_samples, delayed)

    def descend(self, samples: torch.Tensor, step: float) -> int:
        self.worker.run(self.steps, self.replica.model, samples, step, self.replica.access)
        return len(samples)


class _ByTorch(_Gradients):
    """Of a batch, by autograd."""

    def __init__(self, worker: Worker, problem: Problem, replica: Replica, start: torch.Tensor) -> None:
        super().__init__(worker, problem, replica, start)
        assert isinstance(replica.model, torch.Tensor)
        self.model, self.reference = (problem.build_model(worker.device, worker.seed) for _ in range(2))
        self.weights, self.gradient = flatten_(self.model, replica.model)
        self.snapshot, self.gradient_there = flatten_(self.reference)

    def look(self) -> None:
        super().look()
        self.snapshot.copy_(self.replica.whole())

    def gather(self, samples: torch.Tensor) -> None:
        self.problem.loss(self.reference, samples).backward()
        self.own.add_(self.gradient_there, alpha=len(samples) / self.problem.num_samples)
        self.gradient_there.zero_()

    def descend(self, samples: torch.Tensor, step: float) -> int:
        with self.replica.locked(self.worker):
            self.problem.loss(self.model, samples).backward()
            self.problem.loss(self.reference, samples).backward()
            self.weights.sub_(self.gradient - self.gradient_there + self.common, alpha=step)
        self.gradient.zero_()
        self.gradient_there.zero_()
        return 1


def _linear(problem: Problem) -> SparseLinearKernel:
    assert isinstance(problem.kernel, SparseLinearKernel)
    return problem.kernel
