"""Least squares with a known optimum: f(w) = 1/2n |A w - b|^2 + l2/2 |w|^2.

A = sqrt(n) U diag(s) V' with random orthonormal U and V, so that the Hessian A'A/n has exactly the eigenvalues s^2,
which fall geometrically from 1 to 1 / condition. b = A w* + noise, w* normal.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import nn

from harness.batch import Samples
from harness.errors import require
from harness.kernels.sparse_linear import SQUARES, SparseLinearKernel
from harness.kernels.sparse_rows import SparseRows
from harness.problems.base import Problem


class DenseLinear(nn.Module):
    """x -> x . w, from zero: one parameter `weight`, shape (features,)."""

    def __init__(self, num_features: int, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_features, dtype=dtype, device=device))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Shape (batch, features) to (batch,)."""
        return inputs @ self.weight


@dataclass(frozen=True)
class LeastSquares(Problem):
    """Seeded dense least squares.

    Args:
        samples: rows of A, n, >= features.
        features: columns of A, >= 2.
        condition: of the Hessian A'A/n, >= 1.
        noise: standard deviation of the noise in b, >= 0.
        l2: factor of |w|^2 / 2 in the objective, >= 0.
        seed: of A and b, >= 0.
    """

    loss_reads: ClassVar[tuple[str, ...]] = ("matrix", "labels")

    samples: int
    features: int
    condition: float
    noise: float
    l2: float
    seed: int

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.features >= 2, "problem.features", "must be >= 2", self.features)
        rule = f"must be >= problem.features={self.features}"
        require(self.samples >= self.features, "problem.samples", rule, self.samples)
        require(self.condition >= 1, "problem.condition", "must be >= 1", self.condition)
        require(self.noise >= 0, "problem.noise", "must be >= 0", self.noise)
        require(self.l2 >= 0, "problem.l2", "must be >= 0", self.l2)
        require(self.seed >= 0, "problem.seed", "must be >= 0", self.seed)

    @property
    def num_samples(self) -> int:
        """Rows of A."""
        return len(self.matrix)

    @cached_property
    def matrix(self) -> torch.Tensor:
        """A, of `dtype`, shape (samples, features)."""
        return self._exact[0].to(getattr(torch, self.dtype))

    @cached_property
    def labels(self) -> torch.Tensor:
        """b, of `dtype`, shape (samples,)."""
        return self._exact[1].to(getattr(torch, self.dtype))

    @cached_property
    def optimum(self) -> torch.Tensor:
        """The minimiser of f, float64, shape (features,)."""
        matrix, labels = self._exact
        penalty = math.sqrt(self.l2 * len(labels)) * torch.eye(self.features, dtype=torch.float64)
        labels = torch.cat([labels, labels.new_zeros(self.features)])
        return torch.linalg.lstsq(torch.cat([matrix, penalty]), labels.unsqueeze(1)).solution.squeeze(1)

    @cached_property
    def optimal_loss(self) -> float:
        """Loss at the optimum."""
        return self._objective(self.optimum)

    @cached_property
    def kernel(self) -> SparseLinearKernel:
        """Native per-sample SGD, on rows in which nothing is zero."""
        indptr = torch.arange(0, self.matrix.numel() + 1, self.features)
        indices = torch.arange(self.features, dtype=torch.int32).repeat(self.samples)
        rows = SparseRows(indptr, indices, self.matrix.view(-1), self.features)
        return SparseLinearKernel(rows, self.labels, SQUARES, self.l2)

    def build_model(self, device: torch.device, seed: int) -> DenseLinear:
        """Zeros, whatever the seed."""
        return DenseLinear(self.features, self.matrix.dtype, device)

    def gather(self, samples: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Rows of A and entries of b."""
        return self.matrix.index_select(0, samples), self.labels.index_select(0, samples)

    def loss(self, model: nn.Module, samples: Samples) -> torch.Tensor:
        """1/2 mean (a_i . w - b_i)^2 over the batch, and the regulariser."""
        rows, labels = self.rows_of(samples)
        errors = model(rows) - labels  # (batch,)
        mean = 0.5 * errors.square().mean()
        return mean + 0.5 * self.l2 * next(model.parameters()).square().sum() if self.l2 else mean

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """The objective, in float64."""
        return {"train/loss": self._objective(next(model.parameters()).detach().cpu().double())}

    @torch.no_grad()
    def evaluate_ensemble(self, models: Sequence[nn.Module]) -> dict[str, float]:
        """Of the mean of their predictions, which are linear in the weights."""
        weights = torch.stack([next(model.parameters()).detach().cpu().double() for model in models])
        return {"train/loss": self._objective(weights)}

    def _objective(self, weights: torch.Tensor) -> float:
        """Of weights, shape (features,), or of the mean prediction of several, shape (models, features)."""
        (matrix, labels), each = self._exact, torch.atleast_2d(weights)
        squares = (matrix @ each.mean(0) - labels).square().mean()
        return float(0.5 * squares + 0.5 * self.l2 * each.square().sum(1).mean())

    @cached_property
    def _exact(self) -> tuple[torch.Tensor, torch.Tensor]:
        """A and b in float64."""
        generator = torch.Generator().manual_seed(self.seed)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        left, _ = torch.linalg.qr(normal(self.samples, self.features))
        right, _ = torch.linalg.qr(normal(self.features, self.features))
        eigenvalues = torch.logspace(0, -math.log10(self.condition), self.features, dtype=torch.float64)
        matrix = math.sqrt(self.samples) * (left * eigenvalues.sqrt()) @ right.T
        return matrix, matrix @ normal(self.features) + self.noise * normal(self.samples)
