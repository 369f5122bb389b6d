"""Gossip: what one worker, the complete graph and push-sum come to."""

from functools import cache

import pytest
import torch
from composed import checked, execution, setup
from simulated_ranks import results

from algorithms.mixing.graphs import Exponential, Star
from algorithms.mixing.matrices import Exchange
from harness.errors import UserError
from harness.trial import averaged

SMALL = ["problem=least_squares", "problem.samples=240", "problem.features=10", "problem.condition=10.0"]
SMALL += ["problem.dtype=float64", "budget.epochs=4", "budget.observations=3", "tracking=none"]
STEP = ["algorithm.learning_rate=0.1", "algorithm.batch_size=6"]
ALL = ["algorithm/mixing=complete", "algorithm.mixing.weighting=uniform", "algorithm.overlap=false"]


@cache
def models(*overrides):
    """The average model at every milestone, shape (observations, parameters), and the consensus distances."""
    composed = setup(*SMALL, *STEP, *overrides)
    done = composed.machine.execute(composed.program(), lambda samples: None)
    assert done.failure is None
    observations, spreads = averaged(done.observations, composed.num_workers)
    return torch.stack([seen.parameters for seen in observations]), spreads


@pytest.mark.parametrize("hardware", ["cpu", "sim_ethernet"])
@pytest.mark.parametrize("algorithm", ["gossip", "stochastic_gradient_push"])
def test_the_complete_graph_with_uniform_weights_is_all_reduce_sgd(algorithm, hardware):
    there = [f"hardware={hardware}", "hardware.num_workers=3"]
    expected, _ = models("algorithm=all_reduce", *there)
    mine, spreads = models(f"algorithm={algorithm}", *ALL, *there)
    # rtol 1e-12: the order of sums differs
    torch.testing.assert_close(mine, expected, rtol=1e-12, atol=1e-13)
    assert max(spread["stat/consensus_distance"] for spread in spreads) < 1e-24  # of rounding errors


@pytest.mark.parametrize(("algorithm", "overlap"), [("gossip", "true"), ("stochastic_gradient_push", "false")])
def test_a_ring_keeps_models_apart_and_real_and_simulated_alike(algorithm, overlap):
    chosen = [f"algorithm={algorithm}", "algorithm/mixing=ring", f"algorithm.overlap={overlap}"]
    real, spreads = models(*chosen, "hardware=cpu", "hardware.num_workers=4")
    simulated, same = models(*chosen, "hardware=sim_ethernet", "hardware.num_workers=4")
    torch.testing.assert_close(real, simulated, rtol=1e-12, atol=1e-13)
    spread = spreads[-1]["stat/consensus_distance"]
    assert spread == pytest.approx(same[-1]["stat/consensus_distance"], rel=1e-9) and spread > 1e-6


@pytest.mark.parametrize("mixing", [Star("uniform"), Exponential("uniform")], ids=["star", "exponential"])
def test_push_sum_averages_to_the_true_mean(mixing):
    workers, size = 5, 4
    start = torch.randn(workers, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def push(worker):
        pushed = torch.cat([start[worker.rank], torch.ones(1, dtype=torch.float64)])
        (row,) = mixing.rows(workers, worker.rank)
        for _ in range(200):
            Exchange(pushed, row).finish()
        return pushed[:-1] / pushed[-1], pushed[-1]

    ends = results(push, workers)
    for ratio, _ in ends:
        torch.testing.assert_close(ratio, start.mean(dim=0), rtol=1e-9, atol=1e-12)
    assert sum(weight.item() for _, weight in ends) == pytest.approx(workers, rel=1e-12)
    unequal = max(weight.item() for _, weight in ends) > 1.5
    assert unequal == isinstance(mixing, Star)  # there the sums alone would go elsewhere


def test_push_sum_solves_where_columns_alone_sum_to_one():
    star = ["algorithm/mixing=star", "hardware=sim_ethernet", "hardware.num_workers=4", "budget.epochs=20"]
    mean, _ = models("algorithm=stochastic_gradient_push", *star)
    optimum = setup(*SMALL).problem.optimum
    assert (mean[-1] - optimum).norm() < 0.1 * optimum.norm()  # a constant step leaves noise
    with pytest.raises(UserError, match=r"weighting must be metropolis on this graph of 4 workers, or use algorithm="):
        setup("algorithm=gossip", *star, "algorithm.mixing.weighting=uniform", *SMALL)


COMPRESSED = ["algorithm=stochastic_gradient_push", "algorithm/compression=qsgd", "algorithm/mixing=exponential"]


@pytest.mark.parametrize("overlap", ["true", "false"])
def test_compressed_push_sum_is_the_same_for_real_and_near_what_it_is_without(overlap):
    there = [*COMPRESSED, f"algorithm.overlap={overlap}", "hardware.num_workers=3"]
    real, spreads = models(*there, "hardware=cpu")
    simulated, _ = models(*there, "hardware=sim_ethernet")
    torch.testing.assert_close(real, simulated, rtol=1e-12, atol=1e-13)
    whole, _ = models(*there, "algorithm/compression=none", "hardware=sim_ethernet")
    optimum = setup(*SMALL).problem.optimum
    assert (real[-1] - whole[-1]).norm() < 0.01 * optimum.norm()  # the mean's gradients are at other models
    assert 0 < spreads[-1]["stat/consensus_distance"] < 0.01 * optimum.norm() ** 2


def test_one_worker_that_compresses_pushes_to_nobody():
    alone, _ = models(*COMPRESSED, "hardware=sim_ethernet", "hardware.num_workers=1")
    sequential, _ = models("algorithm=sgd", "hardware=sim_ethernet", "hardware.num_workers=1")
    torch.testing.assert_close(alone, sequential, rtol=1e-12, atol=1e-13)


def test_compressed_push_sum_refuses_neighbours_that_change():
    changing = [*COMPRESSED[:2], "algorithm/mixing=one_peer_exponential", "hardware=sim_ethernet"]
    with pytest.raises(UserError, match="algorithm/mixing must be the same at every step where messages"):
        setup(*changing, "hardware.num_workers=4", *SMALL)
    setup(*changing, "hardware.num_workers=2", *SMALL)  # who have but one neighbour


def test_a_consensus_step_of_whole_messages_is_said_to_have_no_effect():
    chosen = ["algorithm=stochastic_gradient_push", "algorithm.consensus_step=0.5", "hardware=sim_ethernet", *SMALL]
    notice = "algorithm.consensus_step=0.5 has no effect with algorithm/compression=none"
    assert notice in checked(*chosen)[1]
    assert notice not in checked(*chosen, "algorithm/compression=half", "hardware.num_workers=2")[1]


def test_bytes_are_those_of_the_neighbours():
    done = execution("algorithm=gossip", *SMALL, *STEP, "hardware=sim_ethernet", "hardware.num_workers=5")
    assert [report.sent_bytes for report in done.workers] == [240 * 4 // 30 * 2 * 10 * 8] * 5


def test_the_summary_has_the_spectral_gap():
    assert setup("algorithm=gossip", *SMALL).algorithm.constants(3) == {"mixing/spectral_gap": pytest.approx(1)}
