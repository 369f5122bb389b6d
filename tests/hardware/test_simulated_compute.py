from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from simulated_ranks import execute, results
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from hardware.simulated.compute import Fixed, Roofline
from hardware.simulated.network.topologies import Switch
from harness.errors import UserError

PEAK, RATE, OVERHEAD = 1e9, 1e8, 1e-5
ROOFLINE = Roofline("none", False, {"float32": PEAK, "float64": PEAK / 2}, RATE, OVERHEAD, 1e-9)


def seconds(function, compute=ROOFLINE):
    """Virtual seconds of `function()` on one rank."""

    def body(worker):
        before = worker.clock.now()
        function()
        return worker.clock.now() - before

    return results(body, 1, compute=compute)[0]


def test_matrix_product_is_bound_by_arithmetic():
    a, b = torch.ones(100, 200), torch.ones(200, 300)
    assert seconds(lambda: a @ b) == pytest.approx(OVERHEAD + 2 * 100 * 200 * 300 / PEAK)
    assert seconds(lambda: a.double() @ b.double()) > seconds(lambda: a @ b)


def test_addition_is_bound_by_memory():
    a = torch.ones(1000)
    assert seconds(lambda: a + a.clone()) == pytest.approx(2 * OVERHEAD + 2 * 8000 / RATE + 4000 / RATE)


def test_operand_used_twice_is_read_once():
    a = torch.ones(1000)
    assert seconds(lambda: a.mul(a)) == pytest.approx(OVERHEAD + 8000 / RATE)


def test_views_are_free():
    a = torch.ones(10, 10)
    assert seconds(lambda: a[2:4].t().unsqueeze(0).expand(3, 10, 2).detach()) == 0.0


def test_integers_have_bytes_only():
    a = torch.ones(1000, dtype=torch.int64)
    assert seconds(lambda: a.neg()) == pytest.approx(OVERHEAD + 16000 / RATE)


def test_backward_is_charged():
    layer, x = nn.Linear(100, 100, bias=False), torch.ones(50, 100)
    forward = seconds(lambda: layer(x).sum())
    both = seconds(lambda: layer(x).sum().backward())
    assert both - forward > 2 * 50 * 100 * 100 / PEAK  # the gradient of the weights is another product


def test_dtype_without_a_peak_is_an_error():
    failure = execute(lambda worker: torch.ones(2, dtype=torch.bfloat16).neg(), 1, compute=ROOFLINE).failure
    assert isinstance(failure, UserError)
    assert "add hardware.compute.flops_per_s.bfloat16" in str(failure)


def test_pauses_are_free():
    def body(worker):
        with worker.clock.paused():
            torch.ones(1000).neg()
        return worker.clock.now()

    assert results(body, 1, compute=ROOFLINE) == [0.0]


def test_a_collective_s_own_arithmetic_is_free():
    def body(worker):
        x = torch.ones(1000)
        before = worker.clock.now()
        dist.all_reduce(x)
        return worker.clock.now() - before

    assert results(body, 2, compute=ROOFLINE, network=Switch({}, {}, 0.5, 1e30)) == pytest.approx([1.0, 1.0], abs=1e-9)


def test_a_message_s_own_copy_is_free():
    x, boxes = torch.ones(1000), [torch.empty(1000) for _ in range(2)]

    def body(worker):
        works = [dist.isend(x, 1 - worker.rank), dist.irecv(boxes[worker.rank], 1 - worker.rank)]
        for work in works:
            work.wait()

    assert [report.compute_s for report in execute(body, 2, compute=ROOFLINE).workers] == [0.0, 0.0]


@pytest.mark.parametrize(
    ("change", "slower"),
    [
        ({"flops_per_s": {"float32": PEAK / 2}}, True),
        ({"memory_bytes_per_s": RATE / 2}, True),
        ({"operator_overhead_s": OVERHEAD * 2}, True),
        ({"nonzero_s": 2e-9}, False),  # no native kernel here; see test_simulated_memory
        ({"kernel_latency_s": 1e-6}, True),
        ({"backward_overhead_s": 1e-6}, True),
        ({"attention_efficiency": 0.5}, True),
    ],
)
def test_every_number_moves_the_answer(change, slower):
    def work():
        a = torch.ones(300, 300, requires_grad=True)
        (a @ a).add_(1.0).sum().backward()
        attend(torch.ones(3, 1, 1, 256, 256))

    changed = Roofline(**{**vars(ROOFLINE), **change})
    assert (seconds(work, changed) > seconds(work)) == slower


def test_fixed_costs_per_sample_dealt():
    def body(worker):
        times = []
        for batch in worker.batches(Ten(), 3):
            times.append(worker.clock.now())
            worker.observe(torch.zeros(1), len(batch))
        return times

    class Ten:
        num_samples = 10

    assert results(body, 1, compute=Fixed("none", False, 2.0), budget=10) == [[6.0, 12.0, 18.0, 20.0]]


