"""Rows that are moved: parts, copies in another order, and whose memory they lie in."""

from dataclasses import replace

import pytest
import torch
from composed import execution, setup

from hardware.real.topology import read_topology
from harness.data import Partitioned
from harness.errors import UserError
from harness.kernels.sparse_linear import LOGISTIC, SparseLinearKernel
from harness.problems.synthetic import sparse_rows

SAMPLES, FEATURES = 60, 40
ROWS = ["problem=logistic_regression", "problem.synthetic_samples=1000", "problem.synthetic_features=300"]
ONCE = ["budget.epochs=3", "budget.observations=3", "tracking=none", "problem.dtype=float64"]
PER_NODE = ["sharded_per_node", "replicated_per_node"]


@pytest.fixture(scope="module")
def kernel():
    return SparseLinearKernel(*sparse_rows(SAMPLES, FEATURES, 5, 0.1, 0), LOGISTIC, l2=0.1)


def trained(kernel, samples):
    weights = torch.zeros(FEATURES, dtype=torch.float64)
    kernel(weights, torch.as_tensor(samples, dtype=torch.int32), 0.2)
    return weights


def test_a_part_of_the_rows_is_trained_on_as_the_rows_are(kernel):
    part = kernel.over(kernel.row_data.part(20, 50))
    assert len(part.row_data) == 30 and part.row_data.indptr[0] == 0
    assert torch.equal(trained(part, range(30)), trained(kernel, range(20, 50)))


@pytest.mark.parametrize("workers", [1, 2, 3, 7, 61])
@pytest.mark.parametrize(("first", "stop"), [(0, SAMPLES), (20, 50)])
def test_gathered_rows_are_trained_on_in_storage_order_as_the_rows_in_that_order(kernel, workers, first, stop):
    data, count = kernel.row_data, stop - first
    rows = first + torch.randperm(count, generator=torch.Generator().manual_seed(1), dtype=torch.int32)
    target = data.apply(lambda name, tensor: tensor.clone())
    for worker in reversed(range(workers)):
        data.gather_into(target, rows, count * worker // workers, count * (worker + 1) // workers, first)
    found = trained(kernel.over(target), range(first, stop))
    assert torch.equal(found, trained(kernel, rows)) and not torch.equal(found, trained(kernel, range(first, stop)))


def test_bytes_of_a_row_are_those_of_its_arrays(kernel):
    assert kernel.row_data.sample_bytes == 8 + 8  # where it begins, and its label, of float64
    assert kernel.row_data.nonzero_bytes == 4 + 8


def run(*overrides):
    done = execution("algorithm=hogwild", *ROWS, *ONCE, *overrides)
    assert done.failure is None
    return done


@pytest.mark.parametrize("hardware", ["cpu", "sim_numa2"])
@pytest.mark.parametrize("data", ["partitioned", *PER_NODE])
def test_one_worker_gets_the_weights_of_index_wherever_rows_lie(hardware, data):
    one = ["hardware.num_workers=1", f"hardware={hardware}"]
    expected = run(*one).observations
    for order in ("index", "permuted"):
        found = run(*one, f"data={data}", f"data.order={order}").observations
        for mine, theirs in zip(found, expected, strict=True):
            assert torch.equal(mine.parameters, theirs.parameters)


def test_sequential_sgd_gets_the_weights_of_index():
    one = ["algorithm=sgd", "hardware=cpu", "tracking=none"]
    first, second = (execution(*ROWS, *ONCE, *one, f"data.order={order}") for order in ("index", "permuted"))
    assert torch.equal(first.observations[-1].parameters, second.observations[-1].parameters)


@pytest.mark.parametrize("hardware", ["numa2", "sim_numa2"])
@pytest.mark.parametrize("workers", [2, 3, 5])
@pytest.mark.parametrize("epochs", [0.3, 2.5])
@pytest.mark.parametrize("data", ["partitioned", *PER_NODE])
@pytest.mark.parametrize("order", ["index", "permuted"])
def test_many_workers_spend_the_budget_exactly(hardware, workers, epochs, data, order):
    many = [f"hardware={hardware}", f"hardware.num_workers={workers}", f"budget.epochs={epochs}"]
    done = run(*many, f"data={data}", f"data.order={order}")
    assert done.observations[-1].samples == round(epochs * 900)
    assert done.observations[-1].parameters.abs().sum() > 0


def test_simulated_workers_visit_the_rows_of_their_node_each_once_an_epoch(monkeypatch):
    from harness.worker import Worker

    visited, run_kernel = {}, Worker.run

    def remember(worker, kernel, model, samples, *others):
        labels = kernel.rows.values[kernel.indptr[samples.long()]]  # of float64: no two rows begin alike
        visited.setdefault(worker.node, []).extend(labels.tolist())
        run_kernel(worker, kernel, model, samples, *others)

    monkeypatch.setattr(Worker, "run", remember)
    seen = []
    for order in ("index", "permuted"):
        visited.clear()
        run("hardware=sim_numa2", "data=sharded_per_node", f"data.order={order}")
        assert {node: len(rows) for node, rows in visited.items()} == {0: 3 * 450, 1: 3 * 450}
        assert not set(visited[0]) & set(visited[1])
        for rows in visited.values():
            assert {rows.count(row) for row in set(rows)} == {3}
        seen.append({node: set(rows) for node, rows in visited.items()})
    assert seen[0] == seen[1]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ["data.order=permuted", "algorithm=all_reduce"],
            "data.order=permuted moves the rows of a native kernel, and algorithm=all_reduce has none: use data.order=",
        ),
        (
            ["data=sharded_per_node", "algorithm.batch_size=2"],
            "algorithm=hogwild runs one only with algorithm.batch_size=1, got 2: use data=partitioned",
        ),
        (["data=sharded_per_node", "algorithm=svrg"], "algorithm=svrg keeps a slope per sample, .* data=partitioned"),
        (
            ["data.order=permuted", "algorithm=dual_coordinate_descent", "problem.l2=0.1"],
            "algorithm=dual_coordinate_descent keeps a dual variable per sample, .* use data.order=index",
        ),
        (
            ["data.order=permuted", "algorithm=coordinate_descent", "problem.l2=0.1"],
            "algorithm=coordinate_descent visits columns, not rows: use data.order=index",
        ),
        (
            ["data=sharded_per_node", "algorithm=sgd", "hardware=sim_ethernet"],
            r"data=sharded_per_node needs memory that all workers share, which hardware=sim_ethernet does not have: "
            r"use data=partitioned, or hardware=cpu\|numa2\|sim_cpu\|sim_numa2\|sim_numa4",
        ),
        (["data=replicated", "data.order=permuted"], "data.order must be index or storage with data=replicated"),
    ],
)
def test_rows_that_cannot_be_moved_are_refused(overrides, words):
    with pytest.raises(UserError, match=words):
        setup(*ROWS, "algorithm=hogwild", "hardware=cpu", *overrides)


