"""What it costs where rows lie, and in which order they are visited."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from composed import execution
from simulated_ranks import Ranks, machine, samples, shared_memory

from hardware.simulated.compute import Fixed, Roofline
from harness.data import Partitioned, Replicated, ReplicatedPerNode, ShardedPerNode
from harness.kernels.sparse_linear import SQUARES, SparseLinearKernel
from harness.kernels.sparse_rows import SparseRows
from harness.program import Program
from tests.hardware.toys import ToyKernel

ROWS, NONZEROS, NONZERO_S = 40, 3, 1e-9
SAMPLE_BYTES, NONZERO_BYTES = 8 + 4, 4 + 4  # where it begins and its label; index and value, of float32
ROW_BYTES = SAMPLE_BYTES + NONZEROS * NONZERO_BYTES
COMPUTE = Roofline("none", False, {"float32": 1e30}, 1e30, 0.0, NONZERO_S)
LOCAL, REMOTE, SLOWER = 1e10, 4e9, 1 / 4e9 - 1 / 1e10
NUMA = shared_memory(
    cores_per_socket=8, outstanding_misses=4, local_bytes_per_s=LOCAL, remote_bytes_per_s=REMOTE, sequential_rows=0.5
)
INDICES = torch.arange(NONZEROS, dtype=torch.int32).repeat(ROWS)
KERNEL = SparseLinearKernel(
    SparseRows(torch.arange(ROWS + 1) * NONZEROS, INDICES, torch.ones(len(INDICES)), NONZEROS),
    torch.ones(ROWS),
    SQUARES,
)


def times(data, memory, workers=2, epochs=1, kernel=KERNEL, share=False, compute=COMPUTE, size=NONZEROS):
    """When each rank has done with its visits, on a model of its own, or the shared one."""
    seen = {}

    def body(worker):
        model = worker.shared("model", torch.zeros(size)) if share else torch.zeros(size)
        for visited, part in worker.visits(kernel, 5):
            worker.run(visited, model, part, 0.1)
        seen[worker.rank] = worker.clock.now()

    budget = epochs * ROWS
    program = Program(Ranks(0.1, 1, body), samples(ROWS), data, 0, budget, (budget,))
    done = machine(workers, compute, memory=memory).execute(program, lambda samples: None)
    assert done.failure is None
    return [seen[rank] for rank in range(workers)], done


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize(
    ("policy", "node", "remote"),
    [
        ("first_touch", None, 0.5),  # rank 0's rows are local, rank 1's are not
        ("bind:1", None, 0.5),
        ("interleave", None, 0.5),  # of everybody's rows, half are
        ("first_touch", ShardedPerNode, 0.0),
        ("interleave", ReplicatedPerNode, 0.0),
    ],
)
def test_a_byte_of_another_socket_s_rows_takes_longer(share, policy, node, remote):
    memory = replace(NUMA, memory_policy=policy)
    finish_s, _ = times((node or Partitioned)("index"), memory, epochs=10, share=share)
    work_s = 10 * ROWS * NONZEROS * NONZERO_S
    total = work_s + 10 * ROWS * ROW_BYTES * SLOWER * remote
    if policy == "interleave" or node:
        assert sum(finish_s) == pytest.approx(total, rel=0.03)  # the last batches do not end together
    else:  # the worker whose rows are local does more
        fast, slow = (1 / (NONZEROS * NONZERO_S + extra) for extra in (0.0, ROW_BYTES * SLOWER))
        assert max(finish_s) == pytest.approx(10 * ROWS / (fast + slow), rel=0.05)


def test_replicated_rows_lie_where_the_policy_says():
    near, far = (times(Replicated("index"), replace(NUMA, memory_policy=f"bind:{k}"), workers=1)[0][0] for k in (0, 1))
    assert near == pytest.approx(ROWS * NONZEROS * NONZERO_S)
    assert far == pytest.approx(near + ROWS * ROW_BYTES * SLOWER)


def test_a_kernel_whose_rows_cannot_be_moved_pays_for_the_coordinates_it_names():
    toy = ToyKernel(torch.zeros(ROWS))
    near, far = (
        times(Partitioned("index"), replace(NUMA, memory_policy=f"bind:{k}"), 1, kernel=toy, size=1)[0][0]
        for k in (0, 1)
    )
    assert far - near == pytest.approx(ROWS * (8 + 4) * SLOWER)


@pytest.mark.parametrize("share", [False, True])
def test_rows_in_storage_order_come_sooner(share):
    stored, random = (times(Partitioned(order), NUMA, 1, share=share)[0][0] for order in ("storage", "index"))
    assert (stored, random) == pytest.approx((ROWS * NONZEROS * NONZERO_S / 2, ROWS * NONZEROS * NONZERO_S))


def test_a_fixed_cost_has_no_part_that_order_could_save():
    stored, random = (
        times(Partitioned(order), NUMA, 1, compute=Fixed("none", False, 1.0))[0][0] for order in ("storage", "index")
    )
    assert stored == random == ROWS


@pytest.mark.parametrize(("policy", "byte_s"), [("bind:0", 1 / LOCAL), ("bind:1", 1 / REMOTE)])
def test_permuting_costs_the_bytes_that_are_read_and_written(policy, byte_s):
    epochs, memory = 3, replace(NUMA, memory_policy=policy)
    (finish_s,), _ = times(Partitioned("permuted"), memory, 1, epochs)
    (stored_s,), _ = times(Partitioned("storage"), memory, 1, epochs)
    assert finish_s - stored_s == pytest.approx(epochs * ROWS * 2 * ROW_BYTES * byte_s)


def test_workers_share_the_work_of_permuting_and_wait_for_each_other():
    (alone,), _ = times(Partitioned("permuted"), replace(NUMA, sockets=1, memory_policy="bind:0"), 1)
    together, done = times(Partitioned("permuted"), replace(NUMA, sockets=1, memory_policy="bind:0"), 4)
    assert max(together) == pytest.approx(alone / 4, rel=0.01)
    _, done = times(Partitioned("permuted"), NUMA, 2)
    assert done.workers[0].idle_s == pytest.approx(ROWS / 2 * 2 * ROW_BYTES * SLOWER)  # rank 1 copies across
    assert done.workers[1].idle_s == pytest.approx(0.0, abs=1e-12)


def test_a_copy_of_each_node_is_permuted_by_the_workers_of_that_node():
    once, twice = (times(data("permuted"), NUMA, 2)[0] for data in (ShardedPerNode, ReplicatedPerNode))
    assert max(twice) - max(once) == pytest.approx(ROWS / 2 * 2 * ROW_BYTES / LOCAL)


def test_the_manifest_says_where_rows_lie():
    def placement(data, policy):
        done = times(data, replace(NUMA, memory_policy=policy))[1]
        return done.facts["placement"]

    assert placement(Partitioned("index"), "interleave") == {"rows": {"policy": "interleave"}}
    assert placement(Partitioned("index"), "bind:1") == {"rows": {"node": 1}}
    nodes = {f"rows of node {node}": {"node": node} for node in (0, 1)}
    assert placement(ShardedPerNode("storage"), "interleave") == nodes
    assert placement(ReplicatedPerNode("storage"), "first_touch") == nodes


@pytest.mark.parametrize(
    ("policy", "node", "homes"),
    [
        ("first_touch", None, [0] * 256),
        ("bind:1", None, [1] * 256),
        ("bind:1", 0, [0] * 256),
        ("interleave", None, ([0] * 64 + [1] * 64) * 2),  # 64 lines to a page
        ("interleave", 1, [1] * 256),
    ],
)
def test_lines_of_a_model_lie_where_the_policy_says(policy, node, homes):
    assert replace(NUMA, memory_policy=policy).homes(256, node).tolist() == homes


def test_a_cold_model_comes_from_the_pages_of_all_sockets():
    memory = replace(
        NUMA, memory_policy="interleave", local_memory_s=80e-9, remote_memory_s=140e-9, outstanding_misses=1
    )

    def fetch_s(worker, model):
        before_s = worker.clock.now()
        model.sum()
        seen[worker.rank] = worker.clock.now() - before_s

    seen = {}

    def body(worker):
        fetch_s(worker, worker.shared("model", torch.zeros(4 * 1024)))  # 4 pages

    program = Program(Ranks(0.1, 1, body), samples(1), Partitioned("index"), 0, 1, (1,))
    done = machine(1, COMPUTE, memory=memory).execute(program, lambda samples: None)
    assert done.failure is None and seen[0] == pytest.approx(128 * 80e-9 + 128 * 140e-9)
    assert done.facts["placement"] == {"model": {"policy": "interleave"}}


def test_four_sockets_run_sixty_four_workers_sooner_on_rows_of_their_own():
    problem = ["problem=svm", "problem.synthetic_samples=2000", "budget.epochs=1", "budget.observations=1"]
    problem += ["problem.synthetic_features=1000000", "problem.synthetic_popularity=uniform"]  # nobody fights for lines
    many = ["algorithm=hogwild", "hardware=sim_numa4", "hardware.num_workers=64", "tracking=none"]
    shared, own = (execution(*many, *problem, f"data={data}") for data in ("partitioned", "sharded_per_node"))
    assert own.failure is None and own.run_s < shared.run_s
    assert np.bincount(own.facts["sockets"]).tolist() == [16] * 4
