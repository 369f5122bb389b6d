"""Stochastic gradient Langevin dynamics of a linear model on sparse rows.

    for sample i:  w_j <- w_j - eta * (l'(x_i . w, y_i) * x_ij + l2 * r_j * w_j) + N(0, 2 eta T r_j / n)

for the nonzeros j of x_i: Welling and Teh (ICML 2011, equation 4) with their epsilon = 2 eta / n and one sample per
step, sampling exp(-n f(w) / T). The noise is sparse as the gradient is: a coordinate gets it with probability 1 / r_j,
r_j = samples / samples that have feature j, and r_j times as much variance, so that its covariance is the paper's in
the mean over samples, which is all that the limit of small steps depends on. A feature that no sample has stays as it
is. Random numbers are a hash of the update and the coordinate.
"""

import copy
import math
from typing import ClassVar, NamedTuple

import numpy as np
import torch

from harness.kernels.base import define
from harness.kernels.numbers import add, hashed, load, normal
from harness.kernels.on_rows import OnRows
from harness.kernels.row_data import RowData
from harness.kernels.sparse_linear import SparseLinearKernel, ask_for_row, row_of, slope_of_row


class LangevinKernel(OnRows):
    """Steps of SGLD.

    Args:
        linear: the data, the loss and the regulariser.
        temperature: T, >= 0; 1 samples the posterior whose negative logarithm is n f.
    """

    name: ClassVar[str] = "sgld"
    relative_cost = 9.6  # a logarithm and a cosine for each

    def __init__(self, linear: SparseLinearKernel, temperature: float) -> None:
        self.linear, self.rows = linear, linear.rows
        self.variance = 2.0 * temperature / len(linear.rows)

    @property
    def row_data(self) -> RowData:
        """Those of the linear kernel."""
        return self.linear.row_data

    def over(self, data: RowData) -> "LangevinKernel":
        """With the rarities and the noise of its own rows."""
        return self._by(self.linear.over(data))

    def renumbered(self, places: torch.Tensor, num_coordinates: int) -> "LangevinKernel":
        """Its random numbers are those of the new places."""
        return self._by(self.linear.renumbered(places, num_coordinates))

    def native(self) -> "_Noisy":
        """Views of the rows."""
        linear = self.linear
        parts = (linear.indptr, linear.indices, linear.rows.values, linear.labels, linear.rarity)
        return _Noisy(*(part.numpy() for part in parts), linear.loss_code, float(linear.l2), self.variance)

    def _by(self, linear: SparseLinearKernel) -> "LangevinKernel":
        other = copy.copy(self)
        other.linear, other.rows = linear, linear.rows
        return other


class _Noisy(NamedTuple):
    indptr: np.ndarray
    indices: np.ndarray
    values: np.ndarray
    labels: np.ndarray
    rarity: np.ndarray
    loss_code: int
    l2: float
    variance: float  # of the noise, per step eta and rarity: 2 T / n


def _diffuse(kernel, weights, sample, slope, step, salt):
    start, stop = row_of(kernel.indptr, sample)
    variance = step.learning_rate * kernel.variance
    for position in range(start, stop):
        j = np.uint32(kernel.indices[position])
        rarity = kernel.rarity[j]
        gradient = slope * kernel.values[position] + kernel.l2 * rarity * load(weights, j, step)
        noise = math.sqrt(variance * rarity) * normal(hashed(salt, j))
        add(weights, j, kernel.values.dtype.type(noise - step.learning_rate * gradient), step, salt)


define(_Noisy, ask_for_row, slope_of_row, _diffuse)
