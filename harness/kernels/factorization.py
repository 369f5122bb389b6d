"""Per-sample SGD of a matrix completed by two factors, Z = L R'.

    for entry (u, v):  e = L_u . R_v - Z_uv
        L_u <- L_u - eta * (e * R_v + l2 * r_u * L_u)
        R_v <- R_v - eta * (e * L_u + l2 * r_v * R_v)       both from what L_u and R_v were before

This is the update of Hogwild! (Niu, Recht, Re, Wright, NIPS 2011, section 2, "Matrix Completion"), with the regulariser
split over the entries of a row and of a column: r_u = entries / entries of row u, r_v likewise. `read` computes e from
the model as it is then; `write` multiplies it with L_u and R_v as they are by then. A coordinate is one row of L or R.
"""

from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numba import njit, types
from numba.extending import overload

from harness.kernels.base import Kernel, define
from harness.kernels.native import INLINE, LINE_BYTES, prefetch
from harness.kernels.numbers import Step, add, load

# In nonzeros of the sparse linear kernel on the same core, of an Intel Xeon with AVX-512: a nonzero took 3.0 ns, a
# rating 11.1, 18.9, 13.8 and 20.2 ns at widths 16, 30, 32 and 64, float32 in the core's caches.
_ROW_COST, _PARAMETER_COST = 1.5, 0.035
_NUMBERS = Step(0.0, False, 0.0)  # how floats are read


class FactorizationKernel(Kernel):
    """Per-sample SGD of two factors: the model is [L; R], row after row.

    Args:
        rows: int32, shape (samples, 2): of each entry, u and num_users + v, so that both count rows of [L; R].
        values: Z of each entry, float32 or float64, shape (samples,).
        num_rows: of [L; R].
        width: columns of L and R, >= 1.
        l2: factor of (|L|^2 + |R|^2) / 2 in the objective, >= 0.
    """

    name: ClassVar[str] = "factorization"

    def __init__(self, rows: torch.Tensor, values: torch.Tensor, num_rows: int, width: int, l2: float) -> None:
        self.rows, self.values, self.num_rows, self.block, self.l2 = rows, values, num_rows, width, l2
        self.rarity = rarity(rows, num_rows).to(values.dtype)
        self.relative_cost = (
            _ROW_COST / width + _PARAMETER_COST
        )  # a row is found, then worked on by vector instructions
        self._indptr = torch.from_numpy(np.arange(0, rows.numel() + 1, 2))

    @property
    def indptr(self) -> torch.Tensor:
        """Every entry touches two rows."""
        return self._indptr

    @property
    def indices(self) -> torch.Tensor:
        """Rows of [L; R]."""
        return self.rows.view(-1)

    @property
    def num_coordinates(self) -> int:
        """Rows of [L; R]."""
        return self.num_rows

    def native(self) -> "_Factors":
        """Views of the entries."""
        views = (part.numpy() for part in (self.indptr, self.indices, self.values, self.rarity))
        return _Factors(*views, self.block, float(self.l2))


class _Factors(NamedTuple):
    indptr: np.ndarray
    indices: np.ndarray
    values: np.ndarray
    rarity: np.ndarray
    width: int
    l2: float

    def prefetch_data(kernel, sample):
        prefetch(kernel.indices, np.uint64(2) * np.uint64(sample))
        prefetch(kernel.values, np.uint64(sample))


def rarity(rows: torch.Tensor, num_rows: int) -> torch.Tensor:
    """Entries / entries that touch the row, float64, shape (num_rows,); 0 if none does.

    Args:
        rows: shape (entries, 2).
    """
    counts = np.bincount(rows.view(-1).numpy(), minlength=num_rows)
    return torch.from_numpy(np.where(counts > 0, len(rows) / np.maximum(counts, 1), 0.0))


def predictions(rows: torch.Tensor, weights: torch.Tensor, width: int) -> torch.Tensor:
    """L_u . R_v of all entries, natively, shape (entries,), of the dtype of `weights`.

    Args:
        rows: as `FactorizationKernel` takes them, shape (entries, 2).
        weights: [L; R], shape (rows * width,).
    """
    out = torch.empty(len(rows), dtype=weights.dtype)
    _predict(rows.view(-1).numpy(), weights.numpy(), width, out.numpy())
    return out


