"""What a nonzero and a sample cost in each native kernel, in nonzeros of per-sample SGD: `Kernel.relative_cost`.

    python -m experiments.benchmarks.relative_costs

One core, RCV1-like rows in random order, float32, lock-free. Kernels take turns, and each has the median of the fastest
tenth of its parts of passes, because whatever else the machine does can only slow them down. With s the seconds by
which a sample of SGD takes longer for a nonzero more, rows of two lengths give both costs:

    t_kernel - t_sgd = s * (relative_sample_cost + (relative_cost - 1) * nonzeros)   for a sample
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

SAMPLES, FEATURES, L2 = 50_000, 47_236, 1e-4
LENGTHS = (15, 75)  # nonzeros of a row, on average
TURNS, PARTS = 12, 25


def kernels(nonzeros: int) -> dict[str, tuple[Kernel, int, int, float]]:
    """By name: the kernel, how many things it visits, the length of its model, and a step."""
    rows, labels = sparse_rows(SAMPLES, FEATURES, nonzeros, 0.05, 0)
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
    """Of a visit, in each part of a pass."""
    order = torch.randperm(visits, generator=torch.Generator().manual_seed(0)).int()
    model = torch.zeros(size)
    kernel.warm_up(model)
    for part in order.chunk(PARTS):
        begin_s = time.perf_counter()
        kernel(model, part, step)
        yield (time.perf_counter() - begin_s) / len(part)


def best_s(cases: dict[str, tuple[Kernel, int, int, float]]) -> dict[str, float]:
    """Seconds of a visit."""
    seen: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(TURNS):
        for name, case in cases.items():
            seen[name] += seconds(*case)
    return {name: sorted(each)[len(each) // 20] for name, each in seen.items()}


def main() -> None:
    """Print one line of JSON."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    lengths: list[dict[str, float]] = []  # nonzeros of a visit, and its seconds
    times: list[dict[str, float]] = []
    for nonzeros in LENGTHS:
        cases = kernels(nonzeros)
        lengths.append({name: len(kernel.indices) / visits for name, (kernel, visits, _, _) in cases.items()})
        times.append(best_s(cases))
    of_sgd = lengths[1]["sgd"] - lengths[0]["sgd"]
    nonzero_s = (times[1]["sgd"] - times[0]["sgd"]) / of_sgd
    sample_s = times[0]["sgd"] - nonzero_s * lengths[0]["sgd"]
    found = {}
    for name in times[0]:
        each_s = (times[1][name] - times[0][name]) / (lengths[1][name] - lengths[0][name])
        own_s = times[0][name] - each_s * lengths[0][name]
        found[name] = {
            "relative_cost": round(each_s / nonzero_s, 2),
            "relative_sample_cost": round((own_s - sample_s) / nonzero_s, 1),
        }
    print(json.dumps({"sgd_nonzero_s": nonzero_s, "sgd_sample_s": sample_s, **found}))


if __name__ == "__main__":
    main()
