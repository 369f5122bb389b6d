from dataclasses import replace

import numpy as np
import pytest
import torch
from simulated_ranks import NUMA, execute, results, shared_memory

from hardware.simulated.compute import Fixed, Roofline
from harness.errors import UserError
from harness.kernels.sparse_linear import HINGE, LOGISTIC, SQUARES, SparseLinearKernel
from harness.kernels.sparse_rows import SparseRows
from tests.hardware.toys import ToyKernel

NONZERO_S = 1e-9
COMPUTE = Roofline("none", False, {"float32": 1e30, "float64": 1e30}, 1e30, 0.0, NONZERO_S)  # operators are free
FREE = shared_memory(outstanding_misses=10)
FEATURES = 64


def kernel(loss_code=LOGISTIC, dtype=torch.float32, num_samples=400, nonzeros=None, features=FEATURES):
    """Random rows; `nonzeros` of them each, or a random number."""
    random = np.random.default_rng(0)
    counts = [nonzeros or random.integers(0, 12) for _ in range(num_samples)]
    indices = np.concatenate([random.permutation(features)[:count] for count in counts]).astype(np.int32)
    indptr = np.concatenate([[0], np.cumsum(counts)])
    values = torch.from_numpy(random.standard_normal(len(indices))).to(dtype)
    labels = torch.from_numpy(np.sign(random.standard_normal(num_samples))).to(dtype)
    rows = SparseRows(torch.from_numpy(indptr), torch.from_numpy(indices), values, features)
    return SparseLinearKernel(rows, labels, loss_code)


def rows_of(*features_of_sample, features=FEATURES):
    """A kernel over rows of ones at the given features."""
    indptr = torch.tensor([0, *np.cumsum([len(row) for row in features_of_sample])])
    indices = torch.tensor([j for row in features_of_sample for j in row], dtype=torch.int32)
    rows = SparseRows(indptr, indices, torch.ones(len(indices)), features)
    return SparseLinearKernel(rows, torch.ones(len(features_of_sample)), SQUARES)


def updates(sparse, samples_of, chunk=50, name="model"):
    """A body that runs the samples of a rank on one shared model, and returns its copy and the time."""

    def body(worker):
        model = worker.shared(name, torch.zeros(sparse.rows.num_features, dtype=sparse.rows.values.dtype))
        for samples in samples_of(worker.rank).split(chunk):
            worker.run(sparse, model, samples, 0.1)
        return model.clone(), worker.clock.now()

    return body


