"""Policies and their proof by the kernel."""

import mmap
import platform

import pytest
import torch

from hardware.real.placement import allocate, apply_policy, prove
from hardware.real.topology import read_topology
from tests.hardware.toys import ReportsCPUs, Wild, WildWide, machine, no_progress, program

PAGES = 64
ELEMENTS = PAGES * mmap.PAGESIZE // 8
NODES = sorted({core.node for core in read_topology().cores})


@pytest.mark.parametrize("policy", ["first_touch", "interleave", "bind:0"])
def test_pages_lie_where_they_must(policy):
    tensor, applied = allocate((ELEMENTS,), torch.float64, policy, [0])
    assert applied == policy
    assert prove(tensor) == {"untouched": PAGES}
    tensor.fill_(1.0)
    assert prove(tensor) == {"0": PAGES}
    assert float(tensor.sum()) == ELEMENTS


def test_an_empty_tensor_has_no_pages():
    tensor, applied = allocate((0, 3), torch.float32, "interleave", [0])
    assert (applied, tuple(tensor.shape), prove(tensor)) == ("interleave", (0, 3), {})


def test_a_refusal_is_recorded():
    tensor, _ = allocate((ELEMENTS,), torch.float64, "first_touch", [0])
    assert apply_policy(tensor, "bind:1000", [0]).startswith("unproved: ")


def test_an_unknown_processor_is_recorded(monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    tensor, applied = allocate((4,), torch.float32, "interleave", [0])
    assert applied == "unproved: mbind is not known on riscv64"
    assert prove(tensor) == "unproved: move_pages is not known on riscv64"
    assert tensor.fill_(2.0).tolist() == [2.0] * 4


@pytest.mark.numa
@pytest.mark.parametrize(
    ("policy", "expected"),
    [("interleave", {"0": PAGES // 2, "1": PAGES // 2}), ("bind:0", {"0": PAGES}), ("bind:1", {"1": PAGES})],
)
def test_two_nodes(policy, expected):
    tensor, _ = allocate((ELEMENTS,), torch.float64, policy, NODES)
    tensor.fill_(1.0)
    assert prove(tensor) == expected


@pytest.mark.numa
@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize(("policy", "expected"), [("bind:1", {"1": 1}), ("first_touch", {"0": 1})])
def test_two_nodes_hold_the_shared_model(native, policy, expected):
    execution = machine(2, num_nodes=2, memory_policy=policy).execute(program(Wild, native=native), no_progress)
    assert execution.failure is None
    assert execution.facts["placement"]["model"] == {"policy": policy, "pages_by_node": expected}


@pytest.mark.numa
@pytest.mark.parametrize("native", [True, False])
def test_two_nodes_hold_half_each_of_what_is_interleaved(native):
    trained = program(WildWide, native=native)
    execution = machine(2, num_nodes=2, memory_policy="interleave").execute(trained, no_progress)
    expected = {"0": PAGES // 2, "1": PAGES // 2}
    assert execution.facts["placement"]["wide"] == {"policy": "interleave", "pages_by_node": expected}


@pytest.mark.numa
def test_two_nodes_pin_a_worker_each():
    execution = machine(2, num_nodes=2, strict=True).execute(program(ReportsCPUs), no_progress)
    cores = read_topology().cores
    masks = [int(mask) for mask in execution.observations[-1].parameters]
    nodes = [{core.node for core in cores if mask & sum(1 << cpu for cpu in core.cpus)} for mask in masks]
    assert nodes == [{0}, {1}]
    assert execution.tags == []
