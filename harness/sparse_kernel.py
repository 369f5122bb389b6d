"""Per-sample SGD of a linear model on sparse rows, compiled.

    for sample i:  m = x_i . w;  w_j <- w_j - eta * l'(m, y_i) * x_ij  for the nonzeros j of x_i

This is the update of Hogwild! (Niu, Recht, Re, Wright, NIPS 2011, section 2) for the losses logistic, hinge and
squares, and a memory-bound loop: rows are visited in random order, so the row a few samples ahead is prefetched, and
indices are unsigned, which spares numba's test for negative ones. A chunk costs what its nonzeros cost.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from harness.kernels import Kernel

LOGISTIC, HINGE, SQUARES = 0, 1, 2  # loss codes

_AHEAD = 4  # samples between the prefetch of a row and its use
_LINE_BYTES = 64  # of a cache line


@dataclass(frozen=True)
class SparseRows:
    """Samples in compressed sparse row format; an index occurs at most once in a row.

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
        positions += torch.arange(len(positions))
        return self.indices[positions], self.values[positions], offsets.int()

    def part(self, start: int, stop: int) -> "SparseRows":
        """Rows start .. stop - 1, sharing memory."""
        indptr = self.indptr[start : stop + 1]
        nonzeros = slice(int(indptr[0]), int(indptr[-1]))
        return SparseRows(indptr - indptr[0], self.indices[nonzeros], self.values[nonzeros], self.num_features)

    def normalized(self) -> "SparseRows":
        """Each row divided by its Euclidean norm; empty rows stay."""
        lengths = self.indptr.diff()
        row = torch.repeat_interleave(torch.arange(len(self)), lengths)  # (nonzeros,)
        norms = self.values.new_zeros(len(self)).index_add_(0, row, self.values**2).sqrt_()
        return replace(self, values=self.values / norms.clamp_min(torch.finfo(norms.dtype).tiny)[row])

    def to(self, dtype: torch.dtype) -> "SparseRows":
        """The same rows with values of another precision."""
        return replace(self, values=self.values.to(dtype))

    def margins(self, weights: torch.Tensor) -> torch.Tensor:
        """x_i . w of all rows, natively, shape (samples,)."""
        out = torch.empty(len(self), dtype=self.values.dtype)
        _margins(self.indptr.numpy(), self.indices.numpy(), self.values.numpy(), weights.numpy(), out.numpy())
        return out


class SparseLinearKernel(Kernel):
    """Per-sample SGD of a linear model on sparse rows.

    Args:
        rows: the training set.
        labels: shape (samples,), the dtype of `rows.values`; -1 or +1, or any number for SQUARES.
        loss_code: LOGISTIC, HINGE or SQUARES.
    """

    def __init__(self, rows: SparseRows, labels: torch.Tensor, loss_code: int) -> None:
        self.rows, self.labels, self.loss_code = rows, labels, loss_code

    def __call__(self, model: torch.Tensor, samples: torch.Tensor, learning_rate: float) -> None:
        """Apply one update per sample, in order, to `model` (features,) in place."""
        assert model.shape == (self.rows.num_features,) and model.dtype == self.rows.values.dtype
        # Views of numpy last for one call: sharing a tensor with another process moves its storage.
        _sgd(
            self.rows.indptr.numpy(),
            self.rows.indices.numpy(),
            self.rows.values.numpy(),
            self.labels.numpy(),
            model.numpy(),
            samples.numpy(),
            float(learning_rate),
            self.loss_code,
        )

    def warm_up(self) -> None:
        """Compile, so that no clock sees it: the loop runs once, on a model of zeros that nobody sees."""
        model = torch.zeros(self.rows.num_features, dtype=self.rows.values.dtype)
        self(model, torch.zeros(1, dtype=torch.int32), 0.0)

    def nonzeros(self, samples: torch.Tensor) -> int:
        """Nonzeros of a chunk of samples, exactly: what the chunk costs."""
        return int((self.rows.indptr[samples + 1] - self.rows.indptr[samples]).sum())


@njit(nogil=True, cache=True)
def slope(loss_code: int, margin: float, label: float) -> float:
    """Derivative of the loss with respect to the margin m = x . w.

    logistic log(1 + exp(-ym)) · hinge max(0, 1 - ym), whose subgradient at the kink is -y · squares (m - y)^2 / 2.
    """
    if loss_code == LOGISTIC:
        return -label / (1.0 + math.exp(label * margin))
    if loss_code == HINGE:
        return -label if label * margin <= 1.0 else 0.0
    return margin - label


@intrinsic
def _prefetch(typing_context: Any, array: Any, position: Any) -> Any:
    """Ask for the cache line of array[position], without waiting for it."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        address = builder.bitcast(builder.gep(data, [arguments[1]]), cgutils.voidptr_t)
        number = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, number, number, number])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        read, keep_in_all_caches, data_cache = number(0), number(3), number(1)
        builder.call(function, [address, read, keep_in_all_caches, data_cache])
        return context.get_dummy_value()

    return types.void(array, position), generate


@njit(nogil=True, cache=True)
def _prefetch_row(indptr: np.ndarray, indices: np.ndarray, values: np.ndarray, sample: int) -> None:
    line = np.uint64(_LINE_BYTES // values.itemsize)
    for position in range(np.uint64(indptr[sample]), np.uint64(indptr[sample + 1]), line):
        _prefetch(indices, position)  # type: ignore[call-arg]
        _prefetch(values, position)


@njit(nogil=True, cache=True)
def _dot(indices: np.ndarray, values: np.ndarray, weights: np.ndarray, start: np.uint64, stop: np.uint64) -> float:
    margin = values.dtype.type(0)
    for position in range(start, stop):
        margin += values[position] * weights[np.uint32(indices[position])]
    return margin


@njit(nogil=True, cache=True)
def _sgd(
    indptr: np.ndarray,
    indices: np.ndarray,
    values: np.ndarray,
    labels: np.ndarray,
    weights: np.ndarray,
    samples: np.ndarray,
    learning_rate: float,
    loss_code: int,
) -> None:
    last = len(samples) - 1
    for visit in range(len(samples)):
        _prefetch_row(indptr, indices, values, samples[min(visit + _AHEAD, last)])
        sample = samples[visit]
        start, stop = np.uint64(indptr[sample]), np.uint64(indptr[sample + 1])
        margin = _dot(indices, values, weights, start, stop)
        step = values.dtype.type(learning_rate * slope(loss_code, margin, labels[sample]))
        for position in range(start, stop):
            weights[np.uint32(indices[position])] -= step * values[position]


@njit(nogil=True, cache=True)
def _margins(indptr: np.ndarray, indices: np.ndarray, values: np.ndarray, weights: np.ndarray, out: np.ndarray) -> None:
    for row in range(len(out)):
        out[row] = _dot(indices, values, weights, np.uint64(indptr[row]), np.uint64(indptr[row + 1]))
