"""The native kernel at the machine's limit: sparse logistic SGD against C and against scikit-learn.

    python -m experiments.benchmarks.kernels

One pass over synthetic rows with the shape of RCV1, float32, by one core: rows visited as stored, and in random order.
The yardstick is the same loop in C, compiled here by gcc where there is one. All take turns; medians of a pass each.
"""

import ctypes
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import scipy.sparse
import torch
from sklearn.linear_model import SGDClassifier

from harness.kernels.loop import AHEAD, FURTHER_AHEAD
from harness.kernels.sparse_linear import LOGISTIC, SparseLinearKernel
from harness.kernels.sparse_rows import SparseRows
from harness.problems.synthetic import sparse_rows

SAMPLES, FEATURES, NONZEROS = 100_000, 47_236, 75.0
LEARNING_RATE = 0.25
ROUNDS = 11
FLAGS = ["-O3", "-march=native", "-ffast-math", "-shared", "-fPIC"]
SOURCE = """
#include <math.h>
#include <stdint.h>
void descend(const int64_t *indptr, const int32_t *indices, const float *values, const float *labels,
             const int32_t *samples, int64_t count, float rate, float *restrict weights) {
    for (int64_t visit = 0; visit < count; visit++) {
        int64_t ahead = samples[visit + AHEAD < count ? visit + AHEAD : count - 1];
        for (int64_t p = indptr[ahead]; p < indptr[ahead + 1]; p += 16) {
            __builtin_prefetch(indices + p);
            __builtin_prefetch(values + p);
        }
        __builtin_prefetch(indptr + samples[visit + FURTHER_AHEAD < count ? visit + FURTHER_AHEAD : count - 1]);
        int32_t sample = samples[visit];
        int64_t start = indptr[sample], stop = indptr[sample + 1];
        float margin = 0.0f;
        for (int64_t p = start; p < stop; p++) margin += values[p] * weights[(uint32_t)indices[p]];
        float label = labels[sample];
        float scale = rate * -label / (1.0f + expf(label * margin));
        for (int64_t p = start; p < stop; p++) weights[(uint32_t)indices[p]] -= scale * values[p];
    }
}
"""
Pass = Callable[[], object]


def in_c(rows: SparseRows, labels: torch.Tensor, folder: Path) -> Callable[[torch.Tensor], None] | None:
    """A pass in C over samples in an order, or None where there is no gcc."""
    if shutil.which("gcc") is None:
        return None
    (folder / "kernel.c").write_text(SOURCE)
    library = folder / "kernel.so"
    subprocess.run(
        [
            "gcc",
            *FLAGS,
            f"-DAHEAD={AHEAD}",
            f"-DFURTHER_AHEAD={FURTHER_AHEAD}",
            str(folder / "kernel.c"),
            "-o",
            str(library),
            "-lm",
        ],
        check=True,
    )
    descend = ctypes.CDLL(str(library)).descend
    descend.argtypes = [ctypes.c_void_p] * 5 + [ctypes.c_int64, ctypes.c_float, ctypes.c_void_p]
    descend.restype = None

    def run(order: torch.Tensor) -> None:
        weights = torch.zeros(rows.num_features)
        data = (rows.indptr, rows.indices, rows.values, labels, order)
        descend(*(part.data_ptr() for part in data), len(order), LEARNING_RATE, weights.data_ptr())

    return run


def passes(rows: SparseRows, labels: torch.Tensor, folder: Path) -> dict[str, Pass]:
    """What takes turns, by name."""
    stored = torch.arange(len(rows), dtype=torch.int32)
    index = torch.from_numpy(np.random.default_rng(0).permutation(len(rows)).astype(np.int32))
    kernel = SparseLinearKernel(rows, labels, LOGISTIC)
    matrix = scipy.sparse.csr_matrix((rows.values.numpy(), rows.indices.numpy(), rows.indptr.numpy().astype(np.int32)))
    signs = labels.numpy()

    def ours(order: torch.Tensor) -> Pass:
        return lambda: kernel(torch.zeros(rows.num_features), order, LEARNING_RATE)

    def sklearn(shuffle: bool) -> Pass:
        settings = {"loss": "log_loss", "alpha": 0.0, "learning_rate": "constant", "eta0": LEARNING_RATE}
        model = SGDClassifier(**settings, shuffle=shuffle, fit_intercept=False, max_iter=1, tol=None)
        return lambda: model.fit(matrix, signs)

    found = {"storage_order": ours(stored), "index_order": ours(index)}
    found |= {"sklearn_unshuffled": sklearn(shuffle=False), "sklearn_default": sklearn(shuffle=True)}
    if (c := in_c(rows, labels, folder)) is not None:
        found |= {"c_storage_order": lambda: c(stored), "c_index_order": lambda: c(index)}
    return found


def main() -> None:
    """Print one JSON line."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    rows, labels = sparse_rows(SAMPLES, FEATURES, NONZEROS, label_noise=0.05, seed=0)
    rows, labels = rows.to(torch.float32), labels.float()
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        timed = passes(rows, labels, Path(folder))
        for _ in range(ROUNDS + 1):
            for name, run in timed.items():
                begin_s = time.perf_counter()
                run()
                seconds.setdefault(name, []).append(time.perf_counter() - begin_s)
    each_ns = {name: 1e9 * statistics.median(times[1:]) / len(rows.values) for name, times in seconds.items()}
    ratios = {
        "sklearn_unshuffled_over_storage_order": each_ns["sklearn_unshuffled"] / each_ns["storage_order"],
        "sklearn_default_over_storage_order": each_ns["sklearn_default"] / each_ns["storage_order"],
    }
    if "c_storage_order" in each_ns:
        ratios["storage_order_over_c"] = each_ns["storage_order"] / each_ns["c_storage_order"]
        ratios["index_order_over_c"] = each_ns["index_order"] / each_ns["c_index_order"]
    figures = {"ns_per_nonzero": each_ns, "ratios": ratios}
    rounded = {name: {key: round(value, 3) for key, value in group.items()} for name, group in figures.items()}
    print(json.dumps({"benchmark": "kernels", "nonzeros": len(rows.values), "rounds": ROUNDS, **rounded}))


if __name__ == "__main__":
    main()
