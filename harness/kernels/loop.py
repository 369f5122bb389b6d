"""The loop that runs a chunk of samples for real, compiled for each kind of kernel and model."""

from typing import Any

import numpy as np
from numba import njit, types

from harness.kernels.access import ATOMIC
from harness.kernels.base import prefetch_data, prefetch_sample, read, write
from harness.kernels.locks import before_write, begin, end
from harness.kernels.native import INLINE, borrowed
from harness.kernels.numbers import Step

AHEAD = 4  # samples between the prefetch of a row and its use
FURTHER_AHEAD = 12  # samples between the prefetch of what a prefetch reads and the use of the sample

_read_clock = types.ExternalFunction("clock_gettime", types.int32(types.int32, types.intp))
_MONOTONIC = 1  # CLOCK_MONOTONIC


@njit(nogil=True, cache=True)
def run(
    kernel: Any,
    weights: Any,
    samples: np.ndarray,
    step: Step,
    salt: int,
    locking: int,
    words: np.ndarray,
    delay_s: float,
) -> None:
    """Apply one update per sample, in order.

    Args:
        kernel: what `Kernel.native` returns.
        weights: an array, or a `Hot`.
        locking: code of the locking (harness.kernels.access).
        words: locks, shared by all workers.
        delay_s: seconds by which a gradient takes longer.
    """
    kernel = borrowed(kernel)
    last = len(samples) - 1
    straight = locking <= ATOMIC and delay_s == 0.0
    for visit in range(len(samples)):
        prefetch_data(kernel, samples[min(visit + FURTHER_AHEAD, last)])
        prefetch_sample(kernel, weights, samples[min(visit + AHEAD, last)])
        sample, own_salt = samples[visit], salt + np.uint64(visit)
        if straight:
            write(kernel, weights, sample, read(kernel, weights, sample, step), step, own_salt)
        else:
            _update(kernel, weights, sample, step, own_salt, locking, words, delay_s)


run_uncached = njit(nogil=True)(run.py_func)  # for kernels whose files `harness.kernels` does not know


@njit(**INLINE)
def _update(kernel, weights, sample, step, salt, locking, words, delay_s):
    """One update under locks, or with a gradient that takes longer."""
    touched = kernel.indices[kernel.indptr[sample] : kernel.indptr[sample + 1]]
    ticket = begin(locking, words)
    slope = read(kernel, weights, sample, step)
    if delay_s > 0.0:
        _spend(delay_s)
    before_write(locking, words, ticket, touched)
    write(kernel, weights, sample, slope, step, salt)
    end(locking, words, ticket, touched)


@njit(nogil=True)
def _spend(delay_s: float) -> None:
    clock = np.empty(2, np.int64)
    until_s = _now_s(clock) + delay_s
    while _now_s(clock) < until_s:
        pass


@njit(nogil=True)
def _now_s(clock: np.ndarray) -> float:
    """Seconds of the monotonic clock; `clock`, shape (2,), is overwritten."""
    _read_clock(_MONOTONIC, clock.ctypes.data)
    return clock[0] + 1e-9 * clock[1]
