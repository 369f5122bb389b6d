"""PowerSGD: the mean of all workers' matrices, in factors of low rank (Vogels, Karimireddy and Jaggi, NeurIPS 2019).

    for every layer's matrix:                                     (Algorithm 1, one step of subspace iteration)
        P  <-  mean over workers of M_i Q;   P  <-  orthonormal columns of P
        Q  <-  mean over workers of M_i' P                        Q is the next step's too, if `warm_start`
        all hear  P Q',  the mean of what each says:  P (M_i' P)'
    M_i  <-  this step's matrix and what P (M_i' P)' left out of those before         (Algorithm 2, error feedback)

Layers with more than two dimensions are matrices of their first one by all others. Vectors are sent whole, and so is a
matrix of n x m whose factors would be no smaller: r (n + m) >= n m. The factors of all layers travel as one, first P
and what is whole, then Q.

We deviate in what a worker feeds back: what its own part of P Q' left out of its own matrix, not what the mean did. The
mean over workers is the same, and so are all models; but what workers differ by does not pile up in what they owe.
Columns are made orthonormal by QR, which knows what to do with zeros, not by Gram-Schmidt.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import nn

from algorithms.compression.averaging import Averaging, WholeMean
from algorithms.compression.compressor import Compression
from algorithms.compression.error_feedback import ErrorFeedback
from harness.errors import require
from harness.problems.base import Problem
from harness.worker import Worker


@dataclass(frozen=True)
class PowerSGD(Compression):
    """Factors of the layers' matrices.

    Args:
        matrix_rank: columns of the factors, r, >= 1.
        warm_start: iterate from the Q of the step before, not from a random one.
        error_feedback: add what is left out to the vector that is sent next.
    """

    matrix_rank: int
    warm_start: bool
    error_feedback: bool

    def __post_init__(self) -> None:
        require(self.matrix_rank >= 1, "algorithm.compression.matrix_rank", "must be >= 1", self.matrix_rank)

    def averaging(self, model: nn.Module, worker: Worker) -> Averaging:
        """Of gradients of the model."""
        return MeanOfMatrices(self, [each.shape for each in model.parameters()], worker)

    def bytes_of_mean(self, problem: Problem, vector: torch.Tensor, num_workers: int) -> int:
        """Both factors of a layer, or what is sent whole."""
        shapes = [each.shape for each in problem.build_model(torch.device("cpu"), seed=0).parameters()]
        numbers = [self.matrix_rank * sum(_matrix(each)) if self.is_smaller(each) else prod(each) for each in shapes]
        return sum(numbers) * vector.element_size() * num_workers if num_workers > 1 else 0

    def is_smaller(self, shape: Sequence[int]) -> bool:
        """Whether the factors of a layer's parameters are smaller than they."""
        rows, columns = _matrix(shape)
        return self.matrix_rank * (rows + columns) < rows * columns


class MeanOfMatrices(Averaging):
    """One worker's part in means of vectors whose parts are matrices.

    Args:
        shapes: of the parts, one after the other.
    """

    def __init__(self, compression: PowerSGD, shapes: Sequence[Sequence[int]], worker: Worker) -> None:
        self._compression, self._mean = compression, WholeMean()
        self._generator = torch.Generator().manual_seed(worker.seed)  # all workers draw the same Q
        self.feedback = ErrorFeedback() if compression.error_feedback else None
        self._shapes = [_matrix(shape) for shape in shapes]
        self._in_factors = [compression.is_smaller(shape) for shape in shapes]
        self._q: list[torch.Tensor] = []

    def average_(self, vector: torch.Tensor) -> None:
        """P and what is whole at once, then Q."""
        owed = vector if self.feedback is None else self.feedback.corrected(vector)
        wholes, matrices = self._parts(owed)
        means = self._mean_of([*wholes, *map(torch.mm, matrices, self._start(matrices))])
        p = [torch.linalg.qr(mean).Q for mean in means[len(wholes) :]]
        own = [matrix.T @ left for matrix, left in zip(matrices, p, strict=True)]
        if self.feedback is not None:
            self.feedback.said(owed, self._joined(wholes, p, own))
        self._q = self._mean_of(own)
        vector.copy_(self._joined(means[: len(wholes)], p, self._q))

    def _start(self, matrices: list[torch.Tensor]) -> list[torch.Tensor]:
        """The Q to iterate from: the one before, or a random one."""
        if self._q and self._compression.warm_start:
            return self._q
        sizes = [(matrix.shape[1], self._compression.matrix_rank) for matrix in matrices]
        return [torch.randn(size, generator=self._generator).to(matrices[0]) for size in sizes]

    def _parts(self, vector: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Those that are sent whole, and those in factors; views."""
        parts = vector.split([rows * columns for rows, columns in self._shapes])
        views = [part.view(shape) for part, shape in zip(parts, self._shapes, strict=True)]
        split = list(zip(views, self._in_factors, strict=True))
        return [part for part, factors in split if not factors], [part for part, factors in split if factors]

    def _joined(self, wholes: list[torch.Tensor], p: list[torch.Tensor], q: list[torch.Tensor]) -> torch.Tensor:
        """The vector that has these parts."""
        whole, product = iter(wholes), map(torch.mm, p, (each.T for each in q))
        return torch.cat([next(product if factors else whole).reshape(-1) for factors in self._in_factors])

    def _mean_of(self, parts: list[torch.Tensor]) -> list[torch.Tensor]:
        """Means over the workers, all in one message."""
        if not parts:
            return []
        mean = torch.cat([part.reshape(-1) for part in parts])
        self._mean.average_(mean)
        split = mean.split([part.numel() for part in parts])
        return [each.view(part.shape) for each, part in zip(split, parts, strict=True)]


def _matrix(shape: Sequence[int]) -> tuple[int, int]:
    """Rows and columns of a layer's parameters, n and m.

    >>> _matrix((8, 3, 5, 5)), _matrix((7,)), _matrix(())
    ((8, 75), (7, 1), (1, 1))
    """
    return prod(shape[:1]), prod(shape[1:])
