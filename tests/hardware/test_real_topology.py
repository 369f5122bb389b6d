"""Topology from fake kernel trees, and the pinning computed from it."""

import os

import pytest

from hardware.real.topology import Core, Topology, parse_cpu_list, read_topology
from harness.errors import UserError
from tests.hardware.toys import machine


@pytest.fixture
def tree(tmp_path):
    """Writes a fake /sys/devices/system: nodes as lists of cores, a core as its hardware threads."""

    def write(nodes):
        for number, cores in enumerate(nodes):
            cpus = [cpu for core in cores for cpu in core]
            folder = tmp_path / "node" / f"node{number}"
            folder.mkdir(parents=True)
            (folder / "cpulist").write_text(",".join(map(str, cpus)) + "\n")
            for core in cores:
                for cpu in core:
                    topology = tmp_path / "cpu" / f"cpu{cpu}" / "topology"
                    topology.mkdir(parents=True)
                    (topology / "thread_siblings_list").write_text(",".join(map(str, core)) + "\n")
        return tmp_path

    return write


def cpus_of(topology, num_workers, **options):
    return [seat.cpus for seat in topology.seats(num_workers, **options)]


TWO_NODES = [[(0, 4), (1, 5)], [(2, 6), (3, 7)]]
FOUR_NODES = [[(0,), (1,)], [(2,), (3,)], [(4,), (5,)], [(6,), (7,)]]


@pytest.mark.parametrize(("text", "cpus"), [("0-3\n", [0, 1, 2, 3]), ("0,2-3,8", [0, 2, 3, 8]), ("\n", []), ("5", [5])])
def test_parses_the_kernels_lists(text, cpus):
    assert parse_cpu_list(text) == cpus


def test_two_nodes_spread_round_robin_cores_before_siblings(tree):
    topology = read_topology(tree(TWO_NODES), set(range(8)))
    assert (topology.num_sockets, topology.num_cores, topology.virtual) == (2, 4, False)
    assert cpus_of(topology, 9) == [(0,), (2,), (1,), (3,), (4,), (6,), (5,), (7,), (0,)]


def test_workers_with_several_threads_stay_on_one_socket(tree):
    topology = read_topology(tree(TWO_NODES), set(range(8)))
    assert cpus_of(topology, 2, cpus_per_worker=2) == [(0, 1), (2, 3)]
    assert cpus_of(topology, 1, cpus_per_worker=8) == [(0, 1, 4, 5)]


def test_four_nodes(tree):
    topology = read_topology(tree(FOUR_NODES), set(range(8)))
    assert cpus_of(topology, 4) == [(0,), (2,), (4,), (6,)]
    two = topology.with_sockets(2)
    assert {core.node for core in two.cores} == {0, 1} and not two.virtual


def test_two_nodes_are_filled_one_after_the_other_cores_before_siblings(tree):
    topology = read_topology(tree(TWO_NODES), set(range(8)))
    filled = [(0,), (1,), (2,), (3,), (4,), (5,), (6,), (7,)]
    assert cpus_of(topology, 10, policy="fill") == [*filled, (0,), (1,)]
    assert [seat.socket for seat in topology.seats(6, policy="fill")] == [0, 0, 1, 1, 0, 0]


def test_filling_keeps_workers_with_several_threads_on_one_socket(tree):
    topology = read_topology(tree(TWO_NODES), set(range(8)))
    assert cpus_of(topology, 4, cpus_per_worker=2, policy="fill") == [(0, 1), (2, 3), (4, 5), (6, 7)]


@pytest.mark.parametrize(
    ("policy", "expected"),
    [("spread", [(0,), (1,), (2,), (3,), (4,), (5,)]), ("fill", [(0,), (1,), (2,), (3,), (4,), (5,)])],
)
def test_no_second_thread_is_used_while_any_socket_has_a_free_core(tree, policy, expected):
    """Sockets of one and three cores, the first core and the first of the other three with two threads."""
    topology = read_topology(tree([[(0, 4)], [(1, 5), (2,), (3,)]]), set(range(6)))
    assert cpus_of(topology, 6, policy=policy) == expected


@pytest.mark.parametrize(("policy", "expected"), [("spread", [0, 1, 2, 3]), ("fill", [0, 0, 1, 1])])
def test_four_nodes_by_policy(tree, policy, expected):
    topology = read_topology(tree(FOUR_NODES), set(range(8)))
    assert [seat.socket for seat in topology.seats(4, policy=policy)] == expected


