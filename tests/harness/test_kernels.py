import threading
import time

import numpy as np
import pytest
import torch
from numba import njit
from oracle import as_scipy, oracle_weights

from harness.kernels import loop
from harness.kernels.native import borrowed
from harness.kernels.sparse_linear import HINGE, LOGISTIC, SQUARES, SparseLinearKernel, slope_of
from harness.kernels.sparse_rows import SparseRows
from harness.problems.synthetic import sparse_rows

SAMPLES, FEATURES = 500, 300


@pytest.fixture(scope="module")
def data():
    return sparse_rows(SAMPLES, FEATURES, nonzeros_per_sample=20, label_noise=0.1, seed=3)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    # 1,000 updates of weights below 4, each rounded to 2^-24 (2^-53) of the weight: at worst 2.4e-4 (4.4e-13) apart,
    # and in float32, where the signs of 1,000 roundings are random, about a thirtieth of it.
    [(torch.float32, 2e-5), (torch.float64, 4e-13)],
)
@pytest.mark.parametrize(("loss", "loss_code"), [("log_loss", LOGISTIC), ("hinge", HINGE), ("squared_error", SQUARES)])
def test_one_worker_equals_scikit_learn(data, loss, loss_code, dtype, tolerance):
    rows, labels = data[0].to(dtype), data[1].to(dtype)
    weights = torch.zeros(FEATURES, dtype=dtype)
    kernel = SparseLinearKernel(rows, labels, loss_code)
    for _ in range(2):
        kernel(weights, torch.arange(SAMPLES, dtype=torch.int32), 0.5)
    assert weights.abs().max() > 0.5
    torch.testing.assert_close(weights.double(), oracle_weights(rows, labels, loss, 0.5, 2), rtol=0, atol=tolerance)


@pytest.mark.parametrize("loss_code", [LOGISTIC, HINGE, SQUARES])
def test_update_is_the_formula(data, loss_code):
    rows, labels = data
    dense = torch.from_numpy(as_scipy(rows).toarray())
    weights = torch.linspace(-1, 1, FEATURES, dtype=torch.float64)
    expected = weights.clone()
    samples = torch.tensor([7, 3, 7, 499], dtype=torch.int32)
    for i in samples.tolist():
        expected -= 0.3 * slope_of.py_func(loss_code, float(dense[i] @ expected), float(labels[i])) * dense[i]
    SparseLinearKernel(rows, labels, loss_code)(weights, samples, 0.3)
    torch.testing.assert_close(weights, expected, rtol=1e-12, atol=1e-15)


def test_chunks_do_not_change_the_result(data):
    kernel = SparseLinearKernel(*data, LOGISTIC)
    order = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(0)).int()
    whole, parts = torch.zeros(2, FEATURES, dtype=torch.float64)
    kernel(whole, order, 0.5)
    for start in range(0, SAMPLES, 7):
        kernel(parts, order[start : start + 7], 0.5)
    assert torch.equal(whole, parts)


