"""A kernel that counts: every update adds 1 to the coordinates its sample touches, whatever was lost shows."""

from typing import ClassVar, NamedTuple

import numpy as np
import torch
from numba.extending import overload

from harness.kernels.base import Kernel, prefetch_sample, read, write
from harness.kernels.numbers import add


class CountKernel(Kernel):
    """Sample i adds 1 to each of `touched[i]`."""

    name: ClassVar[str] = "count"

    def __init__(self, touched, num_coordinates):
        self._indptr = torch.tensor([0, *np.cumsum([len(row) for row in touched])])
        self._indices = torch.tensor([j for row in touched for j in row], dtype=torch.int32)
        self._num_coordinates = num_coordinates

    @property
    def indptr(self):
        return self._indptr

    @property
    def indices(self):
        return self._indices

    @property
    def num_coordinates(self):
        return self._num_coordinates

    def native(self):
        return Touched(self._indptr.numpy(), self._indices.numpy())


class Touched(NamedTuple):
    indptr: np.ndarray
    indices: np.ndarray


def is_counting(kernel):
    return getattr(kernel, "instance_class", None) is Touched


@overload(prefetch_sample)
def _prefetch(kernel, weights, sample):
    return (lambda kernel, weights, sample: None) if is_counting(kernel) else None


@overload(read)
def _read(kernel, weights, sample, step):
    return (lambda kernel, weights, sample, step: 1.0) if is_counting(kernel) else None


@overload(write)
def _write(kernel, weights, sample, slope, step, salt):
    if not is_counting(kernel):
        return None

    def count(kernel, weights, sample, slope, step, salt):
        for position in range(kernel.indptr[sample], kernel.indptr[sample + 1]):
            add(weights, kernel.indices[position], slope * step.learning_rate, step, salt)

    return count
