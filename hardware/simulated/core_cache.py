"""The cache that a core has for itself: which lines it holds, compiled.

It has sets of `WAYS` lines, of which the one goes that was used longest ago. Pages lie in sets at random, as physical
ones do; rows, which are read once and not soon again, pass through all sets in turn.
"""

import math
from typing import Any

import numpy as np
import torch
from numba import njit

from hardware.simulated.memory import PAGE_BYTES
from harness.kernels.base import Kernel
from harness.kernels.native import INLINE

WAYS = 16  # of a set: the second level of Intel's server cores since Skylake
NOWHERE = np.uint64(2**63)  # no line; what is above it is a line of rows


def empty(num_caches: int, cache_bytes: int, line_bytes: int) -> np.ndarray:
    """Caches that hold nothing, shape (caches, sets, ways)."""
    capacity = cache_bytes // line_bytes
    ways = min(WAYS, capacity)
    return np.full((num_caches, capacity // ways, ways), NOWHERE)


def sets_of(num_lines: int, num_sets: int, line_bytes: int, seed: int) -> np.ndarray:
    """The set of each of some lines that follow each other, int64, shape (num_lines,)."""
    in_page = min(PAGE_BYTES // line_bytes, num_sets)
    pages = np.random.default_rng(seed).integers(0, num_sets // in_page, -(-num_lines // in_page))
    return (pages[:, None] * in_page + np.arange(in_page)).ravel()[:num_lines]


def row_bytes(kernel: Kernel) -> tuple[int, int]:
    """Of a row, and of each of its nonzeros."""
    data = kernel.row_data
    if data is None:  # of its rows no more is known than which coordinates they touch
        return kernel.indptr.itemsize, kernel.indices.itemsize
    return data.sample_bytes, data.nonzero_bytes


def row_lines(kernel: Kernel, line_bytes: int) -> tuple[float, float]:
    """Lines of a row, and of each of its nonzeros, that pass through the cache."""
    sample_bytes, nonzero_bytes = row_bytes(kernel)
    return sample_bytes / line_bytes, nonzero_bytes / line_bytes


@njit(**INLINE)
def use(cached: Any, rank: int, number: int, line: int) -> tuple[bool, int]:
    """Let a line be the last used of a set; returns whether it was there, and which one had to go, or NOWHERE.

    Args:
        cached: of all ranks, shape (ranks, sets, ways).
        number: of the set. Not a view of it: that would count references.
    """
    carried = line
    for way in range(cached.shape[2]):
        here = cached[rank, number, way]
        cached[rank, number, way] = carried
        there = here == line
        if there or here == NOWHERE:
            return there, NOWHERE
        carried = here
    return False, carried


@njit(**INLINE)
def drop(cached: Any, rank: int, number: int, line: int) -> None:
    """Take a line out of a set. Those behind it move up: `use` looks no further than the first hole."""
    found, last = False, cached.shape[2] - 1
    for way in range(last + 1):
        found |= cached[rank, number, way] == line
        if found:
            cached[rank, number, way] = cached[rank, number, way + 1] if way < last else NOWHERE


@njit(**INLINE)
def lines_passing(each: Any, nonzeros: int) -> int:
    """Of a row that is read.

    Args:
        each: of `row_lines`.
    """
    return np.int64(math.ceil(each[0] + each[1] * nonzeros))


@njit(nogil=True, cache=True)
def _misses(cached: Any, set_of: Any, base: int, shift: int, block: int, each: Any, rows: Any) -> np.ndarray:
    indptr, indices, samples = rows
    found, passed, num_sets = np.zeros(len(samples), np.int64), NOWHERE, np.uint64(cached.shape[1])
    for visit in range(len(samples)):
        begin, end = indptr[samples[visit]], indptr[samples[visit] + 1]
        for _ in range(lines_passing(each, end - begin)):
            passed += np.uint64(1)
            use(cached, 0, passed % num_sets, passed)
        for position in range(begin, end):
            first = np.uint64(np.uint32(indices[position])) * np.uint64(block)
            last = first + np.uint64(block - 1)
            for line in range(first >> np.uint64(shift), (last >> np.uint64(shift)) + np.uint64(1)):
                hit, _ = use(cached, 0, set_of[line], np.uint64(base) + np.uint64(line))
                found[visit] += not hit
    return found


class CoreCache:
    """The cache of a core, and the models that this core alone uses.

    Args:
        cache_bytes: of the cache.
    """

    def __init__(self, cache_bytes: int, line_bytes: int) -> None:
        self._cached, self._line_bytes = empty(1, cache_bytes, line_bytes), line_bytes
        self._models: dict[tuple[int, int], tuple[int, np.ndarray]] = {}  # first line and sets, by address and bytes
        self._num_lines = 0

    def misses(self, model: torch.Tensor, kernel: Kernel, samples: torch.Tensor) -> np.ndarray:
        """Lines of a model that each sample of a kernel finds forgotten, int64, shape (samples,)."""
        place = model.data_ptr(), model.nbytes
        if place not in self._models:
            count = -(-model.nbytes // self._line_bytes)
            self._models[place] = (
                self._num_lines,
                sets_of(count, self._cached.shape[1], self._line_bytes, self._num_lines),
            )
            self._num_lines += count
        first, sets = self._models[place]
        shift = (self._line_bytes // model.itemsize).bit_length() - 1
        rows = kernel.indptr.numpy(), kernel.indices.numpy(), samples.numpy()
        return _misses(self._cached, sets, first, shift, kernel.block, row_lines(kernel, self._line_bytes), rows)