@njit(nogil=True, cache=True)
def _predict(indices: np.ndarray, weights: np.ndarray, width: int, out: np.ndarray) -> None:
    for sample in range(len(out)):
        first, second = _blocks(indices, np.uint64(width), sample)
        out[sample] = _dot(weights, first, second, np.uint64(width), weights.dtype.type(0), _NUMBERS)


@njit(**INLINE)
def _blocks(indices: np.ndarray, width: int, sample: int) -> tuple[int, int]:
    """Where the two rows of an entry begin in the model; unsigned, which spares the test for negative positions."""
    position = np.uint64(2) * np.uint64(sample)
    user, item = np.uint32(indices[position]), np.uint32(indices[position + np.uint64(1)])
    return np.uint64(user) * width, np.uint64(item) * width


@njit(**INLINE, fastmath={"reassoc"})  # sums in any order are sums of vectors
def _dot(weights: Any, first: int, second: int, width: int, zero: float, step: Step) -> float:
    total = zero
    for k in range(width):
        total += load(weights, first + k, step) * load(weights, second + k, step)
    return total


def _ask(kernel, weights, sample):
    width, line = np.uint64(kernel.width), np.uint64(LINE_BYTES // weights.itemsize)
    first, second = _blocks(kernel.indices, width, sample)
    for k in range(np.uint64(0), width, line):
        prefetch(weights, first + k)
        prefetch(weights, second + k)
    prefetch(weights, first + width - np.uint64(1))
    prefetch(weights, second + width - np.uint64(1))


def _ask_nothing(kernel, weights, sample):
    pass


def _error(kernel, weights, sample, step):
    width = np.uint64(kernel.width)
    first, second = _blocks(kernel.indices, width, sample)
    return _dot(weights, first, second, width, kernel.values.dtype.type(0), step) - kernel.values[sample]


def _descend(kernel, weights, sample, slope, step, salt):
    number, width = kernel.values.dtype.type, np.uint64(kernel.width)
    first, second = _blocks(kernel.indices, width, sample)
    scale = number(step.learning_rate * slope)
    position = np.uint64(2) * np.uint64(sample)
    decay = step.learning_rate * kernel.l2
    first_decay = number(decay * kernel.rarity[np.uint32(kernel.indices[position])])
    second_decay = number(decay * kernel.rarity[np.uint32(kernel.indices[position + np.uint64(1)])])
    _change(weights, first, second, width, scale, first_decay, second_decay, step, salt)


def _change(weights, first, second, width, scale, first_decay, second_decay, step, salt):
    """Add -(scale * other + decay * own) to both rows, from what they were before."""
    raise NotImplementedError


@overload(_change, jit_options=INLINE)
def _compile_change(weights, first, second, width, scale, first_decay, second_decay, step, salt):
    is_float = isinstance(weights, types.Array) and isinstance(weights.dtype, types.Float)
    return _change_floats if is_float else _change_any


def _change_any(weights, first, second, width, scale, first_decay, second_decay, step, salt):
    for k in range(width):
        left, right = load(weights, first + k, step), load(weights, second + k, step)
        add(weights, first + k, -(scale * right + first_decay * left), step, salt)
        add(weights, second + k, -(scale * left + second_decay * right), step, salt)


_change_one_by_one = njit(**INLINE)(_change_any)


def _change_floats(weights, first, second, width, scale, first_decay, second_decay, step, salt):
    if step.atomic:
        _change_one_by_one(weights, first, second, width, scale, first_decay, second_decay, step, salt)
        return
    for k in range(width):  # of this LLVM makes vectors, of `load` and `add` it does not
        left, right = weights[first + k], weights[second + k]
        weights[first + k] = left - (scale * right + first_decay * left)
        weights[second + k] = right - (scale * left + second_decay * right)


define(_Factors, _ask, _error, _descend, ask_hot=_ask_nothing)
