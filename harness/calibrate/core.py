"""The constants of `hardware.simulated.compute.Roofline`, and what kernels add to `SharedMemory`, measured on one core.

The kernel is the sparse logistic one, in float32, on rows with the shape of RCV1: more of them than the caches that a
core has for itself hold, and a model that these do hold.
"""

import time
from collections.abc import Callable, Iterator
from functools import lru_cache, partial

import numpy as np
import torch

from hardware.simulated.core_cache import CoreCache
from harness.calibrate import probes
from harness.calibrate.constant import LOW, Constant, repeated
from harness.kernels.access import Access, lock_words
from harness.kernels.sparse_linear import LOGISTIC, SparseLinearKernel
from harness.problems.synthetic import sparse_rows

SAMPLES, FEATURES, NONZEROS = 40_000, 47_236, 75.0  # rows of 24 MB, a model of 189 KB
CHUNK = 1024  # samples in a call
TRIALS, ROUNDS, REPETITIONS = 5, 7, 5
SIDE = 1024  # of the matrices whose product is timed
LITTLE, LITTLES = 8, 2000  # numbers of the smallest operator, and how many of them are timed
LARGE = 1 << 25  # numbers of the largest


def constants(cpu: int) -> Iterator[Constant]:
    """Measure all of them on a CPU, in some seconds.

    Yields:
        first those of Roofline, then those of SharedMemory.
    """
    found: list[Constant] = []
    probes.on_cores([cpu], [lambda: found.extend([*_operators(), *_kernel()])])
    yield from found


def _operators() -> Iterator[Constant]:
    """What torch's operators cost."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for dtype in (torch.float32, torch.float64):
            matrix = torch.randn(SIDE, SIDE, dtype=dtype)
            name = str(dtype).removeprefix("torch.")
            flops = 2 * SIDE**3 / _usual_s(partial(torch.mm, matrix, matrix))
            yield Constant(f"flops_per_s.{name}", flops, f"a product of matrices of {SIDE} x {SIDE}")
        large = torch.ones(LARGE)
        moved = 2 * LARGE * 4 / _usual_s(lambda: torch.neg(large, out=large))
        yield Constant("memory_bytes_per_s", moved, f"the negative of {LARGE >> 20} M numbers, in place")
        little = torch.ones(LITTLE)
        each_s = _usual_s(lambda: [torch.neg(little) for _ in range(LITTLES)]) / LITTLES
        yield Constant("operator_overhead_s", each_s, f"the negative of {LITTLE} numbers")
    finally:
        torch.set_num_threads(threads)


def _kernel() -> Iterator[Constant]:
    """What native kernels cost."""
    yield from repeated(partial(_passes, *_ways()), REPETITIONS)


def _ways() -> tuple[SparseLinearKernel, dict[str, tuple[torch.Tensor, Access]]]:
    """A kernel, and the orders and locks it is timed with."""
    rows, labels = sparse_rows(SAMPLES, FEATURES, NONZEROS, label_noise=0.05, seed=0)
    kernel = SparseLinearKernel(rows.to(torch.float32), labels.float(), LOGISTIC)
    spin = Access("global_spin", lock_words("global_spin", FEATURES))
    random = torch.from_numpy(np.random.default_rng(0).permutation(SAMPLES).astype(np.int32))
    ways = {"random": (random, Access()), "stored": (torch.arange(SAMPLES, dtype=torch.int32), Access())}
    ways["locked"] = (random, spin)
    return kernel, ways


def _passes(kernel: SparseLinearKernel, ways: dict[str, tuple[torch.Tensor, Access]]) -> Iterator[Constant]:
    """All ways in turn."""
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(TRIALS):
        for way, (order, access) in ways.items():
            seconds[way].append(_pass_s(kernel, order, access))
    each_s = {way: float(np.quantile(times[1:], LOW)) for way, times in seconds.items()}
    nonzeros = len(kernel.rows.values)
    how = f"sparse logistic, float32, {NONZEROS:g} nonzeros a row"
    yield Constant("nonzero_s", each_s["random"] / nonzeros, f"{how}, random rows prefetched")
    ratio = min(1.0, each_s["stored"] / each_s["random"])
    yield Constant("sequential_rows", ratio, "rows visited as stored, against random ones")
    lock_s = max(0.0, (each_s["locked"] - each_s["random"]) / SAMPLES)
    yield Constant("lock_s", lock_s, "an update under a spin lock that nobody else wants, less one without")


def forgotten_s(cpu: int, cache_bytes: int, line_bytes: int) -> float:
    """Seconds by which a pass is longer for each line of the model that the core's own cache has forgotten.

    Args:
        cache_bytes: of that cache, which holds one model, an eighth of it, and half of another.
    """
    order = torch.from_numpy(np.random.default_rng(0).permutation(SAMPLES).astype(np.int32))
    seconds, misses = [], []
    for num_features in (cache_bytes // 8 // 4, 2 * cache_bytes // 4):
        kernel, times, cache = _uniform(SAMPLES, num_features), np.zeros(TRIALS + 1), CoreCache(cache_bytes, line_bytes)
        probes.on_cores([cpu], [partial(_time_passes, kernel, order, times)])
        seconds.append(float(np.quantile(times[1:], LOW)))
        model = torch.zeros(num_features)
        passes = [int(cache.misses(model, kernel, order).sum()) for _ in range(2)]
        misses.append(passes[-1])
    return (seconds[1] - seconds[0]) / (misses[1] - misses[0])


@lru_cache(maxsize=2)
def _uniform(num_samples: int, num_features: int) -> SparseLinearKernel:
    """A kernel on rows whose features are all as likely."""
    rows, labels = sparse_rows(num_samples, num_features, NONZEROS, label_noise=0.05, seed=0, popularity="uniform")
    return SparseLinearKernel(rows.to(torch.float32), labels.float(), LOGISTIC)


def _time_passes(kernel: SparseLinearKernel, order: torch.Tensor, times: np.ndarray) -> None:
    """Write the seconds of passes over `order` to `times`."""
    for turn in range(len(times)):
        times[turn] = _pass_s(kernel, order, Access())


def _pass_s(kernel: SparseLinearKernel, order: torch.Tensor, access: Access) -> float:
    weights = torch.zeros(kernel.num_coordinates)
    kernel.warm_up(weights, access)
    chunks = order.split(CHUNK)
    begin_s = time.perf_counter()
    for chunk in chunks:
        kernel(weights, chunk, 0.1, access)
    return time.perf_counter() - begin_s


def _usual_s(call: Callable[[], object]) -> float:
    """Seconds of a call: a low quantile of a few."""
    times = []
    for _ in range(ROUNDS):
        begin_s = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin_s)
    return float(np.quantile(times[1:], LOW))
