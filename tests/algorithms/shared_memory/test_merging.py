"""One merge of a replica into the common model: what it makes of the values, and what it costs in virtual time."""

from dataclasses import replace

import pytest
import torch
from simulated_ranks import results, shared_memory

from algorithms.shared_memory.replicas import Merged
from hardware.simulated.compute import Fixed, Roofline
from harness.errors import UserError
from harness.kernels.access import Access
from harness.kernels.merge import RELATIVE_COST, merge

SIZE = 1024  # float32 parameters: 64 lines
NONZERO_S = 1e-9
PASS_S = SIZE * RELATIVE_COST * NONZERO_S
COMPUTE = Roofline("none", False, {"float32": 1e30}, 1e30, 0.0, NONZERO_S)
MEMORY = shared_memory(same_socket_s=50e-9, cross_socket_s=120e-9, local_memory_s=80e-9, remote_memory_s=140e-9)
LINES = SIZE * 4 // 64


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("share", [1.0, 1 / 3])
def test_a_merge_is_the_formula(dtype, share):
    model, known, common = torch.randn(3, 1001, dtype=dtype, generator=torch.Generator().manual_seed(0))
    expected = common + share * (model - known)
    merge(model, known, common, share)
    # compilers may contract to one rounding what torch rounds twice
    torch.testing.assert_close(common, expected, rtol=4 * torch.finfo(dtype).eps, atol=4 * torch.finfo(dtype).eps)
    assert torch.equal(model, common) and torch.equal(known, common)


@pytest.mark.parametrize(("rule", "share"), [("delta_sum", 1.0), ("average", 0.5)])
def test_a_simulated_merge_has_the_values_of_a_real_one(rule, share):
    def body(worker):
        start = torch.linspace(-1, 1, 101)
        replica = Merged(worker, start, Access(), worker.rank, worker.num_workers, rule, every=1)
        replica.model.mul_(1.7 + worker.rank)
        for turn in range(2):
            worker.meet()
            if worker.rank == turn:
                replica.merge()
        worker.meet()
        return replica.common.clone()

    start = torch.linspace(-1, 1, 101)
    expected = start.clone()
    for factor in (1.7, 2.7):
        merge(start * factor, start.clone(), expected, share)
    for common in results(body, 2, memory=MEMORY, compute=COMPUTE):
        assert torch.equal(common, expected)


def merge_s(memory, writer, compute=COMPUTE):
    """Seconds of a merge by rank 0 of what `writer` merged last; None: nobody has."""

    def body(worker):
        start = torch.zeros(SIZE)
        common, model, known = worker.shared("common", start), start.clone(), start.clone()
        if worker.rank == writer:
            worker.merge(model, known, common, 1.0)
        worker.meet()
        begin_s = worker.clock.now()
        if worker.rank == 0:
            worker.merge(model, known, common, 1.0)
        return worker.clock.now() - begin_s

    return results(body, 4, memory=memory, compute=compute)[0]


@pytest.mark.parametrize(
    ("writer", "line_s"),
    [(None, 80e-9), (0, 0.0), (1, 120e-9), (2, 50e-9)],  # memory; the own cache; another socket's; another core's
)
def test_a_merge_fetches_the_lines_that_another_core_merged_into(writer, line_s):
    memory = replace(MEMORY, migrates=True)  # what is read of another core's is owned, and written for nothing
    assert merge_s(memory, writer) == pytest.approx(PASS_S + LINES * line_s)


def test_misses_of_a_merge_overlap():
    memory = replace(MEMORY, migrates=True, outstanding_misses=8)
    assert merge_s(memory, 1) == pytest.approx(PASS_S + LINES * 120e-9 / 8)


def test_a_merge_of_more_than_a_cache_holds_is_streamed():
    free = shared_memory(cache_bytes=2 * SIZE * 4, local_bytes_per_s=1e9, remote_bytes_per_s=1e9)
    assert merge_s(free, None) == pytest.approx(6 * SIZE * 4 / 1e9)
    assert merge_s(replace(free, cache_bytes=3 * SIZE * 4), None) == pytest.approx(PASS_S)


def test_a_merge_costs_where_no_kernel_can_run():
    free = shared_memory(local_bytes_per_s=1e9, remote_bytes_per_s=1e9)
    assert merge_s(free, None, replace(COMPUTE, nonzero_s=None)) == pytest.approx(6 * SIZE * 4 / 1e9)


def test_a_merge_is_free_only_where_operators_are():
    assert merge_s(shared_memory(), None, Fixed("none", False, 1.0)) == 0.0


@pytest.mark.parametrize(
    "tensors",
    [
        (torch.zeros(3), torch.zeros(3), torch.zeros(4)),
        (torch.zeros(3), torch.zeros(3), torch.zeros(3, dtype=torch.float64)),
        (torch.zeros(3, dtype=torch.int8),) * 3,
        (torch.zeros(6)[::2], torch.zeros(3), torch.zeros(3)),
        (torch.zeros(3, 1),) * 3,
    ],
)
def test_what_cannot_be_merged_is_refused(tensors):
    with pytest.raises(UserError, match=r"worker\.merge must be given three contiguous tensors"):
        results(lambda worker: worker.merge(*tensors, 1.0), 1, memory=MEMORY, compute=COMPUTE)
