"""Samples as sparse rows."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numba import njit

from harness.kernels.native import INLINE
from harness.kernels.numbers import Step, load

_NUMBERS = Step(0.0, False, 0.0)  # how floats are read


@dataclass(frozen=True)
class SparseRows:
    """Samples in compressed sparse row format; indices ascend within a row, so that each occurs once.

    Args:
        indptr: int64, shape (samples + 1,): the nonzeros of row i are indptr[i] .. indptr[i + 1] - 1.
        indices: int32, shape (nonzeros,): features.
        values: float32 or float64, shape (nonzeros,).
        num_features: length of the model.
    """

    indptr: torch.Tensor
    indices: torch.Tensor
    values: torch.Tensor
    num_features: int

    def __len__(self) -> int:
        return len(self.indptr) - 1

    def gather(self, samples: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The rows of a batch, back to back.

        Args:
            samples: integers, shape (batch,).

        Returns:
            indices int32 (n,), values (n,), and offsets int32 (batch,), where each row begins.
        """
        starts = self.indptr[samples]  # (batch,)
        lengths = self.indptr[samples + 1] - starts  # (batch,)
        offsets = lengths.cumsum(0) - lengths  # (batch,)
        positions = torch.repeat_interleave(starts - offsets, lengths)  # (n,)
        positions += torch.arange(len(positions), device=positions.device)
        return self.indices[positions], self.values[positions], offsets.int()

    def part(self, start: int, stop: int) -> "SparseRows":
        """Rows start .. stop - 1, sharing memory."""
        indptr = self.indptr[start : stop + 1]
        nonzeros = slice(int(indptr[0]), int(indptr[-1]))
        return SparseRows(indptr - indptr[0], self.indices[nonzeros], self.values[nonzeros], self.num_features)

    def renumbered(self, places: torch.Tensor, num_features: int) -> "SparseRows":
        """The same rows with feature j as places[j], ascending within each row.

        Args:
            places: int64, shape (features,), different numbers below `num_features`.
        """
        indices, values = places.to(torch.int32)[self.indices], self.values
        if not bool((places.diff() > 0).all()):
            values = values.clone()
            _sort_rows(self.indptr.numpy(), indices.numpy(), values.numpy())
        return SparseRows(self.indptr, indices, values, num_features)

    def normalized(self) -> "SparseRows":
        """Each row divided by its Euclidean norm; empty rows stay."""
        lengths = self.indptr.diff()
        row = torch.repeat_interleave(torch.arange(len(self)), lengths)  # (nonzeros,)
        norms = self.values.new_zeros(len(self)).index_add_(0, row, self.values**2).sqrt_()
        return replace(self, values=self.values / norms.clamp_min(torch.finfo(norms.dtype).tiny)[row])

    def rarity(self) -> torch.Tensor:
        """Samples / samples that have the feature, shape (num_features,), of the dtype of `values`; 0 if none has."""
        counts = np.bincount(self.indices.numpy(), minlength=self.num_features)
        rarity = np.divide(len(self), counts, out=np.zeros(self.num_features), where=counts > 0)
        return torch.from_numpy(rarity).to(self.values.dtype)

    @cached_property
    def squared_norms(self) -> torch.Tensor:
        """|x_i|^2, shape (samples,), of the dtype of `values`."""
        row = np.repeat(np.arange(len(self)), np.diff(self.indptr.numpy()))
        squares = np.bincount(row, self.values.numpy().astype(np.float64) ** 2, minlength=len(self))
        return torch.from_numpy(squares).to(self.values.dtype)

    @cached_property
    def columns(self) -> "SparseRows":
        """The transpose: the samples that have each feature."""
        row = np.repeat(np.arange(len(self), dtype=np.int32), np.diff(self.indptr.numpy()))
        order = np.argsort(self.indices.numpy(), kind="stable")
        counts = np.bincount(self.indices.numpy(), minlength=self.num_features)
        parts = (np.concatenate([[0], counts.cumsum()]), row[order], self.values.numpy()[order])
        return SparseRows(*(torch.from_numpy(part) for part in parts), len(self))

    def to(self, dtype: torch.dtype) -> "SparseRows":
        """The same rows with values of another precision."""
        return replace(self, values=self.values.to(dtype))

    def margins(self, weights: torch.Tensor) -> torch.Tensor:
        """x_i . w of all rows, natively, shape (samples,)."""
        out = torch.empty(len(self), dtype=self.values.dtype)
        views = (part.numpy() for part in (self.indptr, self.indices, self.values, weights, out))
        _margins(*views)
        return out


@njit(**INLINE)
def dot(indices: np.ndarray, values: np.ndarray, weights: Any, start: int, stop: int, step: Step) -> float:
    """x . w of the row that lies from `start` to `stop`, both uint64, in four sums that do not wait for each other."""
    zero = values.dtype.type(0)
    first, second, third, fourth = zero, zero, zero, zero
    whole = start + (stop - start) // np.uint64(4) * np.uint64(4)
    for p in range(start, whole, np.uint64(4)):
        q, r, s = p + np.uint64(1), p + np.uint64(2), p + np.uint64(3)
        first += values[p] * load(weights, np.uint32(indices[p]), step)
        second += values[q] * load(weights, np.uint32(indices[q]), step)
        third += values[r] * load(weights, np.uint32(indices[r]), step)
        fourth += values[s] * load(weights, np.uint32(indices[s]), step)
    for p in range(whole, stop):
        first += values[p] * load(weights, np.uint32(indices[p]), step)
    return (first + second) + (third + fourth)


@njit(nogil=True, cache=True)
def _margins(indptr: np.ndarray, indices: np.ndarray, values: np.ndarray, weights: np.ndarray, out: np.ndarray) -> None:
    for row in range(len(out)):
        start, stop = np.uint64(indptr[row]), np.uint64(indptr[row + 1])
        out[row] = dot(indices, values, weights, start, stop, _NUMBERS)


@njit(nogil=True, cache=True)
def _sort_rows(indptr: np.ndarray, indices: np.ndarray, values: np.ndarray) -> None:
    """Sort each row by its indices, in place."""
    for row in range(len(indptr) - 1):
        start, stop = indptr[row], indptr[row + 1]
        order = np.argsort(indices[start:stop])
        indices[start:stop] = indices[start:stop][order]
        values[start:stop] = values[start:stop][order]
