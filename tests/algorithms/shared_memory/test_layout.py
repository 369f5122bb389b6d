"""Layouts of a shared model: workers see rows renumbered, everybody else the model in the problem's order."""

import functools
import itertools

import pytest
import torch
from composed import execution, setup

from algorithms.shared_memory.layout import LAYOUTS, Layout, laid_out
from algorithms.shared_memory.precision import PRECISIONS
from algorithms.shared_memory.replicas import SHARING
from harness.errors import UserError
from harness.kernels.access import LOCKING
from harness.kernels.sparse_linear import LOGISTIC, SQUARES, SparseLinearKernel
from harness.kernels.sparse_rows import SparseRows
from harness.problems.synthetic import sparse_rows
from tests.hardware.toys import ToyKernel, program

ROWS = ["problem=logistic_regression", "problem.synthetic_samples=1000", "problem.synthetic_features=300"]
ONCE = ["budget.epochs=2", "budget.observations=2", "tracking=none", "problem.dtype=float64"]
LAID = [layout for layout in LAYOUTS if layout != "as_given"]


def weights(*overrides):
    done = execution("algorithm=hogwild", *ROWS, *ONCE, "algorithm.merge_every=300", *overrides)
    assert done.failure is None
    return done.observations[-1].parameters


@functools.cache
def one_worker(hardware, *overrides):
    return weights(f"hardware={hardware}", "hardware.num_workers=1", *overrides)


