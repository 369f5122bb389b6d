"""A kernel that counts: what was lost of it shows.

    for sample i:  read w_j, then w_j <- w_j + eta    for the coordinates j that another kernel touches for sample i

Weights do not tell what was lost of them; from zero, and with a step of 1, these are the numbers of additions that were
not. Counters are exact up to 2^24 in float32 and 2^53 in float64.
"""

from typing import ClassVar, NamedTuple

import numpy as np
import torch

from harness.kernels.base import Kernel, define
from harness.kernels.native import prefetch
from harness.kernels.numbers import add, load


class CountingKernel(Kernel):
    """Adds the learning rate to every parameter that a sample touches.

    Args:
        indptr: int64, shape (samples + 1,): where in `indices` the coordinates of each sample begin.
        indices: int32, shape (touched,): coordinates, ascending within a sample.
        num_coordinates: of the model.
        block: parameters in a coordinate.
    """

    name: ClassVar[str] = "counting"

    def __init__(self, indptr: torch.Tensor, indices: torch.Tensor, num_coordinates: int, block: int = 1) -> None:
        self._indptr, self._indices, self._num_coordinates, self.block = indptr, indices, num_coordinates, block

    @property
    def indptr(self) -> torch.Tensor:
        """As given."""
        return self._indptr

    @property
    def indices(self) -> torch.Tensor:
        """As given."""
        return self._indices

    @property
    def num_coordinates(self) -> int:
        """As given."""
        return self._num_coordinates

    def native(self) -> "_Counting":
        """Views of the rows."""
        return _Counting(self._indptr.numpy(), self._indices.numpy(), self.block)


class _Counting(NamedTuple):
    indptr: np.ndarray
    indices: np.ndarray
    block: int


def _ask(kernel, weights, sample):
    for position in range(kernel.indptr[sample], kernel.indptr[sample + 1], 16):
        prefetch(kernel.indices, position)


def _look(kernel, weights, sample, step):
    total = 0.0
    for position in range(kernel.indptr[sample], kernel.indptr[sample + 1]):
        first = np.uint32(kernel.indices[position]) * kernel.block
        for j in range(first, first + kernel.block):
            total += load(weights, j, step)
    return 1.0 if total >= 0.0 else 0.0  # counters are >= 0; a compiler does not know, and reads them all


def _count(kernel, weights, sample, slope, step, salt):
    for position in range(kernel.indptr[sample], kernel.indptr[sample + 1]):
        first = np.uint32(kernel.indices[position]) * kernel.block
        for j in range(first, first + kernel.block):
            add(weights, j, slope * step.learning_rate, step, salt)


define(_Counting, _ask, _look, _count)