@pytest.mark.parametrize(
    ("algorithm", "words"),
    [
        ("hogwild", "that of problem=matrix_completion reads no rows that could be moved"),
        ("sgld", "algorithm=sgld has none for problem=matrix_completion"),
    ],
)
def test_what_matrix_completion_reads_is_not_moved(algorithm, words):
    with pytest.raises(UserError, match=words):
        setup("problem=matrix_completion", f"algorithm={algorithm}", "hardware=cpu", "data=sharded_per_node")


def test_rows_of_a_kernel_that_keeps_them_are_refused_by_the_worker_too():
    unchecked = setup(*ROWS, *ONCE, "algorithm=dual_coordinate_descent", "problem.l2=0.1", "hardware=sim_numa2")
    done = unchecked.hardware.execute(replace(unchecked, data=Partitioned("permuted")).program(), lambda samples: None)
    assert isinstance(done.failure, UserError)
    assert "those of the kernel dual_coordinate_descent stay where they are" in str(done.failure)


@pytest.mark.parametrize("sharing", ["shared", "replica_per_worker"])
@pytest.mark.parametrize(("locking", "known"), [("none", False), ("atomic", True)])
def test_coordinate_descent_may_lose_what_it_adds_beyond_its_model(sharing, locking, known):
    done = run(
        "algorithm=dual_coordinate_descent",
        "problem.l2=0.1",
        "hardware=cpu",
        "hardware.num_workers=2",
        "data=replicated",
        f"algorithm.sharing={sharing}",
        f"algorithm.locking={locking}",
    )
    assert ("async/lost_frac" in done.metrics) == known


