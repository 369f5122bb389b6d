"""Policies and their proof by the kernel."""

import mmap
import platform
from dataclasses import replace

import pytest
import torch

from hardware.real.placement import allocate, apply_policy, prove
from hardware.real.topology import Core, Topology, read_topology
from harness.errors import UserError
from tests.hardware.toys import (
    Counts,
    ReportsCPUs,
    Wild,
    WildNowhere,
    WildOddNode,
    WildOnNodes,
    WildTwice,
    WildWide,
    machine,
    no_progress,
    program,
)

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


def test_several_nodes_may_be_bound_to():
    tensor, applied = allocate((ELEMENTS,), torch.float64, f"bind:{','.join(map(str, NODES))}", NODES)
    assert applied.startswith("bind:")
    tensor.fill_(1.0)
    assert sum(prove(tensor).values()) == PAGES


def shared_on_nodes(native, **settings):
    """The execution of `WildOnNodes` on two workers: what the manifest says, and what the workers say."""
    trained = program(WildOnNodes, problem=Counts, native=native, budget=4, milestones=[4], batch_size=4)
    execution = machine(2, **settings).execute(trained, no_progress)
    assert execution.failure is None
    return execution.facts, execution.observations[-1].parameters.tolist()


@pytest.mark.parametrize("native", [True, False])
def test_virtual_sockets_are_bound_to_the_node_beneath(native, monkeypatch):
    only = tuple(replace(core, node=0, socket=0) for core in read_topology().cores)
    monkeypatch.setattr("hardware.real.machine.read_topology", lambda: Topology(only))
    facts, nodes = shared_on_nodes(native, num_nodes=2)
    for node in (0, 1):
        expected = {"policy": "bind:0", "node": node, "virtual_socket": True, "pages_by_node": {"0": PAGES}}
        assert facts["placement"][f"of {node}"] == expected
    assert list(facts["placement"]) == ["of 0", "of 1", "nodes"]
    assert nodes == [0.0, 1.0, 2.0]
    assert facts["nodes"] == [{"numa_nodes": [0], "workers": [0]}, {"numa_nodes": [0], "workers": [1]}]


@pytest.mark.parametrize("native", [True, False])
def test_workers_that_are_not_pinned_sit_on_one_node(native):
    facts, nodes = shared_on_nodes(native, num_nodes=2, pinning=False)
    assert nodes == [0.0, 0.0, 1.0]
    assert facts["nodes"] == [{"numa_nodes": NODES[:2], "workers": [0, 1]}]


def test_nodes_are_numbered_by_the_sockets_that_hold_workers(monkeypatch):
    """Two threads of each worker fit only the second socket of one and two cores: there the one worker sits."""
    cores = Core((0,), 3, 0), Core((1,), 5, 1), Core((2,), 5, 1)
    monkeypatch.setattr("hardware.real.machine.read_topology", lambda: Topology(cores))
    one, three = machine(1, intra_op_threads=2)._crew, machine(3)._crew
    assert (one.cpus, one.nodes, one.num_nodes, one.policy(0)) == ([(1, 2)], [0], 1, "bind:5")
    assert (three.nodes, three.num_nodes, three.policy(0), three.policy(1)) == ([0, 1, 1], 2, "bind:3", "bind:5")


def test_a_virtual_socket_may_lie_across_nodes(monkeypatch):
    cores = tuple(Core((cpu,), cpu // 3, cpu // 3) for cpu in range(6))
    monkeypatch.setattr("hardware.real.machine.read_topology", lambda: Topology(cores))
    crew = machine(6, num_nodes=3)._crew
    assert [crew.policy(node) for node in range(3)] == ["bind:0", "bind:0,1", "bind:1"]


@pytest.mark.parametrize(("policy", "nodes", "num_nodes"), [("spread", [0, 1], 2), ("fill", [0, 0], 1)])
def test_filling_leaves_a_node_without_workers(monkeypatch, policy, nodes, num_nodes):
    cores = tuple(Core((cpu,), cpu // 2, cpu // 2) for cpu in range(4))
    monkeypatch.setattr("hardware.real.machine.read_topology", lambda: Topology(cores))
    crew = machine(2, pin_policy=policy)._crew
    assert (crew.nodes, crew.num_nodes) == (nodes, num_nodes)


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize(
    ("algorithm", "words"),
    [
        (WildTwice, "worker.shared('model') must be given each name once, got 'model'"),
        (WildNowhere, "worker.shared('lost') must be given a node from 0 to 1, or None, got 2"),
        (WildOddNode, "all must share the same tensors"),
    ],
)
def test_what_cannot_be_shared_is_refused(native, algorithm, words):
    failure = machine(2, num_nodes=2).execute(program(algorithm, problem=Counts, native=native), no_progress).failure
    assert isinstance(failure, UserError) and words in str(failure)


@pytest.mark.numa
@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("memory_policy", ["first_touch", "interleave", "bind:0"])
def test_two_nodes_hold_what_is_shared_on_them(native, memory_policy):
    facts, nodes = shared_on_nodes(native, num_nodes=2, strict=True, memory_policy=memory_policy)
    for node in (0, 1):
        expected = {"policy": f"bind:{node}", "node": node, "virtual_socket": False, "pages_by_node": {f"{node}": 64}}
        assert facts["placement"][f"of {node}"] == expected
    assert nodes == [0.0, 1.0, 2.0]


@pytest.mark.numa
@pytest.mark.parametrize("policy", ["spread", "fill"])
def test_two_nodes_are_counted_by_the_cores_in_use(policy):
    cores = read_topology().cores
    crew = machine(2, num_nodes=2, strict=True, pin_policy=policy)._crew
    used = [next(core.node for core in cores if set(cpus) <= set(core.cpus)) for cpus in crew.cpus]
    assert [(crew.policy(node)) for node in crew.nodes] == [f"bind:{node}" for node in used]
    one_is_enough = sum(core.node == NODES[0] for core in cores) >= 2
    assert crew.num_nodes == (1 if policy == "fill" and one_is_enough else 2)


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