@pytest.mark.parametrize(
    "make",
    [
        lambda: Fixed("none", False, 0.0),
        lambda: Roofline("none", False, {"float32": 0.0}, RATE, OVERHEAD, 1e-9),
        lambda: Roofline("none", False, {}, 0.0, OVERHEAD, 1e-9),
        lambda: Roofline("none", False, {}, RATE, -1.0, 1e-9),
        lambda: Roofline("none", False, {}, RATE, OVERHEAD, 0.0),
        lambda: replace(ROOFLINE, kernel_latency_s=-1.0),
        lambda: replace(ROOFLINE, backward_overhead_s=-1.0),
        lambda: replace(ROOFLINE, attention_efficiency=0.0),
        lambda: replace(ROOFLINE, attention_efficiency=1.1),
    ],
)
def test_free_computing_is_refused(make):
    with pytest.raises(UserError, match=r"hardware\.compute"):
        make()


def test_allocating_is_free_and_filling_writes():
    cost = Roofline("none", False, {"float32": 1e30}, 4.0, 0.0, None)  # an element a second
    x = torch.empty(10)
    assert seconds(lambda: torch.empty(100), cost) == seconds(lambda: torch.empty_like(x), cost) == 0.0
    assert seconds(lambda: torch.zeros_like(x), cost) == seconds(lambda: x.new_ones(10), cost) == 10.0


def attend(tensors, causal=False):
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.FLASH_ATTENTION):
        return torch.nn.functional.scaled_dot_product_attention(*tensors, is_causal=causal)


@pytest.mark.parametrize(("causal", "efficiency"), [(False, 1.0), (True, 1.0), (False, 0.5)])
def test_fused_attention_costs_its_flops(causal, efficiency):
    compute = Roofline("none", False, {"float32": 1.0}, 1e30, 0.0, None, attention_efficiency=efficiency)
    flops = 2 * (2 * 2 * 256 * 256 * 16)  # two products of (256 x 16) and (16 x 256), 2 heads
    tensors = torch.ones(3, 1, 2, 256, 16, requires_grad=True)
    expected_s = flops * (0.5 if causal else 1.0) / efficiency
    assert seconds(lambda: attend(tensors.detach(), causal), compute) == expected_s
    both_s = seconds(lambda: attend(tensors, causal).sum().backward(), compute)
    assert both_s == pytest.approx(3.5 * expected_s, rel=0.05)  # five products backward, and the sum's elements


def test_a_kernel_takes_time_to_start_and_a_view_launches_none():
    compute = replace(ROOFLINE, kernel_latency_s=1.0)
    x = torch.ones(4, 4)
    assert seconds(lambda: x + 1.0, compute) - seconds(lambda: x + 1.0) == pytest.approx(1.0)
    assert seconds(lambda: torch.empty(9), compute) == OVERHEAD  # what moves nothing has no kernel
    assert seconds(lambda: torch.ops.aten._unsafe_view(x, [16]), compute) == 0.0


def test_operators_of_backward_passes_cost_their_engine():
    compute, x = Roofline("none", False, {"float32": 1e30}, 1e30, 0.0, None, backward_overhead_s=1.0), torch.ones(())
    operators = 3  # grad * 2, grad * 2, and the sum of both
    assert seconds(lambda: x * 2 + x * 2, compute) == pytest.approx(0.0)
    x.requires_grad_()
    assert seconds(lambda: torch.autograd.grad(x * 2 + x * 2, x), compute) == pytest.approx(operators)


@pytest.fixture
def matmul_precision():
    before = torch.get_float32_matmul_precision()
    yield torch.set_float32_matmul_precision
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize(("precision", "dtype", "rate"), [
    ("highest", torch.float32, PEAK), ("high", torch.float32, 8 * PEAK), ("high", torch.float64, PEAK / 2),
])  # fmt: skip
def test_tensor_cores_multiply_float32_where_torch_may(matmul_precision, precision, dtype, rate):
    matmul_precision(precision)
    compute = replace(ROOFLINE, flops_per_s={**ROOFLINE.flops_per_s, "tf32": 8 * PEAK}, memory_bytes_per_s=1e30)
    a = torch.ones(100, 100, dtype=dtype)
    assert seconds(lambda: a @ a, compute) == pytest.approx(OVERHEAD + 2 * 100**3 / rate)
    assert seconds(lambda: a + a, compute) == pytest.approx(OVERHEAD + 100**2 / ROOFLINE._reached(dtype, None))
    without = replace(compute, flops_per_s=ROOFLINE.flops_per_s)
    assert seconds(lambda: a @ a, without) == seconds(lambda: a @ a, replace(ROOFLINE, memory_bytes_per_s=1e30))