def test_an_empty_chunk_changes_nothing(data):
    weights = torch.ones(FEATURES, dtype=torch.float64)
    SparseLinearKernel(*data, LOGISTIC)(weights, torch.empty(0, dtype=torch.int32), 0.5)
    assert torch.equal(weights, torch.ones(FEATURES, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_warm_up_compiles_what_is_used(data, dtype):
    kernel = SparseLinearKernel(data[0].to(dtype), data[1].to(dtype), HINGE)
    model = torch.ones(FEATURES, dtype=dtype)
    kernel.warm_up(model)
    assert torch.equal(model, torch.ones(FEATURES, dtype=dtype))
    compiled = set(loop.run.signatures)
    kernel(model, torch.arange(SAMPLES, dtype=torch.int32)[5:9], 1)
    assert set(loop.run.signatures) == compiled


def test_nonzeros_are_counted_exactly(data):
    rows, labels = data
    samples = torch.tensor([4, 4, 0, 499], dtype=torch.int32)
    expected = sum(as_scipy(rows)[i].nnz for i in samples.tolist())
    assert SparseLinearKernel(rows, labels, LOGISTIC).nonzeros(samples) == expected


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_slope_of_huge_margins_is_finite(dtype):
    margins, labels = np.array([-1e4, 1e4], dtype), np.array([1, 1], dtype)
    slopes = [slope_of(LOGISTIC, m, y) for m, y in zip(margins, labels, strict=True)]
    assert slopes == [-1, 0]


def test_slope_at_the_kink_of_the_hinge():
    assert [slope_of(HINGE, margin, -1.0) for margin in (-1.0, -1.0 - 1e-9)] == [1.0, 0.0]


def test_gather_margins_and_parts(data):
    rows, _ = data
    dense = as_scipy(rows).toarray()
    indices, values, offsets = rows.gather(torch.tensor([9, 2, 9]))
    bounds = [*offsets.tolist(), len(indices)]
    for k, i in enumerate([9, 2, 9]):
        row = np.zeros(FEATURES)
        row[indices[bounds[k] : bounds[k + 1]]] = values[bounds[k] : bounds[k + 1]]
        np.testing.assert_array_equal(row, dense[i])
    np.testing.assert_array_equal(as_scipy(rows.part(100, 150)).toarray(), dense[100:150])
    weights = torch.linspace(-1, 1, FEATURES, dtype=torch.float64)
    np.testing.assert_allclose(rows.margins(weights).numpy(), dense @ weights.numpy(), rtol=0, atol=1e-13)


def test_empty_rows_have_margin_zero_and_change_nothing():
    rows = SparseRows(
        torch.tensor([0, 0, 1, 1]), torch.tensor([1], dtype=torch.int32), torch.tensor([2.0], dtype=torch.float64), 3
    )
    assert rows.normalized().values.tolist() == [1.0]
    weights = torch.ones(3, dtype=torch.float64)
    assert rows.margins(weights).tolist() == [0, 2, 0]
    SparseLinearKernel(rows, torch.ones(3, dtype=torch.float64), SQUARES)(weights, torch.tensor([0, 2]).int(), 1.0)
    assert weights.tolist() == [1, 1, 1]
    assert rows.gather(torch.tensor([0, 1, 2]))[2].tolist() == [0, 0, 1]


def test_tensors_may_move_to_shared_memory_between_calls(data):
    rows, labels = (
        SparseRows(data[0].indptr.clone(), data[0].indices.clone(), data[0].values.clone(), FEATURES),
        data[1],
    )
    kernel = SparseLinearKernel(rows, labels.clone(), LOGISTIC)
    order = torch.arange(SAMPLES, dtype=torch.int32)
    private, shared = torch.zeros(2, FEATURES, dtype=torch.float64).unbind()
    kernel(private, order, 0.5)
    shared = shared.clone().share_memory_()
    for tensor in (rows.indptr, rows.indices, rows.values, kernel.labels):
        tensor.share_memory_()
    kernel(shared, order, 0.5)
    assert torch.equal(private, shared)


def test_other_threads_run_meanwhile(data):
    kernel = SparseLinearKernel(*data, LOGISTIC)
    kernel.warm_up(torch.zeros(FEATURES, dtype=torch.float64))
    samples = torch.arange(SAMPLES, dtype=torch.int32).repeat(8_000)  # a few tenths of a second
    span, ticks = [], []

    def compute():
        span.append(time.perf_counter())
        kernel(torch.zeros(FEATURES, dtype=torch.float64), samples, 0.1)
        span.append(time.perf_counter())

    thread = threading.Thread(target=compute)
    thread.start()
    while thread.is_alive():
        ticks.append(time.perf_counter())
    begin, end = span
    margin = (end - begin) / 5  # at its edges the other thread holds the interpreter anyway
    assert any(begin + margin < tick < end - margin for tick in ticks)


def test_borrowed_arrays_are_the_same_memory_and_not_counted():
    @njit
    def change(parts):
        mine = borrowed(parts)
        mine[1][0][2] = mine[0]
        return mine[1][0]

    numbers = np.zeros(4)
    returned = change((5.0, (numbers,)))
    assert numbers.tolist() == [0.0, 0.0, 5.0, 0.0]
    assert returned.ctypes.data == numbers.ctypes.data
    assert returned.base is None  # nobody's reference keeps its memory
    assert not returned.flags.owndata