def test_only_allowed_cpus_count(tree):
    topology = read_topology(tree(TWO_NODES), {4, 5, 6})
    assert topology.cores == (Core((4,), 0, 0), Core((5,), 0, 0), Core((6,), 1, 1))


def test_a_node_without_allowed_cpus_is_not_a_socket(tree):
    topology = read_topology(tree(TWO_NODES), {2, 3})
    assert topology.cores == (Core((2,), 1, 0), Core((3,), 1, 0))


def test_a_machine_without_numa_folders_is_one_node(tmp_path):
    assert read_topology(tmp_path, {0, 1}).cores == (Core((0,), 0, 0), Core((1,), 0, 0))


def test_virtual_sockets_split_the_cores():
    one_node = Topology(tuple(Core((cpu,), 0, 0) for cpu in range(4)))
    split = one_node.with_sockets(2)
    assert split.virtual and cpus_of(split, 4) == [(0,), (2,), (1,), (3,)]


def test_one_core_is_shared_by_virtual_sockets():
    split = Topology((Core((0,), 0, 0),)).with_sockets(2)
    assert split.virtual and (split.num_sockets, split.num_cores) == (2, 1)
    assert cpus_of(split, 2) == [(0,), (0,)]


def replaced(monkeypatch, cores):
    monkeypatch.setattr("hardware.real.machine.read_topology", lambda: Topology(cores))


ONE_NODE = tuple(Core((cpu,), 0, 0) for cpu in range(2))


def test_virtual_sockets_are_said(monkeypatch):
    replaced(monkeypatch, ONE_NODE)
    assert machine(num_nodes=2).check() == [
        "hardware.num_nodes=2: this machine has 1 NUMA node; its 2 cores are split into 2 virtual sockets "
        "(hardware.strict=true refuses this)"
    ]
    replaced(monkeypatch, ONE_NODE[:1])
    assert "1 core, which 2 virtual sockets share" in machine(1, num_nodes=2).check()[0]


def test_oversubscription_is_said(monkeypatch):
    replaced(monkeypatch, ONE_NODE)
    assert machine(2).check() == []
    assert machine(3).check() == ["hardware.num_workers=3: 3 workers share 2 cores (hardware.strict=true refuses this)"]
    with_server = "hardware.num_workers=2: 2 workers and 1 server share 2 cores (hardware.strict=true refuses this)"
    assert machine(3).check(num_servers=1) == [with_server]
    assert "2 workers with 2 threads each share 2 cores" in machine(2, intra_op_threads=2).check()[0]


@pytest.mark.parametrize("settings", [{"num_nodes": 2}, {"num_workers": 3}])
def test_strict_refuses(monkeypatch, settings):
    replaced(monkeypatch, ONE_NODE)
    with pytest.raises(UserError, match=r"hardware\.strict=true refuses this"):
        machine(strict=True, **settings).check()


def test_offers_a_worker_per_core(monkeypatch, tree):
    replaced(monkeypatch, read_topology(tree(TWO_NODES), set(range(8))).cores)
    assert machine(None).workers_offered == 4
    assert machine(None, num_nodes=1).workers_offered == 2
    assert machine(None, intra_op_threads=3).workers_offered == 1


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("num_nodes", 0),
        ("intra_op_threads", 0),
        ("timeout_s", 0.0),
        ("memory_policy", "nearby"),
        ("pin_policy", "scatter"),
    ],
)
def test_refuses_senseless_settings(setting, value):
    with pytest.raises(UserError, match=rf"hardware\.{setting} must be"):
        machine(**{setting: value})


def test_a_policy_without_pinning_is_said_to_have_no_effect(monkeypatch):
    replaced(monkeypatch, ONE_NODE)
    (notice,) = machine(2, pinning=False, pin_policy="fill").check()
    assert notice.startswith("hardware.pin_policy=fill has no effect: hardware.pinning=false")
    assert machine(2, pinning=False).check() == []


def test_refuses_memory_on_a_node_that_is_not_there():
    with pytest.raises(UserError, match=r"hardware\.memory_policy must bind .*, got 'bind:77'"):
        machine(memory_policy="bind:77").check()


def test_this_machine_is_read():
    topology = read_topology()
    assert {cpu for core in topology.cores for cpu in core.cpus} == os.sched_getaffinity(0)


@pytest.mark.numa
def test_two_real_nodes():
    topology = read_topology()
    assert topology.num_sockets >= 2 and not topology.with_sockets(2).virtual
    assert machine(None, num_nodes=2, strict=True).check() == []