@pytest.mark.parametrize(("allowed", "rate"), [(True, 8 * PEAK), (False, PEAK)])
def test_convolutions_have_a_switch_of_their_own(monkeypatch, allowed, rate):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", allowed)
    compute = Roofline("none", False, {"float32": PEAK, "tf32": 8 * PEAK}, 1e30, 0.0, None)
    images, kernel = torch.ones(1, 1, 8, 8), torch.ones(1, 1, 1, 1)
    assert seconds(lambda: torch.conv2d(images, kernel), compute) == pytest.approx(2 * 64 / rate)


def test_flops_are_those_that_torch_counts():
    def step():
        convolutions(torch.ones(2, 3, 8, 8)).sum().backward()
        query, key, value = torch.ones(3, 2, 4, 8, 16, requires_grad=True)
        torch.nn.functional.scaled_dot_product_attention(query, key, value).sum().backward()
        torch.baddbmm(torch.ones(2, 3, 4), torch.ones(2, 3, 5), torch.ones(2, 5, 4))

    convolutions = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Conv2d(4, 2, 3, stride=2))
    counted, charged_s = FlopCounterMode(display=False), []
    with counted:
        step()
    with Counted("none", False, {"float32": 1.0}, 1e30, 0.0, None).watch(
        lambda _, run_s: charged_s.append(run_s), int, bool
    ):
        step()
    assert sum(charged_s) == counted.get_total_flops()


class Counted(Roofline):
    """Charges only the operators that torch counts."""

    def operator_s(self, operator, inputs, options, output):
        counts = operator.overloadpacket in flop_registry
        return super().operator_s(operator, inputs, options, output) if counts else 0.0


def test_moving_values_needs_no_peak_of_their_type():
    def cast(worker):
        torch.ones(4).to(torch.bfloat16)

    assert execute(cast, 1, compute=ROOFLINE).failure is None


@pytest.mark.parametrize(
    ("function", "flops"),
    [
        (torch.linalg.cholesky, 1000**3 / 3),
        (torch.linalg.qr, 4 * (1000**3 - 1000**3 / 3)),
        (torch.linalg.inv, 2 * 1000**3),
        (torch.linalg.svd, 22 * 1000**3),
        (torch.linalg.eigh, 9 * 1000**3),
        (lambda matrix: torch.linalg.solve(matrix, matrix[:, :10]), 2 * 1000**3 / 3 + 20 * 1000**2),
    ],
)
def test_linear_algebra_costs_its_flops(function, flops):
    matrix = torch.eye(1000)
    # other operators that it calls have bytes alone
    assert seconds(lambda: function(matrix)) == pytest.approx(flops / PEAK, rel=0.3)
    assert seconds(lambda: function(matrix)) >= flops / PEAK


def test_a_sparse_tensor_has_the_bytes_of_its_parts():
    sparse = torch.eye(1000).to_sparse()
    bytes_moved = 2 * 1000 * (4 + 2 * 8)
    assert seconds(lambda: sparse.clone()) == pytest.approx(OVERHEAD + bytes_moved / RATE, rel=0.2)


TABLE, ROWS, X, Y = torch.ones(1000, 4), torch.arange(10), torch.ones(100), torch.ones(100)


@pytest.mark.parametrize(
    ("function", "moved_bytes"),
    [
        (lambda: torch.nn.functional.embedding(ROWS, TABLE), 10 * 8 + 2 * 160),
        (lambda: TABLE[ROWS], 10 * 8 + 2 * 160),
        (lambda: TABLE.index_select(0, ROWS), 10 * 8 + 2 * 160),
        (lambda: TABLE.gather(0, ROWS[:, None]), 10 * 8 + 2 * 40),
        (lambda: TABLE.take(ROWS), 10 * 8 + 2 * 40),
        (lambda: X[:2].index_select(0, torch.ops.aten.remainder(ROWS, 2)), 2 * 80 + 80 + 8 + 40),  # two that stay near
        (lambda: X.clone(), 800),
        (lambda: X.copy_(Y), 800),
        (lambda: X.fill_(1.0), 400),
        (lambda: X.zero_(), 400),
        (lambda: X.normal_(), 400),
        (lambda: torch.add(X, Y), 1200),
        (lambda: torch.add(X, Y, out=torch.empty(100)), 1200),
        (lambda: torch.add(X, Y, out=X), 1200),
        (lambda: X.add_(Y), 1200),
        (lambda: torch._foreach_add_([X], [Y]), 1200),
        (lambda: torch._foreach_copy_([X], [Y]), 800),
    ],
)
def test_bytes_are_those_read_and_those_written(function, moved_bytes):
    cost = Roofline("none", False, {"float32": 1e30}, 1.0, 0.0, None)  # a byte a second
    with torch.no_grad():
        assert seconds(function, cost) == moved_bytes
