"""Coordinate descent on regularised linear models, dual and primal; steps and sources in harness/kernels.

    dual     for sample i:   move a_i to the maximum of the dual along it;  w <- w + change * x_i
    primal   for feature j:  w_j <- w_j - g_j / L_j;  margins <- margins + change * column j

The dual one, on weights that all workers share, is PASSCoDe (Hsieh, Yu, Dhillon, ICML 2015), whose three
variants are ways of locking: PASSCoDe-Wild is `none`, -Atomic is `atomic`, -Lock is `per_coordinate`. Deviation: the
paper's -Lock holds the locks of w while it reads, too; ours only while it writes (`global_spin` locks both). Without
locks additions to w are lost, so that w is no longer the sum of a_i x_i: the paper shows that what is solved then
has a perturbed regulariser. Measured on two cores, logistic loss, 400 samples of 10 nonzeros among 60 features,
4,000 epochs, six seeds: `none` ended up to 7e-5 (relative) above the optimum and 3 seeds above 1e-5, `atomic` within
1e-15.

An epoch is a pass over all nonzeros in either: where d features stand for n samples, sample i of the order in which
samples are dealt stands for the features from floor(i d / n) up to, but not with, floor((i + 1) d / n).
"""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
import torch

from algorithms.flat import flat_parameters
from algorithms.sgd import run_kernel
from algorithms.shared_memory.shared_model import SharedModelAlgorithm
from harness.errors import UserError, require
from harness.kernels.coordinate_descent import CURVATURE, DualKernel, PrimalKernel
from harness.kernels.sparse_linear import SparseLinearKernel
from harness.problems.base import Problem
from harness.worker import Worker


@dataclass(frozen=True)
class DualCoordinateDescent(SharedModelAlgorithm):
    """Workers maximise the dual along one sample after the other, and share the weights.

    `learning_rate` is the share of the way to the maximum that is gone, in (0, 1].
    """

    is_sgd: ClassVar[bool] = False
    why_rows_stay: ClassVar[str] = "keeps a dual variable per sample, which stays where it is"
    why_full: ClassVar[str] = "rounding would go unnoticed for ever"
    why_summed: ClassVar[str] = "dual variables are not averaged"

    def train(self, worker: Worker, problem: Problem) -> None:
        """Ascend from a = 0, w = 0."""
        linear = _linear(problem)
        start = torch.zeros_like(flat_parameters(problem.build_model(worker.device, worker.seed)))
        replica = self.replica(worker, problem, start)
        kernel = DualKernel(linear, worker.shared("dual", torch.zeros_like(linear.labels)))
        run_kernel(kernel, worker, replica, partial(self.step, worker))

    def warm_up(self, problem: Problem) -> None:
        """Compile the kernel."""
        DualKernel(_linear(problem), torch.zeros_like(_linear(problem).labels)).warm_up(*self.example(problem))

    def check(self, problem: Problem) -> None:
        """Refuse what has no dual.

        Raises:
            UserError: naming the field.
        """
        _check(self, problem)
        rule = f"must be > 0 (such as 1e-4) with algorithm={DualKernel.name}, the dual of a regularised problem"
        require(_linear(problem).l2 > 0, "problem.l2", rule, _linear(problem).l2)


@dataclass(frozen=True)
class CoordinateDescent(SharedModelAlgorithm):
    """Workers minimise along one feature after the other, and share the margins.

    `learning_rate` is the share of the safe step 1 / L_j, in (0, 1].
    """

    is_sgd: ClassVar[bool] = False
    why_rows_stay: ClassVar[str] = "visits columns, not rows"
    why_full: ClassVar[str] = "rounding would go unnoticed for ever"

    def train(self, worker: Worker, problem: Problem) -> None:
        """Descend from w = 0."""
        linear = _linear(problem)
        start = torch.zeros_like(flat_parameters(problem.build_model(worker.device, worker.seed)))
        weights, margins = worker.shared("weights", start), worker.shared("margins", torch.zeros_like(linear.labels))
        kernel = PrimalKernel(linear, weights)
        access = self.access(worker, kernel)
        for samples in worker.batches(problem, worker.chunk_size):
            assert isinstance(samples, torch.Tensor)  # workers share memory: nobody sends rows
            features = features_of(samples, problem.num_samples, len(weights))
            worker.run(kernel, margins, features, self.step(worker), access)
            worker.observe(weights, len(samples), updates=len(features))

    def warm_up(self, problem: Problem) -> None:
        """Compile the kernel."""
        linear, (weights, access) = _linear(problem), self.example(problem)
        assert isinstance(weights, torch.Tensor)
        PrimalKernel(linear, weights).warm_up(torch.zeros_like(linear.labels), access)

    def check(self, problem: Problem) -> None:
        """Refuse losses without curvature, and replicas.

        Raises:
            UserError: naming the field.
        """
        _check(self, problem, svm="`problem=svm problem.squared=true`")
        if _linear(problem).loss_code not in CURVATURE:
            raise UserError(
                f"algorithm={PrimalKernel.name} needs a smooth loss, and the hinge is none: set problem.squared=true, "
                f"or use algorithm={DualKernel.name}"
            )
        rule = "must be shared: what workers share are margins, of which there are no replicas"
        require(self.sharing == "shared", "algorithm.sharing", rule, self.sharing)


def features_of(samples: torch.Tensor, num_samples: int, num_features: int) -> torch.Tensor:
    """The features that samples stand for, int32: over all samples each feature occurs once.

    >>> features_of(torch.tensor([2, 0, 1], dtype=torch.int32), 3, 7)
    tensor([4, 5, 6, 0, 1, 2, 3], dtype=torch.int32)
    """
    numbers = samples.numpy().astype(np.int64)
    starts = numbers * num_features // num_samples
    counts = (numbers + 1) * num_features // num_samples - starts
    before = counts.cumsum() - counts
    features = np.repeat(starts - before, counts) + np.arange(counts.sum())
    return torch.from_numpy(features.astype(np.int32))


def _linear(problem: Problem) -> SparseLinearKernel:
    assert isinstance(problem.kernel, SparseLinearKernel)
    return problem.kernel


def _check(algorithm: SharedModelAlgorithm, problem: Problem, svm: str = "problem=svm") -> None:
    """Refuse what neither can do."""
    if not isinstance(problem.kernel, SparseLinearKernel):
        raise UserError(
            "coordinate descent needs a linear model on rows: use problem=logistic_regression, problem=least_squares "
            f"or {svm}, or algorithm=hogwild"
        )
    rule, layout = "must be as_given with coordinate descent", algorithm.layout
    require(layout == "as_given", "algorithm.layout", rule, layout)
    step, size = algorithm.learning_rate, algorithm.batch_size
    require(step <= 1, "algorithm.learning_rate", "must be in (0, 1]: it is a share of an exact step", step)
    require(size == 1, "algorithm.batch_size", "must be 1: coordinates are visited one by one", size)
