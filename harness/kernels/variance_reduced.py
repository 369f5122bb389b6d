"""Variance reduced gradients of a linear model on sparse rows: a pass that computes a full gradient, then steps by it.

    at the snapshot w~:  s~_i = l'(x_i . w~, y_i)  and  mu = 1/n sum_i s~_i x_i
    for sample i:        w_j <- w_j - eta * ((l'(x_i . w, y_i) - s~_i) * x_ij + r_j * (mu_j + l2 * w_j))

for the nonzeros j of x_i: SVRG (Johnson and Zhang, NIPS 2013, Figure 1) in the sparse form of KroMagnon (Mania, Pan,
Papailiopoulos, Recht, Ramchandran, Jordan, SIAM J. Optim. 2017) and ASAGA (Leblond, Pedregosa,
Lacoste-Julien, AISTATS 2017). r_j = samples / samples that have feature j makes the dense part right in
the mean though an update touches nothing but the nonzeros of its sample. One number per sample, s~_i, is kept of the
snapshot, so that a step costs one dot product. The regulariser is taken at w itself.
"""

from typing import ClassVar, NamedTuple

import numpy as np
import torch

from harness.kernels.base import define
from harness.kernels.numbers import add, load
from harness.kernels.on_rows import OnRows
from harness.kernels.sparse_linear import SparseLinearKernel, ask_for_row, row_of, slope_of
from harness.kernels.sparse_rows import dot


class FullGradientKernel(OnRows):
    """Adds learning_rate * s~_i x_i to its model, which is a gradient, and keeps s~_i.

    Args:
        linear: the data and the loss.
        snapshot: w~, shape (features,); not changed meanwhile.
        slopes: s~, shape (samples,), written.
    """

    name: ClassVar[str] = "full_gradient"
    model_name: ClassVar[str] = "part of the full gradient"

    def __init__(self, linear: SparseLinearKernel, snapshot: torch.Tensor, slopes: torch.Tensor) -> None:
        self.linear, self.rows, self.snapshot, self.slopes = linear, linear.rows, snapshot, slopes

    def native(self) -> "_Full":
        """Views of the rows and of the snapshot."""
        linear = self.linear
        parts = (linear.indptr, linear.indices, linear.rows.values, linear.labels, self.snapshot, self.slopes)
        return _Full(*(part.numpy() for part in parts), linear.loss_code)


class VarianceReducedKernel(OnRows):
    """Steps of SVRG.

    Args:
        linear: the data, the loss and the regulariser.
        gradient: mu, of the losses alone, shape (features,).
        slopes: s~, shape (samples,).
    """

    name: ClassVar[str] = "svrg"
    relative_cost = 1.1
    relative_sample_cost = 7.0  # its slope at the snapshot

    def __init__(self, linear: SparseLinearKernel, gradient: torch.Tensor, slopes: torch.Tensor) -> None:
        self.linear, self.rows, self.gradient, self.slopes = linear, linear.rows, gradient, slopes

    def native(self) -> "_Reduced":
        """Views of the rows and of what is known of the snapshot."""
        linear = self.linear
        parts = (linear.indptr, linear.indices, linear.rows.values, linear.labels, linear.rarity)
        views = (part.numpy() for part in (*parts, self.gradient, self.slopes))
        return _Reduced(*views, linear.loss_code, float(linear.l2))


class _Full(NamedTuple):
    indptr: np.ndarray
    indices: np.ndarray
    values: np.ndarray
    labels: np.ndarray
    snapshot: np.ndarray
    slopes: np.ndarray
    loss_code: int


class _Reduced(NamedTuple):
    indptr: np.ndarray
    indices: np.ndarray
    values: np.ndarray
    labels: np.ndarray
    rarity: np.ndarray
    gradient: np.ndarray
    slopes: np.ndarray
    loss_code: int
    l2: float


def _slope_at_snapshot(kernel, weights, sample, step):
    start, stop = row_of(kernel.indptr, sample)
    margin = dot(kernel.indices, kernel.values, kernel.snapshot, start, stop, step)
    return slope_of(kernel.loss_code, margin, kernel.labels[sample])


def _gather(kernel, weights, sample, slope, step, salt):
    kernel.slopes[sample] = slope
    scale = kernel.values.dtype.type(step.learning_rate * slope)
    start, stop = row_of(kernel.indptr, sample)
    for position in range(start, stop):
        add(weights, np.uint32(kernel.indices[position]), scale * kernel.values[position], step, salt)


def _difference(kernel, weights, sample, step):
    start, stop = row_of(kernel.indptr, sample)
    margin = dot(kernel.indices, kernel.values, weights, start, stop, step)
    return slope_of(kernel.loss_code, margin, kernel.labels[sample]) - kernel.slopes[sample]


def _descend(kernel, weights, sample, slope, step, salt):
    number = kernel.values.dtype.type
    scale, rate, l2 = number(step.learning_rate * slope), number(step.learning_rate), number(kernel.l2)
    start, stop = row_of(kernel.indptr, sample)
    for position in range(start, stop):
        j = np.uint32(kernel.indices[position])
        dense = kernel.rarity[j] * (kernel.gradient[j] + l2 * load(weights, j, step))
        add(weights, j, -(scale * kernel.values[position] + rate * dense), step, salt)


define(_Full, ask_for_row, _slope_at_snapshot, _gather)
define(_Reduced, ask_for_row, _difference, _descend)
