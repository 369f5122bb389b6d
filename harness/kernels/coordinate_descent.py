"""Coordinate descent on linear models with a regulariser, f(w) = 1/n sum_i l(x_i . w, y_i) + l2/2 |w|^2.

Both kernels keep one number per visited thing, and a vector that all visits share: dual descent visits samples and
shares the weights, primal descent visits features and shares the margins. A visit reads what its nonzeros touch of the
shared vector, and adds a multiple of its row (or column) to it.

Dual (Hsieh, Chang, Lin, Keerthi, Sundararajan, ICML 2008, Algorithm 1; logistic: Yu, Huang, Lin, Machine Learning
2011), scaled as SDCA (Shalev-Shwartz and Zhang, JMLR 2013): w = 1/(l2 n) sum_i a_i y_i x_i, and a visit
of sample i with q = |x_i|^2 / (l2 n) and t = y_i x_i . w moves a = a_i to the maximum of the dual along it:

    hinge          a + (1 - t) / q, within [0, 1]
    squared hinge  (1 - t + q a) / (1/2 + q), at least 0
    logistic       the root b of  log(b / (1 - b)) + t + q (b - a) = 0
    squares        (a_i is what multiplies x_i)  (y_i - x_i . w + q a) / (1 + q)

Primal (Shalev-Shwartz and Tewari, JMLR 2011, Algorithm 1, with a bound per coordinate, and the regulariser smooth): a
visit of feature j with g = 1/n sum_i l'(z_i, y_i) x_ij + l2 w_j, z = X w, moves w_j by -g / L_j, where
L_j = c/n sum_i x_ij^2 + l2 and c bounds l''.
"""

import math
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from numba import njit

from harness.kernels.base import define
from harness.kernels.native import INLINE
from harness.kernels.numbers import add
from harness.kernels.on_rows import OnRows
from harness.kernels.sparse_linear import (
    HINGE,
    LOGISTIC,
    SQUARED_HINGE,
    SQUARES,
    SparseLinearKernel,
    ask_for_row,
    row_of,
    slope_of,
)
from harness.kernels.sparse_rows import dot

CURVATURE = {LOGISTIC: 0.25, SQUARES: 1.0, SQUARED_HINGE: 2.0}  # bounds of l''; the hinge has none
_TINY = 1e-300  # instead of the norm of an empty row


class DualKernel(OnRows):
    """Dual coordinate descent; its model is the weights. The step is a share of the way, 1 for all of it.

    Args:
        linear: the data, the loss and the regulariser, l2 > 0.
        dual: a, shape (samples,), written.
    """

    name: ClassVar[str] = "dual_coordinate_descent"
    adds_beyond_model: ClassVar[bool] = True  # to `dual`
    relative_cost = 1.1

    def __init__(self, linear: SparseLinearKernel, dual: torch.Tensor) -> None:
        self.linear, self.rows, self.dual = linear, linear.rows, dual
        self.relative_sample_cost = 60.0 if linear.loss_code == LOGISTIC else 0.0  # Newton steps to a root

    def native(self) -> "_Dual":
        """Views of the rows and of the dual variables."""
        linear, rows = self.linear, self.rows
        parts = (rows.indptr, rows.indices, rows.values, linear.labels, rows.squared_norms, self.dual)
        return _Dual(*(part.numpy() for part in parts), linear.loss_code, 1.0 / (linear.l2 * len(rows)))


class PrimalKernel(OnRows):
    """Primal coordinate descent; its samples are features, its model is the margins.

    Args:
        linear: the data, a smooth loss and the regulariser.
        weights: w, shape (features,), written.
    """

    name: ClassVar[str] = "coordinate_descent"
    rows_name: ClassVar[str] = "columns"
    model_name: ClassVar[str] = "margins"
    adds_beyond_model: ClassVar[bool] = True  # to `weights`
    relative_cost = 2.2

    def __init__(self, linear: SparseLinearKernel, weights: torch.Tensor) -> None:
        self.linear, self.rows, self.weights = linear, linear.rows.columns, weights

    def native(self) -> "_Primal":
        """Views of the columns and of the weights."""
        linear, columns = self.linear, self.rows
        parts = (columns.indptr, columns.indices, columns.values, linear.labels, columns.squared_norms, self.weights)
        code = linear.loss_code
        return _Primal(*(part.numpy() for part in parts), code, CURVATURE[code], float(linear.l2))


