"""Per-sample SGD of a linear model on sparse rows.

    for sample i:  m = x_i . w;  w_j <- w_j - eta * (l'(m, y_i) * x_ij + l2 * r_j * w_j)  for the nonzeros j of x_i

This is the update of Hogwild! (Niu, Recht, Re, Wright, NIPS 2011, section 2, with the regulariser of equation 3) for
the losses logistic, hinge, squared hinge and squares: r_j = samples / samples that have feature j makes the regulariser
right in the mean though an update touches nothing but the nonzeros of its sample.
"""

import copy
import math
from functools import cached_property
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from numba import njit

from harness.kernels.base import define
from harness.kernels.native import INLINE, LINE_BYTES, prefetch
from harness.kernels.numbers import add, load
from harness.kernels.on_rows import OnRows
from harness.kernels.row_data import RowData
from harness.kernels.sparse_rows import SparseRows, dot

LOGISTIC, HINGE, SQUARES, SQUARED_HINGE = range(4)  # loss codes


class SparseLinearKernel(OnRows):
    """Per-sample SGD of a linear model on sparse rows.

    Args:
        rows: the training set.
        labels: shape (samples,), the dtype of `rows.values`; -1 or +1, or any number for SQUARES.
        loss_code: LOGISTIC, HINGE, SQUARES or SQUARED_HINGE.
        l2: factor of |w|^2 / 2 in the objective, >= 0.
    """

    name: ClassVar[str] = "sgd"

    def __init__(self, rows: SparseRows, labels: torch.Tensor, loss_code: int, l2: float = 0.0) -> None:
        self.rows, self.labels, self.loss_code, self.l2 = rows, labels, loss_code, l2

    @cached_property
    def rarity(self) -> torch.Tensor:
        """Samples / samples that have the feature, shape (features,)."""
        return self.rows.rarity()

    @property
    def row_data(self) -> RowData:
        """Features and values, and labels."""
        rows = self.rows
        return RowData(rows.indptr, {"indices": rows.indices, "values": rows.values}, {"labels": self.labels})

    def over(self, data: RowData) -> "SparseLinearKernel":
        """With the rarities of its own rows."""
        other, values = copy.copy(self), data.by_nonzero
        other.rarity = self.rarity
        other.rows = SparseRows(data.indptr, values["indices"], values["values"], self.rows.num_features)
        other.labels = data.by_sample["labels"]
        return other

    def renumbered(self, places: torch.Tensor, num_coordinates: int) -> "SparseLinearKernel":
        """Rows are sorted anew where the places do not ascend, and then sum in another order."""
        other = copy.copy(self)
        other.rows = self.rows.renumbered(places, num_coordinates)
        other.rarity = self.rarity.new_zeros(num_coordinates)
        other.rarity[places] = self.rarity
        return other

    def native(self) -> "_Linear":
        """Views of the rows."""
        rows = self.rows
        rarity = self.rarity if self.l2 else rows.values[:0]
        views = (part.numpy() for part in (rows.indptr, rows.indices, rows.values, self.labels, rarity))
        return _Linear(*views, self.loss_code, float(self.l2))


class _Linear(NamedTuple):
    indptr: np.ndarray
    indices: np.ndarray
    values: np.ndarray
    labels: np.ndarray
    rarity: np.ndarray
    loss_code: int
    l2: float


@njit(**INLINE)
def slope_of(loss_code: int, margin: float, label: float) -> float:
    """Derivative of the loss with respect to the margin m = x . w.

    logistic log(1 + exp(-ym)) · hinge max(0, 1 - ym), whose subgradient at the kink is -y · its
    square · squares (m - y)^2 / 2.
    """
    if loss_code == LOGISTIC:
        return -label / (1.0 + math.exp(label * margin))
    if loss_code == HINGE:
        return -label if label * margin <= 1.0 else 0.0
    if loss_code == SQUARED_HINGE:
        return -2.0 * label * max(1.0 - label * margin, 0.0)
    return margin - label


@njit(**INLINE)
def row_of(indptr: np.ndarray, sample: int) -> tuple[int, int]:
    """Where a row begins and ends; unsigned, which spares the test for negative positions."""
    return np.uint64(indptr[sample]), np.uint64(indptr[sample + 1])


@njit(**INLINE)
def prefetch_row(indptr: np.ndarray, indices: np.ndarray, values: np.ndarray, sample: int) -> None:
    """Ask for the cache lines of a row, without waiting: rows are visited in random order."""
    line = np.uint64(LINE_BYTES // values.itemsize)
    start, stop = row_of(indptr, sample)
    for position in range(start, stop, line):
        prefetch(indices, position)
        prefetch(values, position)


def ask_for_row(kernel, weights, sample):
    """The `prefetch_sample` of any kernel whose samples are rows."""
    prefetch_row(kernel.indptr, kernel.indices, kernel.values, sample)


def slope_of_row(kernel, weights, sample, step):
    """The `read` of any kernel that needs the slope at its model."""
    start, stop = row_of(kernel.indptr, sample)
    margin = dot(kernel.indices, kernel.values, weights, start, stop, step)
    return slope_of(kernel.loss_code, margin, kernel.labels[sample])


def _descend(kernel, weights, sample, slope, step, salt):
    number = kernel.values.dtype.type
    start, stop = row_of(kernel.indptr, sample)
    scale = number(step.learning_rate * slope)
    if kernel.l2 == 0.0:
        for position in range(start, stop):
            add(weights, np.uint32(kernel.indices[position]), -(scale * kernel.values[position]), step, salt)
        return
    decay = number(step.learning_rate * kernel.l2)
    for position in range(start, stop):
        j = np.uint32(kernel.indices[position])
        shrinkage = decay * kernel.rarity[j] * load(weights, j, step)
        add(weights, j, -(scale * kernel.values[position] + shrinkage), step, salt)


define(_Linear, ask_for_row, slope_of_row, _descend)