def assert_as_given(found, given, layout):
    if layout in ("as_given", "padded"):
        assert torch.equal(found, given)
    else:  # rows are sorted anew, so that margins of 75 nonzeros are summed in another order
        torch.testing.assert_close(found, given, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("hardware", ["cpu", "sim_numa2"])
@pytest.mark.parametrize("layout", LAID)
@pytest.mark.parametrize("sharing", SHARING)
def test_one_worker_gets_the_same_weights(hardware, layout, sharing):
    given, found = (
        one_worker(hardware, f"algorithm.layout={how}", f"algorithm.sharing={sharing}") for how in ("as_given", layout)
    )
    assert_as_given(found, given, layout)


@pytest.mark.parametrize("hardware", ["cpu", "sim_numa2"])
@pytest.mark.parametrize("layout", LAID)
@pytest.mark.parametrize("locking", [locking for locking in LOCKING if locking != "none"])
def test_locks_are_those_of_the_coordinates_as_they_lie(hardware, layout, locking):
    found = one_worker(hardware, f"algorithm.layout={layout}", f"algorithm.locking={locking}")
    assert_as_given(found, one_worker("cpu"), layout)


@pytest.mark.parametrize(
    ("hardware", "layout", "options"),
    [
        *itertools.product(["cpu", "sim_numa2"], LAID, [(f"precision={each}",) for each in PRECISIONS]),
        *itertools.product(["cpu", "sim_numa2"], LAID, [("locking=per_coordinate", "sharing=hot_replica")]),
        *itertools.product(["cpu", "sim_numa2"], LAID, [("locking=round_robin", "sharing=replica_per_node")]),
    ],
)
def test_two_workers_learn(hardware, layout, options):
    two = [f"hardware={hardware}", "hardware.num_workers=2", f"algorithm.layout={layout}"]
    found = weights(*two, *(f"algorithm.{option}" for option in options))
    problem = setup(*ROWS, *ONCE).problem
    model = problem.build_model(torch.device("cpu"), 0)
    torch.nn.utils.vector_to_parameters(found.double(), model.parameters())
    assert problem.evaluate(model)["train/loss"] < 0.6  # log 2 = 0.69 at the start


def neighbours():
    """Sample i touches coordinate i alone, of two that lie beside each other."""
    rows = SparseRows(torch.arange(3), torch.arange(2, dtype=torch.int32), torch.ones(2), num_features=2)
    return SparseLinearKernel(rows, torch.ones(2), SQUARES)


def test_padded_coordinates_begin_a_cache_line_each():
    for number_bytes, between in ((8, 8), (4, 16), (2, 32), (1, 64)):
        layout = laid_out(neighbours(), "padded", number_bytes, seed=0)
        assert layout.places.tolist() == [0, between]
        assert layout.kernel.indices.tolist() == [0, between]
        assert layout.kernel.num_coordinates == 2 * between


class Blocks:
    """A kernel of 2 coordinates of some parameters each, of which only the numbers are asked."""

    num_coordinates = 2

    def __init__(self, block, num_coordinates=2):
        self.block, self.num_coordinates = block, num_coordinates

    def renumbered(self, places, num_coordinates):
        return Blocks(self.block, num_coordinates)


@pytest.mark.parametrize(("block", "between"), [(1, 16), (5, 80), (16, 16), (24, 48)])
def test_padded_blocks_begin_a_cache_line_each(block, between):
    layout = laid_out(Blocks(block), "padded", number_bytes=4, seed=0)
    assert layout.places.tolist() == [*range(block), *range(between, between + block)]
    assert len(layout.lay(torch.ones(2 * block))) == 2 * between


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_model_that_is_laid_is_restored(layout):
    rows, labels = sparse_rows(20, 40, 5, 0.1, 0)
    found = laid_out(SparseLinearKernel(rows, labels, LOGISTIC), layout, 8, seed=1)
    model = torch.arange(40.0)
    assert torch.equal(found.restore(found.lay(model)), model)
    assert (layout == "as_given") == torch.equal(found.lay(model), model)


def test_workers_get_the_same_kernel_and_seeds_another_order():
    rows, labels = sparse_rows(20, 40, 5, 0.1, 0)
    kernel = SparseLinearKernel(rows, labels, LOGISTIC)
    first, again = (laid_out(kernel, "scattered", 8, seed=1) for _ in range(2))
    assert first.kernel is again.kernel
    assert not torch.equal(first.places, laid_out(kernel, "scattered", 8, seed=2).places)
    for row in range(20):  # per-coordinate locks are taken in this order
        touched = first.kernel.indices[first.kernel.indptr[row] : first.kernel.indptr[row + 1]]
        assert (touched.diff() > 0).all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_regularised_kernel_keeps_its_rarities(layout):
    rows, labels = sparse_rows(60, 40, 5, 0.1, 0)
    kernel, samples = SparseLinearKernel(rows, labels, LOGISTIC, l2=0.1), torch.arange(60, dtype=torch.int32)
    found, expected = laid_out(kernel, layout, 8, seed=1), torch.linspace(-1, 1, 40, dtype=torch.float64)
    laid = found.lay(expected.clone())
    kernel(expected, samples, 0.2)
    found.kernel(laid, samples, 0.2)
    assert_as_given(found.restore(laid), expected, layout)


def contended_s(layout, *overrides):
    done = execution("algorithm=hogwild", "hardware=sim_numa2", *ROWS, *ONCE, f"algorithm.layout={layout}", *overrides)
    return done.run_s


def test_neighbours_that_are_padded_are_not_contended():
    """Two workers, each on a coordinate of its own: as given in one line, padded in two."""
    from simulated_ranks import results, shared_memory

    from hardware.simulated.compute import Roofline

    compute = Roofline("none", False, {"float32": 1e30}, 1e30, 0.0, 1e-9)
    memory = shared_memory(cores_per_socket=2, same_socket_s=5e-8, cross_socket_s=1e-7, outstanding_misses=4)

    def run_s(how):
        layout = laid_out(neighbours(), how, 4, seed=0)

        def body(worker):
            model = worker.shared("model", layout.lay(torch.zeros(2)))
            worker.run(layout.kernel, model, torch.full((100,), worker.rank, dtype=torch.int32), 0.1)
            return worker.clock.now()

        return max(results(body, 2, memory=memory, compute=compute))

    assert run_s("padded") == pytest.approx(100e-9)
    assert run_s("as_given") > 100 * 1e-7


def test_layouts_move_the_time():
    """Hot features of these rows are neighbours nowhere, but share lines with others."""
    times = {layout: contended_s(layout) for layout in LAYOUTS}
    assert len(set(times.values())) == len(LAYOUTS)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ["algorithm.layout=dense"],
            "algorithm.layout must be one of as_given, scattered, by_heat, padded, got 'dense'",
        ),
        (["algorithm.layout=padded", "algorithm.batch_size=2"], "algorithm.layout padded needs a native kernel"),
        (["algorithm.layout=padded", "problem=digits_mlp"], "algorithm.layout padded needs a native kernel"),
    ],
)
def test_layouts_that_cannot_be_are_refused(overrides, words):
    with pytest.raises(UserError, match=words):
        setup("algorithm=hogwild", "hardware=cpu", *overrides)


def test_kernels_that_cannot_be_renumbered_are_refused():
    algorithm = setup("algorithm=hogwild", "hardware=cpu", *ROWS, "algorithm.layout=padded").algorithm
    toy = program().problem
    assert isinstance(toy.kernel, ToyKernel)
    with pytest.raises(UserError, match=r"layout must be as_given with this problem, whose kernel's coordinates"):
        algorithm.check(toy)


def test_algorithms_that_know_of_no_layouts_are_refused():
    composed = setup("algorithm=hogwild", "hardware=cpu", *ROWS, "algorithm.layout=padded")
    with pytest.raises(UserError, match="must be as_given with Hogwild"):
        composed.algorithm.replica(None, composed.problem, torch.zeros(300))


def test_a_layout_as_given_is_the_kernel_itself():
    kernel = neighbours()
    assert laid_out(kernel, "as_given", 4, 0).kernel is kernel
    assert Layout(kernel).lay(model := torch.ones(2)) is model