def everyone(count):
    return lambda rank: torch.arange(count, dtype=torch.int32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("loss_code", [LOGISTIC, HINGE, SQUARES])
@pytest.mark.parametrize("memory", [FREE, NUMA])
def test_one_worker_equals_the_native_kernel_bit_for_bit(memory, loss_code, dtype):
    sparse, samples = kernel(loss_code, dtype), everyone(400)
    native = torch.zeros(FEATURES, dtype=dtype)
    sparse(native, samples(0), 0.1)
    ((model, _),) = results(updates(sparse, samples), 1, memory=memory, compute=COMPUTE)
    assert torch.equal(model, native) and native.abs().sum() > 0


def test_one_worker_without_transfers_costs_its_nonzeros():
    sparse, samples = kernel(), everyone(400)
    ((_, time_s),) = results(updates(sparse, samples), 1, memory=FREE, compute=COMPUTE)
    # 400 additions of float64 round differently from one product
    assert time_s == pytest.approx(sparse.nonzeros(samples(0)) * NONZERO_S, rel=1e-12)


@pytest.mark.parametrize("memory", [None, FREE])
def test_private_models_run_natively_at_the_same_cost(memory):
    sparse, samples = kernel(), everyone(400)

    def body(worker):
        model = torch.zeros(FEATURES)
        worker.run(sparse, model, samples(0), 0.1)
        return model, worker.clock.now()

    native = torch.zeros(FEATURES)
    sparse(native, samples(0), 0.1)
    for model, time_s in results(body, 2, memory=memory, compute=COMPUTE):
        assert torch.equal(model, native)
        assert time_s == sparse.nonzeros(samples(0)) * NONZERO_S


@pytest.mark.parametrize("workers", [2, 3, 8, 64])
def test_staleness_of_equal_workers_is_one_less_than_their_number(workers):
    """All are always between a read and a write, so that each write falls into the P - 1 other intervals."""
    sparse = kernel(nonzeros=5)
    done = execute(updates(sparse, everyone(400), chunk=64), workers, memory=FREE, compute=COMPUTE)
    metrics, total = done.metrics, 400 * workers
    # the P first updates see 0 .. P-1 instead of P-1, and the last ones overlap nobody's writes afterwards
    exact = (workers - 1) - workers * (workers - 1) / 2 / total
    assert metrics["async/staleness_mean"] == pytest.approx(exact, rel=1e-12)
    assert metrics["async/staleness_max"] == metrics["async/staleness_p95"] == workers - 1
    assert metrics["async/staleness_hist"] == [1] * (workers - 1) + [total - workers + 1]


@pytest.mark.parametrize("workers", [2, 5])
def test_staleness_of_unequal_rows_is_the_same_on_average(workers):
    sparse = kernel(num_samples=2000)
    done = execute(updates(sparse, everyone(2000)), workers, memory=FREE, compute=Fixed("none", False, 1e-6))
    assert done.metrics["async/staleness_mean"] == pytest.approx(workers - 1, rel=0.01)  # ends of the run


def test_a_slope_is_of_the_weights_at_the_read_and_lands_on_those_at_the_write():
    """F = (w - 1)^2 / 2 with two workers in step: both read w, then both add 0.1 (1 - w)."""
    sparse = rows_of([0])

    def body(worker):
        model = worker.shared("model", torch.zeros(FEATURES))
        for _ in range(3):
            worker.run(sparse, model, torch.zeros(1, dtype=torch.int32), 0.1)
        return model[0].item()

    expected, w = [0.0, 0.0], 0.0
    order = [0, 1, 0, 1, 0, 1]
    seen = [0.0, 0.0]
    for rank in order:  # write, then read again
        w += 0.1 * (1 - seen[rank])
        seen[rank] = w
        expected[rank] = w
    assert results(body, 2, memory=FREE, compute=COMPUTE)[1] == pytest.approx(expected[1], rel=1e-6)


def test_conflicts_are_writes_of_others_to_the_same_coordinates():
    apart = rows_of([0, 1], [2, 3])
    done = execute(
        updates(apart, lambda rank: torch.full((100,), rank, dtype=torch.int32)), 2, memory=FREE, compute=COMPUTE
    )
    assert done.metrics["async/conflict_frac"] == 0.0
    together = rows_of([0, 1], [1, 2])
    done = execute(
        updates(together, lambda rank: torch.full((100,), rank, dtype=torch.int32)), 2, memory=FREE, compute=COMPUTE
    )
    assert done.metrics["async/conflict_frac"] == 199 / 200  # all but the very first write


def alternate(memory, ranks=2, pad=0, same=True):
    """Seconds of ranks 0 and `ranks` - 1 that write in turn: one feature, or neighbours, or `pad` features apart."""
    sparse = rows_of([0], [0 if same else pad], features=256)

    def body(worker):
        model = worker.shared("model", torch.zeros(256))
        if worker.rank in (0, ranks - 1):
            sample = torch.tensor([min(worker.rank, 1)], dtype=torch.int32)
            for _ in range(100):
                worker.run(sparse, model, sample, 0.1)
        return worker.clock.now()

    times = results(body, ranks, memory=memory, compute=COMPUTE)
    return max(times)


def test_lines_travel_between_caches():
    alone = 100 * NONZERO_S
    near, far = alternate(NUMA, ranks=3), alternate(NUMA, ranks=2)  # ranks 0 and 2 share a socket, 0 and 1 do not
    # each of 200 updates fetches the line, or takes it back, or both; it goes one way at a time
    assert 200 * 50e-9 < near < 200 * 2 * 50e-9 + alone
    assert far / near == pytest.approx(120 / 50, rel=0.05)


def test_false_sharing_costs_as_much_as_sharing():
    shared = alternate(NUMA)
    neighbours = alternate(NUMA, pad=1, same=False)
    own_lines = alternate(NUMA, pad=16, same=False)  # 16 float32 to a line of 64 bytes
    assert neighbours == pytest.approx(shared, rel=0.05)
    assert own_lines == pytest.approx(100 * NONZERO_S + 140e-9, rel=0.05)  # one cold miss of rank 1


def test_a_cold_model_comes_from_the_memory_of_the_first_socket():
    sparse = rows_of([0], [16], features=256)

    def body(worker):
        model = worker.shared("model", torch.zeros(256))
        worker.run(sparse, model, torch.tensor([worker.rank], dtype=torch.int32), 0.1)
        return worker.clock.now()

    assert results(body, 2, memory=NUMA, compute=COMPUTE) == pytest.approx([81e-9, 141e-9], rel=1e-9)


def test_a_model_of_a_node_comes_from_the_memory_of_that_socket():
    sparse = rows_of([0], [16], features=256)

    def body(worker):
        model = worker.shared("model", torch.zeros(256), node=1)
        other = worker.shared("other", torch.zeros(256), node=0)
        worker.run(sparse, model, torch.tensor([worker.rank], dtype=torch.int32), 0.1)
        before_s = worker.clock.now()
        other[16 * worker.rank].clone()
        return before_s, worker.clock.now() - before_s

    first, second = results(body, 2, memory=NUMA, compute=COMPUTE)
    assert first == pytest.approx((141e-9, 80e-9), rel=1e-9)
    assert second == pytest.approx((81e-9, 140e-9), rel=1e-9)


@pytest.mark.parametrize(
    ("policy", "workers", "nodes"), [("spread", 3, [0, 1, 0]), ("fill", 3, [0, 0, 0]), ("fill", 9, [0] * 8 + [1])]
)
def test_nodes_are_the_sockets_that_hold_ranks(policy, workers, nodes):
    seen = results(lambda worker: (worker.node, worker.num_nodes), workers, memory=replace(NUMA, pin_policy=policy))
    assert seen == [(node, max(nodes) + 1) for node in nodes]


def test_a_cluster_is_one_node():
    assert results(lambda worker: (worker.node, worker.num_nodes), 3) == [(0, 1)] * 3


def test_the_manifest_has_every_shared_tensor_with_its_node():
    def body(worker):
        worker.shared("here", torch.zeros(1))
        worker.shared("there", torch.zeros(1), node=1)

    done = execute(body, 2, memory=NUMA)
    assert done.facts["placement"] == {"here": {"node": 0}, "there": {"node": 1}}


@pytest.mark.parametrize(
    ("share", "words"),
    [
        (lambda worker: worker.shared("x", torch.zeros(1), node=2), "must be given a node from 0 to 1, or None, got 2"),
        (lambda worker: [worker.shared("x", torch.zeros(1)) for _ in range(2)], "must be given each name once"),
        (lambda worker: worker.shared("x", torch.zeros(1), node=worker.rank), "float32[1] on node 1"),
    ],
)
def test_what_cannot_be_shared_is_refused(share, words):
    failure = execute(share, 2, memory=NUMA).failure
    assert isinstance(failure, UserError) and words in str(failure)


def test_misses_overlap_up_to_the_outstanding_ones():
    sparse = rows_of([0, 16, 32, 48, 64, 80, 96, 112], features=128)
    body = updates(sparse, everyone(1))

    def cold_s(outstanding):
        memory = replace(NUMA, outstanding_misses=outstanding)
        return results(body, 1, memory=memory, compute=COMPUTE)[0][1] - 8 * NONZERO_S

    assert cold_s(1) == pytest.approx(8 * 80e-9)
    assert cold_s(4) == pytest.approx(2 * 80e-9)
    assert cold_s(100) == pytest.approx(80e-9)


@pytest.mark.parametrize(
    ("change", "moves"),
    [
        ({"sockets": 1}, True),
        ({"line_bytes": 8}, True),
        ({"same_socket_s": 1e-6}, True),
        ({"cross_socket_s": 1e-6}, True),
        ({"local_memory_s": 1e-5}, True),
        ({"remote_memory_s": 1e-5}, True),
        ({"outstanding_misses": 1}, True),
        ({"pin_policy": "fill"}, True),
        ({"cores_per_socket": 16}, False),  # a limit on workers, nothing else
    ],
)
def test_every_number_moves_the_answer(change, moves):
    body = updates(kernel(nonzeros=6), everyone(100))

    def run_s(memory):
        return execute(body, 4, memory=memory, compute=COMPUTE).run_s

    assert (run_s(replace(NUMA, **change)) != run_s(NUMA)) == moves


def test_chunks_do_not_move_the_answer():
    """Where a chunk ends is the algorithm's business, not the machine's."""
    sparse = kernel()
    whole, split = (
        results(updates(sparse, everyone(400), chunk), 4, memory=NUMA, compute=COMPUTE) for chunk in (400, 7)
    )
    for (_, time_s), (_, other_s) in zip(whole, split, strict=True):
        assert time_s == pytest.approx(other_s, rel=1e-12)
    assert torch.equal(whole[-1][0], split[-1][0])


def test_two_models_keep_apart():
    """Each pair of workers has a model of its own, and is as stale as a pair alone."""
    sparse = kernel(nonzeros=5)

    def body(worker):
        models = [worker.shared(name, torch.zeros(FEATURES)) for name in ("one", "other")]
        worker.run(sparse, models[worker.rank // 2], torch.arange(100, dtype=torch.int32), 0.1)
        return models[worker.rank // 2].clone()

    assert execute(body, 4, memory=FREE, compute=COMPUTE).metrics["async/staleness_max"] == 1
    _, first, _, second = results(body, 4, memory=FREE, compute=COMPUTE)
    alone = results(updates(sparse, everyone(100), chunk=100), 2, memory=FREE, compute=COMPUTE)[1][0]
    assert torch.equal(first, alone) and torch.equal(second, alone)


def test_shared_tensors_begin_with_rank_zero_s():
    def body(worker):
        x = worker.shared("x", torch.full((3,), float(worker.rank + 5)))
        before = x.clone()
        worker._place.add("updates", 1)
        x[worker.rank] = -1.0
        return before.tolist()[worker.rank], x

    seen = results(body, 3, memory=NUMA)
    assert [value for value, _ in seen] == [5.0, 5.0, 5.0]
    assert len({x.data_ptr() for _, x in seen}) == 1


WRITES = {
    "in place": lambda x: x.add_(1.0),
    "a view": lambda x: x[:].add_(1.0),
    "a list": lambda x: torch._foreach_add_([x], 1.0),
    "a list of several": lambda x: torch._foreach_add_([torch.zeros(1), x], 1.0),
    "out": lambda x: torch.add(x, 1.0, out=x),
    "lists out": lambda x: torch.ops.aten._foreach_add.Scalar_out([x], 1.0, out=[x]),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_an_autograd_update_lands_when_its_computation_is_over(write):
    """Rank 1 looks at 0.5 s, before rank 0's write at 1 s, and at 1.5 s, after it."""

    def body(worker):
        x = worker.shared("x", torch.zeros(1))
        place = worker._place
        if worker.rank == 0:
            place.dealt(1)
            write(x)
            return None
        seen = []
        for _ in range(2):
            place._machine.engine.current.charge(0.5 + 0.5 * len(seen))
            place.add("samples", 1)
            seen.append(float(x))
        return seen

    assert results(body, 2, memory=NUMA)[1] == [0.0, 1.0]


def test_operators_read_before_their_computation_is_paid():
    """Rank 0's gradient is of the model at 0 s though it takes until 1 s; rank 1 writes at 0.5 s."""

    def body(worker):
        x, place = worker.shared("x", torch.zeros(1)), worker._place
        if worker.rank == 0:
            place.dealt(1)
            gradient = x + 0.0
            return float(gradient), worker.clock.now()
        place._machine.engine.current.charge(0.5)
        x.add_(1.0)

    assert results(body, 2, memory=FREE)[0] == (0.0, 1.0)


def operators(*functions, size=64):
    """A body that does these on a shared tensor, all ranks in turn; returns the seconds of each on its rank."""

    def body(worker):
        x, seconds = worker.shared("x", torch.zeros(size)), []
        for turn, function in enumerate(functions):
            worker._place._machine.engine.current.charge(1.0 if worker.rank == 0 or turn else 1.5)
            before = worker.clock.now()
            function(x)
            seconds.append(worker.clock.now() - before)
        return seconds

    return body


def stalls(*functions, workers=1, memory=NUMA, size=64):
    return results(operators(*functions, size=size), workers, memory=memory, compute=COMPUTE)


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_one_worker_s_operators_pay_for_the_first_touch_only(write):
    (seconds,) = stalls(write, write, torch.sum)
    assert seconds == pytest.approx([80e-9, 0.0, 0.0], abs=1e-15)  # 4 lines from memory, 4 at a time


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_operators_pay_for_lines_that_others_hold(write):
    first, second = stalls(write, write, write, workers=2)
    assert first == pytest.approx([80e-9, 240e-9, 240e-9], abs=1e-15)  # fetched across, then taken back
    assert second == pytest.approx([240e-9] * 3, abs=1e-15)


@pytest.mark.parametrize(
    ("touch", "lines"),
    [
        (lambda x: x.sum(), 16),
        (lambda x: x[16:32].sum(), 1),
        (lambda x: x[15:17].sum(), 2),
        (lambda x: x[::2].sum(), 16),  # its span, conservatively
        (lambda x: x.view(16, 16)[:, 3].sum(), 16),
        (lambda x: x.view(16, 16)[2:4].t().sum(), 2),
        (lambda x: x[:0].sum(), 0),
        (lambda x: x + x, 16),
        (lambda x: torch.zeros_like(x), 0),
        (lambda x: x.view(16, 16).t().detach(), 0),
    ],
)
def test_operators_fetch_the_lines_of_their_view(touch, lines):
    memory = replace(NUMA, outstanding_misses=1)
    assert stalls(touch, memory=memory, size=256) == [[pytest.approx(lines * 80e-9, abs=1e-15)]]


def test_filling_a_model_takes_its_lines_without_reading_them():
    fill = lambda x: torch.add(torch.ones(64), 1.0, out=x)  # noqa: E731
    assert stalls(fill, fill, workers=2)[1] == pytest.approx([120e-9, 120e-9], abs=1e-15)


def test_pauses_touch_no_lines():
    def body(worker):
        x = worker.shared("x", torch.zeros(64))
        with worker.clock.paused():
            x.clone()
        x.clone()
        return worker.clock.now()

    assert results(body, 1, memory=NUMA, compute=COMPUTE) == pytest.approx([80e-9], abs=1e-15)


@pytest.mark.parametrize("part", [slice(16, 32), slice(0, 32)], ids=str)
def test_a_kernel_on_a_part_of_a_shared_model_is_refused(part):
    def body(worker):
        worker.run(rows_of([0], features=16), worker.shared("x", torch.zeros(64))[part], torch.zeros(1).int(), 0.1)

    failure = execute(body, 1, memory=NUMA).failure
    assert isinstance(failure, UserError) and "float32[" in str(failure) and "name of its own" in str(failure)


def test_shared_needs_shared_memory():
    failure = execute(lambda worker: worker.shared("x", torch.zeros(1)), 2).failure
    assert isinstance(failure, UserError) and "hardware.memory is null" in str(failure)


def test_shapes_of_a_shared_tensor_must_agree():
    failure = execute(lambda worker: worker.shared("x", torch.zeros(1 + worker.rank)), 2, memory=NUMA).failure
    assert isinstance(failure, UserError) and "float32[1]" in str(failure) and "float32[2]" in str(failure)


@pytest.mark.parametrize("memory", [None, NUMA])
def test_a_users_own_kernel_runs_as_it_does_for_real(memory):
    mine, samples = ToyKernel(torch.arange(64.0)), torch.arange(64, dtype=torch.int32)

    def body(worker):
        model = worker.shared("x", torch.zeros(1)) if memory else torch.zeros(1)
        worker.run(mine, model, samples, 0.1)
        return model.clone()

    native = torch.zeros(1)
    mine(native, samples, 0.1)
    assert native > 0 and torch.equal(results(body, 1, memory=memory, compute=COMPUTE)[0], native)
    assert not mine.is_cached


def test_fixed_costs_a_kernel_per_sample_once():
    sparse = kernel()

    class Four:
        num_samples = 400

    def body(worker):
        model = worker.shared("model", torch.zeros(FEATURES))
        for samples in worker.batches(Four(), 100):
            worker.run(sparse, model, samples, 0.1)
        return worker.clock.now()

    assert results(body, 1, memory=FREE, compute=Fixed("none", False, 2.0), budget=400) == [800.0]


@pytest.mark.parametrize(
    ("memory", "workers", "words"),
    [
        (NUMA, 17, ["hardware.num_workers", "16", "sockets=2", "cores_per_socket=8", "17"]),
        (replace(NUMA, cores_per_socket=64), 65, ["hardware.num_workers", "64", "65"]),
    ],
)
def test_more_workers_than_cores_are_refused(memory, workers, words):
    with pytest.raises(UserError) as refusal:
        execute(lambda worker: None, workers, memory=memory)
    assert all(word in str(refusal.value) for word in words)


@pytest.mark.parametrize(
    "change",
    [
        {"sockets": 0},
        {"cores_per_socket": 0},
        {"line_bytes": 48},
        {"same_socket_s": -1.0},
        {"outstanding_misses": 0},
        {"pin_policy": "scatter"},
        {"memory_policy": "anywhere"},
        {"memory_policy": "bind:2"},
        {"local_bytes_per_s": 0.0},
        {"remote_bytes_per_s": 2e10},  # more than from the own socket
        {"remote_bytes_per_s": 0.0},
        {"sequential_rows": 1.5},
        {"sequential_rows": 0.0},
    ],
)
def test_impossible_machines_are_refused(change):
    with pytest.raises(UserError, match=f"hardware.memory.{next(iter(change))}"):
        replace(NUMA, **change)
