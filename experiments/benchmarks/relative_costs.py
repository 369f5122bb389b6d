"""What a nonzero costs in each native kernel, in those of per-sample SGD: `Kernel.relative_cost`.

    python -m experiments.benchmarks.relative_costs

One core, RCV1-like rows (75 nonzeros each) in random order, float32, lock-free. Kernels take turns, and each has the
median of the fastest tenth of its parts of passes, because whatever else the machine does can only slow them down.
"""

import json
import os
import time
from collections.abc import Iterator

import torch

from harness.kernels.base import Kernel
from harness.kernels.coordinate_descent import DualKernel, PrimalKernel
from harness.kernels.langevin import LangevinKernel
from harness.kernels.sparse_linear import HINGE, LOGISTIC, SparseLinearKernel
from harness.kernels.variance_reduced import FullGradientKernel, VarianceReducedKernel
from harness.problems.synthetic import sparse_rows

SAMPLES, FEATURES, NONZEROS, L2 = 50_000, 47_236, 75, 1e-4
TURNS, PARTS = 12, 25


def kernels() -> dict[str, tuple[Kernel, int, int, float]]:
    """By name: the kernel, how many things it visits, the length of its model, and a step."""
    rows, labels = sparse_rows(SAMPLES, FEATURES, NONZEROS, 0.05, 0)
    rows, labels = rows.to(torch.float32), labels.float()
    plain = SparseLinearKernel(rows, labels, LOGISTIC)
    linear, hinge = (SparseLinearKernel(rows, labels, loss, L2) for loss in (LOGISTIC, HINGE))
    zeros = torch.zeros
    by_samples: dict[str, tuple[Kernel, float]] = {
        "sgd": (plain, 0.1),
        "sgd with l2": (linear, 0.1),
        "full_gradient": (FullGradientKernel(plain, zeros(FEATURES), zeros(SAMPLES)), 1 / SAMPLES),
        "svrg": (VarianceReducedKernel(linear, zeros(FEATURES), zeros(SAMPLES)), 0.1),
        "sgld": (LangevinKernel(linear, 1.0), 0.1),
        "dual_coordinate_descent, hinge": (DualKernel(hinge, zeros(SAMPLES)), 1.0),
        "dual_coordinate_descent, logistic": (DualKernel(linear, zeros(SAMPLES)), 1.0),
    }
    found = {name: (kernel, SAMPLES, FEATURES, step) for name, (kernel, step) in by_samples.items()}
    return found | {"coordinate_descent": (PrimalKernel(linear, zeros(FEATURES)), FEATURES, SAMPLES, 1.0)}


def seconds(kernel: Kernel, visits: int, size: int, step: float) -> Iterator[float]:
    """Of a nonzero, in each part of a pass."""
    order = torch.randperm(visits, generator=torch.Generator().manual_seed(0)).int()
    model = torch.zeros(size)
    kernel.warm_up(model)
    for part in order.chunk(PARTS):
        begin_s = time.perf_counter()
        kernel(model, part, step)
        yield (time.perf_counter() - begin_s) / kernel.nonzeros(part)


def main() -> None:
    """Print one line of JSON."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    cases = kernels()
    seen: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(TURNS):
        for name, case in cases.items():
            seen[name] += seconds(*case)
    best = {name: sorted(each)[len(each) // 20] for name, each in seen.items()}
    relative = {name: round(best[name] / best["sgd"], 2) for name in cases}
    print(json.dumps({"sgd_nonzero_s": best["sgd"], "relative_cost": relative}))


if __name__ == "__main__":
    main()
