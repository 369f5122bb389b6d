"""Linear support vector machine: f(w) = 1/n sum_i max(0, 1 - y_i x_i . w) + l2/2 |w|^2, y_i = -1 or +1.

The sparse SVM of Hogwild! (Niu, Recht, Re, Wright, NIPS 2011, equation 3).
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from harness.kernels.sparse_linear import HINGE
from harness.problems.sparse_linear import SparseLinear


@dataclass(frozen=True)
class LinearSVM(SparseLinear):
    """Hinge loss on sparse rows; at the kink the subgradient is -y x."""

    loss_code: ClassVar[int] = HINGE

    def pointwise(self, margins: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """max(0, 1 - ym), shape (batch,)."""
        return (1 - labels * margins).clamp(min=0)
