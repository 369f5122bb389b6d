"""One simulated worker is the native kernel bit for bit, whatever the kernel, its numbers and the locks."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from simulated_ranks import KERNELS_ALONE, NUMA_WITH_LOCKS, results

from algorithms.shared_memory.layout import hottest, parameters_of
from algorithms.shared_memory.precision import encode
from harness.kernels.access import LOCKING, Access, lock_words
from harness.kernels.base import SplitModel
from harness.kernels.coordinate_descent import DualKernel, PrimalKernel
from harness.kernels.factorization import FactorizationKernel
from harness.kernels.sparse_linear import LOGISTIC, SparseLinearKernel
from harness.kernels.variance_reduced import FullGradientKernel, VarianceReducedKernel
from harness.problems.synthetic import sparse_rows

SAMPLES, FEATURES, QUANTUM = 60, 30, 1 / 64


def linear(dtype=torch.float64):
    rows, labels = sparse_rows(SAMPLES, FEATURES, 5, 0.1, 0)
    return SparseLinearKernel(rows.to(dtype), labels.to(dtype), LOGISTIC, l2=0.05)


def start(size=FEATURES, dtype=torch.float64):
    return torch.linspace(-1, 1, size, dtype=torch.float64).to(dtype)


def l2():
    return linear(), start(), []


def svrg():
    slopes = torch.linspace(-0.5, 0.5, SAMPLES, dtype=torch.float64)
    return VarianceReducedKernel(linear(), start().flip(0), slopes), start(), []


def full_gradient():
    slopes = torch.zeros(SAMPLES, dtype=torch.float64)
    return FullGradientKernel(linear(), start(), slopes), start() * 0, [slopes]


def dual():
    variables = torch.full((SAMPLES,), 0.3, dtype=torch.float64)
    return DualKernel(linear(), variables), start(), [variables]


def primal():
    weights = start()
    return PrimalKernel(linear(), weights), start(SAMPLES), [weights]


def factorization(width):
    random = np.random.default_rng(0)
    pairs = np.stack([random.integers(0, 10, SAMPLES), random.integers(10, 20, SAMPLES)], axis=1).astype(np.int32)
    values = start(SAMPLES)
    return FactorizationKernel(torch.from_numpy(pairs), values, 20, width, 1e-3), start(20 * width), []


def hot(kernel, model):
    places = parameters_of(kernel, hottest(kernel, 4))
    slots = torch.full((len(model),), -1, dtype=torch.int32)
    slots[places] = torch.arange(len(places), dtype=torch.int32)
    return kernel, SplitModel(model, model[places].clone(), slots), []


def rounded(precision):
    return linear(torch.float32), encode(start(dtype=torch.float32), precision, QUANTUM), []


MADE = {
    "l2": l2,
    "svrg": svrg,
    "full gradient": full_gradient,
    "dual": dual,
    "primal": primal,
    **{f"factorization {width}": lambda width=width: factorization(width) for width in (1, 5, 16)},
    "hot": lambda: hot(linear(), start()),
    "hot blocks": lambda: hot(*factorization(5)[:2]),
    "int8": lambda: rounded("int8"),
    "bfloat16": lambda: rounded("bfloat16"),
}


def tensors(model, others):
    return [*((model.cold, model.hot) if isinstance(model, SplitModel) else (model,)), *others]


WAYS = [(name, locking) for name in MADE for locking in LOCKING]
WAYS = [way for way in WAYS if way not in (("int8", "atomic"), ("bfloat16", "atomic"))]  # cores add only floats so


@pytest.mark.parametrize(("name", "locking"), WAYS)
def test_one_worker_is_the_native_kernel_bit_for_bit(name, locking):
    make = MADE[name]
    kernel, model, others = make()
    samples = torch.arange(len(kernel.indptr) - 1, dtype=torch.int32)
    before = [each.clone() for each in tensors(model, others)]

    def body(worker):
        kernel, model, others = make()
        words, salt = lock_words(locking, kernel.num_coordinates), worker._salt
        if isinstance(model, SplitModel):
            model = replace(model, cold=worker.shared("model", model.cold))
        else:
            model = worker.shared("model", model)
        access = Access(locking, worker.shared("locks", words) if len(words) else words, QUANTUM)
        worker.run(kernel, model, samples, 0.2, access)
        return [each.clone() for each in tensors(model, others)], salt

    ((found, salt),) = results(body, 1, memory=NUMA_WITH_LOCKS, compute=KERNELS_ALONE)
    kernel(model, samples, 0.2, Access(quantum=QUANTUM), salt)
    native = tensors(model, others)
    assert all(torch.equal(*pair) for pair in zip(found, native, strict=True))
    assert not torch.equal(native[-1], before[-1])
