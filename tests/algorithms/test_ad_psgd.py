"""AD-PSGD: pairs keep their sum, nobody waits for a straggler, and a real run is repeated in virtual time."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from composed import execution, setup
from rich.console import Console
from simulated_ranks import execute

from algorithms.ad_psgd import Averager, expected_exchange, sides
from algorithms.mixing.graphs import Complete, Ring, Star, Torus
from harness import trial
from harness.errors import UserError
from harness.progress import Progress
from harness.setup import run_info

SMALL = ["problem=least_squares", "problem.samples=240", "problem.features=10", "problem.condition=10.0"]
SMALL += ["problem.dtype=float64", "budget.epochs=2", "budget.observations=2", "algorithm.learning_rate=0.1"]
SMALL += ["algorithm.batch_size=6"]


@pytest.mark.parametrize(("workers", "said"), [(4, []), (9, ["1 of 9 edges"])])
def test_edges_that_are_left_out_are_noted(workers, said):
    run = setup("algorithm=ad_psgd", "hardware=sim_ethernet", f"hardware.num_workers={workers}", *SMALL)
    notices = run.algorithm.notices(run.problem, workers, 2.0)
    assert [notice.partition(" of algorithm")[0] for notice in notices] == said


def test_pairs_keep_their_sum_and_come_to_the_mean():
    workers, size = 5, 4
    start = torch.randn(workers, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    models = {}

    def average(worker):
        known = start[worker.rank].clone()
        pair = Averager(worker, known.clone(), Ring("metropolis"))
        for _ in range(60):
            pair.ask(known)
            pair.wait()
            with worker.turn():
                pair.move(known)
                known.copy_(pair.weights)
        pair.leave()
        models[worker.rank] = pair.weights  # others may go on averaging with it

    assert execute(average, workers).failure is None
    ends = torch.stack([models[rank] for rank in range(workers)])
    torch.testing.assert_close(ends.mean(dim=0), start.mean(dim=0), rtol=1e-12, atol=1e-13)
    assert (ends - start.mean(dim=0)).norm() < 1e-3 * (start - start.mean(dim=0)).norm()


@pytest.mark.parametrize("workers", [1, 2, 3, 5, 8, 9])
@pytest.mark.parametrize("mixing", [Ring("metropolis"), Star("metropolis"), Torus("metropolis"), Complete("uniform")])
def test_edges_between_the_sides_connect_all(mixing, workers):
    (matrix,) = mixing.matrices(workers)
    side = np.array(sides(matrix))
    crossing = (matrix > 0) & (side[:, None] != side)
    assert (np.linalg.matrix_power(crossing + np.eye(workers), workers) > 0).all()


def pair_of(active, passive, workers):
    """What their exchange multiplies the models by."""
    matrix = np.eye(workers)
    matrix[np.ix_([active, passive], [active, passive])] = 0.5
    return matrix


@pytest.mark.parametrize("mixing", [Complete("metropolis"), Star("metropolis"), Torus("metropolis")])
def test_the_expected_exchange_is_the_mean_of_those_that_are_drawn(mixing):
    (matrix,) = mixing.matrices(6)
    active = [rank for rank, side in enumerate(sides(matrix)) if side == 1]
    passive = [rank for rank in range(6) if rank not in active]
    mean = np.zeros((6, 6))
    for rank in active:
        chances = matrix[rank, passive] / matrix[rank, passive].sum()
        mean += sum(chance * pair_of(rank, peer, 6) for chance, peer in zip(chances, passive, strict=True))
    np.testing.assert_allclose(expected_exchange(matrix), mean / len(active), rtol=1e-12, atol=1e-15)


def test_the_spectral_gap_is_that_of_exchanges_of_pairs():
    """Two pairs of four, all of whose edges are as likely: eigenvalues of the mean are 1, 3/4, 3/4 and 1/2."""
    algorithm = setup("algorithm=ad_psgd", "algorithm/mixing=complete", *SMALL).algorithm
    gaps = [algorithm.constants(workers)["mixing/spectral_gap"] for workers in (1, 2, 4)]
    assert gaps == pytest.approx([1.0, 1.0, 0.25])


def test_the_summary_says_how_many_batches_each_worker_took():
    options = ["hardware=sim_ethernet", "hardware.num_workers=4", "hardware.stragglers={3: 9.0}", "tracking=none"]
    composed = setup("algorithm=ad_psgd", *SMALL, *options)
    done = trial.execute(composed, run_info(composed, {}, None), "", Progress(Console(quiet=True)))
    batches = done.summary["async/worker_batches"]
    assert sum(batches) == 80 and min(batches) == batches[3] < 10


def test_a_straggler_holds_nobody_up():
    def run_s(algorithm):
        slow = ["hardware=sim_ethernet", "hardware.num_workers=4", "++hardware.stragglers={1: 20.0}", "tracking=none"]
        done = execution(f"algorithm={algorithm}", *SMALL, *slow)
        assert done.failure is None
        return done.run_s

    assert run_s("ad_psgd") < 0.5 * run_s("gossip")


def test_a_real_run_is_repeated_in_virtual_time():
    shared = ["algorithm=ad_psgd", "algorithm/mixing=complete", *SMALL, "hardware.num_workers=3", "tracking=none"]
    real, composed = execution(*shared, "hardware=cpu"), setup(*shared, "hardware=sim_ethernet")
    assert {turn for each in real.interleavings for turn in each.turns} == {0, 1}  # both sides took part
    program = replace(composed.program(), replay=real.interleavings)
    repeated = composed.machine.execute(program, lambda samples: None)
    torch.testing.assert_close(final_models(repeated), final_models(real), rtol=1e-12, atol=1e-13)
    assert [each.turns for each in repeated.interleavings] == [each.turns for each in real.interleavings]


def final_models(done):
    """Every worker's own, shape (workers, parameters)."""
    assert done.failure is None
    last = max(seen.milestone for seen in done.observations)
    return torch.stack([
        seen.parameters for seen in sorted(done.observations, key=lambda seen: seen.member) if seen.milestone == last
    ])  # fmt: skip


def test_directed_graphs_are_refused():
    with pytest.raises(UserError, match="algorithm/mixing must be symmetric and the same at every step: use ring"):
        setup("algorithm=ad_psgd", "algorithm/mixing=exponential", "hardware=sim_ethernet", *SMALL, "tracking=none")