class _Dual(NamedTuple):
    indptr: np.ndarray
    indices: np.ndarray
    values: np.ndarray
    labels: np.ndarray
    squared_norms: np.ndarray
    dual: np.ndarray
    loss_code: int
    scale: float  # 1 / (l2 n)


class _Primal(NamedTuple):
    indptr: np.ndarray
    indices: np.ndarray
    values: np.ndarray
    labels: np.ndarray
    squared_norms: np.ndarray
    weights: np.ndarray
    loss_code: int
    curvature: float
    l2: float


@njit(nogil=True)
def logistic_dual(old: float, margin: float, quadratic: float) -> float:
    """The root b of log(b / (1 - b)) + margin + quadratic * (b - old) = 0, in (0, 1).

    Newton steps on s = log(b / (1 - b)), kept in the interval in which the root is known to be, which each step cuts.
    """
    low, high = -margin - quadratic * (1.0 - old), -margin + quadratic * old
    s = min(max(-margin, low), high)
    for _ in range(60):
        b = 1.0 / (1.0 + math.exp(-s)) if s > -700.0 else 0.0
        error = s + margin + quadratic * (b - old)
        if error > 0.0:
            high = s
        else:
            low = s
        further = s - error / (1.0 + quadratic * b * (1.0 - b))
        if not low < further < high:
            further = 0.5 * (low + high)
        if abs(further - s) <= 1e-15 * (1.0 + abs(s)):
            break
        s = further
    return 1.0 / (1.0 + math.exp(-s)) if s > -700.0 else 0.0


@njit(**INLINE)
def _best_dual(loss_code: int, old: float, margin: float, label: float, quadratic: float) -> float:
    if loss_code == HINGE:
        return min(max(old + (1.0 - label * margin) / max(quadratic, _TINY), 0.0), 1.0)
    if loss_code == SQUARED_HINGE:
        return max((1.0 - label * margin + quadratic * old) / (0.5 + quadratic), 0.0)
    if loss_code == LOGISTIC:
        return logistic_dual(old, label * margin, quadratic)
    return (label - margin + quadratic * old) / (1.0 + quadratic)


def _dual_change(kernel, weights, sample, step):
    start, stop = row_of(kernel.indptr, sample)
    margin = np.float64(dot(kernel.indices, kernel.values, weights, start, stop, step))
    old = np.float64(kernel.dual[sample])
    quadratic = kernel.squared_norms[sample] * kernel.scale
    best = _best_dual(kernel.loss_code, old, margin, np.float64(kernel.labels[sample]), quadratic)
    return step.learning_rate * (best - old)


def _ascend(kernel, weights, sample, slope, step, salt):
    number = kernel.values.dtype.type
    start, stop = row_of(kernel.indptr, sample)
    add(kernel.dual, np.uint32(sample), number(slope), step, salt)
    signed = slope if kernel.loss_code == SQUARES else slope * kernel.labels[sample]
    scale = number(signed * kernel.scale)
    for position in range(start, stop):
        add(weights, np.uint32(kernel.indices[position]), scale * kernel.values[position], step, salt)


def _primal_change(kernel, weights, sample, step):  # margins and a feature are what it calls weights and a sample
    start, stop = row_of(kernel.indptr, sample)
    gradient = 0.0
    for position in range(start, stop):
        i = np.uint32(kernel.indices[position])
        gradient += slope_of(kernel.loss_code, weights[i], kernel.labels[i]) * kernel.values[position]
    gradient = gradient / len(kernel.labels) + kernel.l2 * kernel.weights[sample]
    bound = kernel.curvature / len(kernel.labels) * kernel.squared_norms[sample] + kernel.l2
    return -step.learning_rate * gradient / max(bound, _TINY)


def _move(kernel, weights, sample, slope, step, salt):
    change = kernel.values.dtype.type(slope)
    start, stop = row_of(kernel.indptr, sample)
    add(kernel.weights, np.uint32(sample), change, step, salt)
    for position in range(start, stop):
        add(weights, np.uint32(kernel.indices[position]), change * kernel.values[position], step, salt)


define(_Dual, ask_for_row, _dual_change, _ascend)
define(_Primal, ask_for_row, _primal_change, _move)
