"""Logistic regression: f(w) = 1/n sum_i log(1 + exp(-y_i x_i . w)) + l2/2 |w|^2, y_i = -1 or +1.

A standard problem of asynchronous SGD on sparse data; Hogwild! (Niu, Recht, Re, Wright, NIPS 2011) has its hinge twin.
"""

from dataclasses import dataclass

import torch
from torch.nn.functional import logsigmoid, softplus

from harness.kernels.sparse_linear import LOGISTIC
from harness.problems.sparse_linear import SparseLinear


@dataclass(frozen=True)
class LogisticRegression(SparseLinear):
    """Logistic loss on sparse rows."""

    @property
    def loss_code(self) -> int:
        """The logistic one."""
        return LOGISTIC

    def pointwise(self, margins: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """log(1 + exp(-ym)), shape (batch,)."""
        return softplus(-labels * margins)

    def together(self, margins: torch.Tensor) -> torch.Tensor:
        """The log-odds of the mean probability, shape (batch,)."""
        return logsigmoid(margins).logsumexp(0) - logsigmoid(-margins).logsumexp(0)