@pytest.mark.parametrize(
    ("algorithm", "names"),
    [
        ("svrg", ["part of the full gradient of worker 0", "model of worker 0", "rows: values"]),
        ("dual_coordinate_descent", ["dual", "model of worker 0", "rows: values"]),
        ("coordinate_descent", ["weights", "margins", "columns: values"]),
    ],
)
def test_the_manifest_names_what_kernels_work_on(algorithm, names):
    replicas = [] if algorithm == "coordinate_descent" else ["algorithm.sharing=replica_per_worker"]
    chosen = [f"algorithm={algorithm}", "problem.l2=0.1", "hardware.num_workers=2", "budget.epochs=2", *replicas]
    assert {*names} <= {*run("hardware=cpu", *chosen).facts["placement"]}
    rows = names[-1].partition(":")[0]
    assert run("hardware=sim_numa2", *chosen).facts["placement"][rows] == {"policy": "interleave"}


@pytest.mark.parametrize(
    ("sharing", "models"), [("replica_per_worker", ["model of worker 0", "model of worker 1"]), ("shared", [])]
)
def test_the_manifest_says_where_private_replicas_and_loaded_rows_lie(sharing, models):
    if len({core.node for core in read_topology().cores}) > 1:
        pytest.skip("needs a machine with 1 NUMA node: on others rows are copied")
    # long enough that a worker whose thread starts late gets its part of the budget too
    chosen = [f"algorithm.sharing={sharing}", "algorithm.merge_every=100", "budget.epochs=300"]
    done = run("hardware=cpu", "hardware.num_workers=2", *chosen)
    placement = done.facts["placement"]
    assert [name for name in placement if name.startswith("model of")] == models
    for name in (*models, "rows: indptr", "rows: indices", "rows: values", "rows: labels"):
        assert placement[name]["policy"] == "first_touch"
    indices = setup(*ROWS, *ONCE).problem.rows.indices
    pages = placement["rows: indices"]["pages_by_node"]
    assert list(pages) == ["0"] and pages["0"] == pytest.approx(indices.nbytes / 4096, abs=2)


@pytest.mark.parametrize("data", PER_NODE)
@pytest.mark.parametrize("order", ["index", "permuted"])
def test_rows_of_virtual_sockets_are_bound_to_the_node_beneath(data, order):
    done = run("hardware=numa2", "hardware.num_workers=2", f"data={data}", f"data.order={order}")
    placement = done.facts["placement"]
    buffers = ["rows"] + ["permuted rows of even epochs", "permuted rows of odd epochs"] * (order == "permuted")
    for name in buffers:
        for node in (0, 1):
            for part in ("indptr", "indices", "values", "labels"):
                assert placement[f"{name} of node {node}: {part}"]["node"] == node
    nonzeros = setup(*ROWS, *ONCE).problem.rows.indices
    pages = [sum(placement[f"rows of node {node}: indices"]["pages_by_node"].values()) for node in (0, 1)]
    expected = 4 * len(nonzeros) / 4096 / (2 if data == "sharded_per_node" else 1)
    assert pages == pytest.approx([expected] * 2, rel=0.1, abs=1)


def test_the_manifest_has_rows_whether_they_were_copied_or_lie_where_they_were_loaded():
    names = list(run("hardware=cpu", "hardware.num_workers=2").facts["placement"])
    assert names == ["model", *(f"rows: {part}" for part in ("indptr", "indices", "values", "labels"))]


NODES = ["hardware=numa2", "hardware.num_workers=2", "hardware.strict=true"]


@pytest.mark.numa
@pytest.mark.parametrize("order", ["index", "permuted"])
@pytest.mark.parametrize("data", PER_NODE)
def test_two_nodes_hold_their_rows(data, order):
    placement = run(*NODES, f"data={data}", f"data.order={order}").facts["placement"]
    rows = {name: each for name, each in placement.items() if "rows of" in name}
    assert len(rows) == 2 * 4 * (3 if order == "permuted" else 1)
    for name, each in rows.items():
        node = int(name.partition("of node ")[2][0])
        assert each["policy"] == f"bind:{node}" and not each["virtual_socket"]
        assert list(each["pages_by_node"]) == [str(node)]


@pytest.mark.numa
@pytest.mark.parametrize(("policy", "share"), [("interleave", [0.5, 0.5]), ("bind:1", [0.0, 1.0])])
def test_two_nodes_hold_rows_that_name_none_as_the_policy_says(policy, share):
    placement = run(*NODES, f"hardware.memory_policy={policy}").facts["placement"]
    pages = placement["rows: indices"]["pages_by_node"]
    total = sum(pages.values())
    assert placement["rows: indices"]["policy"] == policy
    assert [pages.get(str(node), 0) / total for node in (0, 1)] == pytest.approx(share, abs=0.02)
