"""Linear support vector machine: f(w) = 1/n sum_i max(0, 1 - y_i x_i . w) + l2/2 |w|^2, y_i = -1 or +1.

The sparse SVM of Hogwild! (Niu, Recht, Re, Wright, NIPS 2011, equation 3).
"""

from dataclasses import dataclass

import torch

from harness.kernels.sparse_linear import HINGE, SQUARED_HINGE
from harness.problems.sparse_linear import SparseLinear


@dataclass(frozen=True)
class LinearSVM(SparseLinear):
    """Hinge loss on sparse rows; at the kink the subgradient is -y x.

    Args:
        squared: take the square of the hinge, which is smooth (the L2-loss SVM of liblinear).
    """

    squared: bool

    @property
    def loss_code(self) -> int:
        """Of the hinge or its square."""
        return SQUARED_HINGE if self.squared else HINGE

    def pointwise(self, margins: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """max(0, 1 - ym), or its square, shape (batch,)."""
        hinge = (1 - labels * margins).clamp(min=0)
        return hinge.square() if self.squared else hinge
