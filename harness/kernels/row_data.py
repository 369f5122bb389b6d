"""The rows of a kernel as arrays that can be moved: to other memory, and into another order."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numba import njit

from harness.kernels.native import LINE_BYTES, prefetch

_AHEAD = 4  # rows between the prefetch of one and its copy


@dataclass(frozen=True)
class RowData:
    """What a kernel reads of its samples, in compressed rows.

    Args:
        indptr: int64, shape (samples + 1,): where the nonzeros of each row begin.
        by_nonzero: by name, arrays with a number for every nonzero.
        by_sample: by name, arrays with a number for every row.
    """

    indptr: torch.Tensor
    by_nonzero: Mapping[str, torch.Tensor]
    by_sample: Mapping[str, torch.Tensor]

    def __len__(self) -> int:
        return len(self.indptr) - 1

    @property
    def sample_bytes(self) -> int:
        """Read of every row, however many nonzeros it has."""
        return self.indptr.itemsize + sum(tensor.itemsize for tensor in self.by_sample.values())

    @property
    def nonzero_bytes(self) -> int:
        """Read for every nonzero."""
        return sum(tensor.itemsize for tensor in self.by_nonzero.values())

    def part(self, first: int, stop: int) -> "RowData":
        """Rows first .. stop - 1, sharing all memory but that of `indptr`."""
        begin, end = int(self.indptr[first]), int(self.indptr[stop])
        return RowData(
            self.indptr[first : stop + 1] - begin,
            {name: tensor[begin:end] for name, tensor in self.by_nonzero.items()},
            {name: tensor[first:stop] for name, tensor in self.by_sample.items()},
        )

    def apply(self, function: Callable[[str, torch.Tensor], torch.Tensor]) -> "RowData":
        """What the function makes of each array, given its name."""
        return RowData(
            function("indptr", self.indptr),
            {name: function(name, tensor) for name, tensor in self.by_nonzero.items()},
            {name: function(name, tensor) for name, tensor in self.by_sample.items()},
        )

    def nonzeros_before(self, rows: torch.Tensor, count: int) -> int:
        """Nonzeros of the first `count` of `rows`."""
        return int(_count(self.indptr.numpy(), rows.numpy(), count))

    def gather_into(self, target: "RowData", rows: torch.Tensor, begin: int, end: int, first: int) -> None:
        """Copy rows rows[begin] .. rows[end - 1] to where they belong in `target` if it is to hold `rows`, natively.

        Args:
            target: as long as this; others may fill other parts of it at the same time.
            rows: a permutation of some rows that follow each other, int32, shape (n,).
            first: of these rows.
        """
        position = int(self.indptr[first]) + self.nonzeros_before(rows, begin)
        starts, order = self.indptr.numpy(), rows.numpy()[begin:end]
        _gather_indptr(starts, order, position, target.indptr.numpy()[first + begin : first + end + 1])
        for name, tensor in self.by_nonzero.items():
            _gather_nonzeros(starts, order, tensor.numpy(), position, target.by_nonzero[name].numpy())
        for name, tensor in self.by_sample.items():
            np.take(tensor.numpy(), order, out=target.by_sample[name].numpy()[first + begin : first + end], mode="clip")


@njit(nogil=True, cache=True)
def _count(indptr: np.ndarray, rows: np.ndarray, count: int) -> int:
    total = 0
    for position in range(count):
        total += indptr[rows[position] + 1] - indptr[rows[position]]
    return total


@njit(nogil=True, cache=True)
def _gather_indptr(indptr: np.ndarray, rows: np.ndarray, position: int, out: np.ndarray) -> None:
    """Where each row will begin, and the last one end, which is where the next worker's part begins."""
    out[0] = position
    for i in range(len(rows)):
        position += indptr[rows[i] + 1] - indptr[rows[i]]
        out[i + 1] = position


@njit(nogil=True, cache=True)
def _gather_nonzeros(indptr: np.ndarray, rows: np.ndarray, array: np.ndarray, position: int, out: np.ndarray) -> None:
    line = LINE_BYTES // array.itemsize
    for i in range(len(rows)):
        ahead = rows[min(i + _AHEAD, len(rows) - 1)]
        for nonzero in range(indptr[ahead], indptr[ahead + 1], line):
            prefetch(array, np.uint64(nonzero))
        for nonzero in range(indptr[rows[i]], indptr[rows[i] + 1]):
            out[position] = array[nonzero]
            position += 1
