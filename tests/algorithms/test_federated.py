"""Federated rounds: against all-reduce, whoever plays the clients, and where their data differ."""

from collections import defaultdict

import numpy as np
import pytest
import torch
from composed import execution, setup

from algorithms.federation.clients import Player

MLP = ["problem=digits_mlp", "problem.dtype=float64"]
SQUARES = ["problem=least_squares", "problem.dtype=float64", "problem.samples=240", "problem.features=4"]
SQUARES += ["problem.condition=4.0", "problem.noise=1.0"]
SHORT = ["algorithm=federated", "tracking=none", "budget.observations=1", "algorithm.learning_rate=0.1"]
ALL = ["algorithm.participation=1", "algorithm.local_epochs=1"]
EXACT = {"rtol": 1e-12, "atol": 1e-13}  # sums in another order; measured differences are below 1e-14


def run(*overrides):
    done = execution(*SHORT, *overrides)
    assert done.failure is None
    return done


def final(*overrides):
    return run(*overrides).observations[-1].parameters


@pytest.mark.parametrize("hardware", ["cpu", "sim_ethernet"])
def test_a_client_per_worker_and_one_local_step_are_all_reduce(hardware):
    whole = [*SQUARES, f"hardware={hardware}", "hardware.num_workers=2", "budget.epochs=5", "algorithm.batch_size=120"]
    federated = final(*whole, *ALL, "algorithm.num_clients=2")
    all_reduce = execution("algorithm=all_reduce", *SHORT[1:], *whole).observations[-1].parameters
    torch.testing.assert_close(federated, all_reduce, **EXACT)


@pytest.mark.parametrize(
    "method",
    [
        [],
        ["algorithm.control_variates=true", "algorithm/schedule=cosine"],
        ["algorithm/optimizer@algorithm.server=adam"],
        ["algorithm/compression=qsgd", "algorithm/devices=lognormal"],
    ],
)
def test_weights_do_not_depend_on_the_number_of_workers(method):
    chosen = [*MLP, *method, "budget.epochs=2", "algorithm.num_clients=20", "algorithm.dropout=0.3"]
    chosen += ["algorithm/partition=dirichlet", "hardware=sim_ethernet", "algorithm.server_learning_rate=0.5"]
    alone, several = (run(*chosen, f"hardware.num_workers={workers}") for workers in (1, 3))
    assert alone.observations[-1].samples == several.observations[-1].samples == 2 * setup(*MLP).problem.num_samples
    assert (several.observations[-1].parameters == alone.observations[-1].parameters).all()


DIFFERENT = [*SQUARES, *ALL, "algorithm.num_clients=6", "algorithm/partition=by_label", "algorithm.partition.shards=1"]
DIFFERENT += ["algorithm.local_epochs=10", "algorithm.batch_size=40", "budget.epochs=600", "hardware=sim_ethernet"]
DIFFERENT += ["algorithm.learning_rate=0.2"]


def test_fedavg_drifts_to_where_its_own_equation_says():
    """Client k's ten full-batch steps are y -> M_k y + b_k, and the fixed point of their mean is not the optimum."""
    composed = setup(*SHORT, *DIFFERENT)
    problem, maps = composed.problem, []
    for samples in composed.algorithm.partition.split(problem, 6, seed=0):
        matrix, labels = problem.matrix[samples], problem.labels[samples]
        step = torch.eye(4, dtype=torch.float64) - 0.2 * matrix.T @ matrix / 40
        powers = [torch.linalg.matrix_power(step, power) for power in range(11)]
        maps.append((powers[10], sum(powers[:10]) @ (0.2 * matrix.T @ labels / 40)))
    slopes, offsets = (torch.stack(parts).mean(dim=0) for parts in zip(*maps, strict=True))
    fixed = torch.linalg.solve(torch.eye(4, dtype=torch.float64) - slopes, offsets)
    torch.testing.assert_close(final(*DIFFERENT), fixed, rtol=1e-9, atol=1e-9)
    assert torch.linalg.vector_norm(fixed - problem.optimum) > 1e-3


@pytest.mark.parametrize("clients", [pytest.param([], marks=pytest.mark.slow), ["algorithm.num_clients=7"]])
def test_control_variates_remove_the_drift_of_clients_whose_data_differ(clients):
    """With full participation on quadratics nothing of it is left (Karimireddy et al., ICML 2020, theorem III)."""
    done = final(*DIFFERENT, "algorithm.control_variates=true", *clients)
    assert torch.linalg.vector_norm(done - setup(*SQUARES).problem.optimum) < 1e-9


def test_control_variates_do_so_of_compressed_changes_too():
    """Corrections made of what a message says, with what is owed from before, would diverge."""
    chosen = ["algorithm.control_variates=true", "algorithm/compression=top_k", "algorithm.compression.fraction=0.25"]
    done = run(*DIFFERENT, "problem.features=20", *chosen)
    optimum = setup(*SQUARES, "problem.features=20").problem.optimum
    assert torch.linalg.vector_norm(done.observations[-1].parameters - optimum) < 1e-8
    assert done.metrics["comm/upload_bytes_mean"] == 5 * (8 + 4) + 20 * 8  # of the change, and of the correction


def test_a_proximal_term_holds_clients_near_the_common_model():
    chosen = [*SQUARES, *ALL, "algorithm.num_clients=6", "algorithm.local_epochs=10", "hardware=sim_ethernet"]
    chosen += ["budget.epochs=10", "algorithm.batch_size=40"]  # one round
    free, held = (torch.linalg.vector_norm(final(*chosen, f"algorithm.proximal={mu}")) for mu in (0, 5))
    assert held < 0.5 * free


def test_two_rounds_are_fedavg_written_by_hand():
    """Of two epochs each; the clients' learning rate is that of the round's beginning."""
    chosen = [*SQUARES, *ALL, "algorithm.num_clients=3", "algorithm/partition=by_label", "algorithm.batch_size=80"]
    chosen += ["budget.epochs=4", "algorithm.local_epochs=2", "algorithm/schedule=step_decay"]
    chosen += ["algorithm.schedule.every=1.5", "algorithm.schedule.decay=0.3"]
    composed = setup(*SHORT, *chosen)
    problem, common = composed.problem, torch.zeros(4, dtype=torch.float64)
    for learning_rate in (0.1, 0.03):
        models = []
        for samples in composed.algorithm.partition.split(problem, 3, seed=0):
            matrix, labels, weights = problem.matrix[samples], problem.labels[samples], common
            for _ in range(2):
                weights = weights - learning_rate * matrix.T @ (matrix @ weights - labels) / len(labels)
            models.append(weights)
        common = torch.stack(models).mean(dim=0)
    torch.testing.assert_close(final(*chosen, "hardware=sim_ethernet"), common, **EXACT)


def test_a_thousand_clients():
    done = run(*MLP, "algorithm.num_clients=1000", "budget.epochs=0.5", "hardware=sim_ethernet")
    assert done.observations[-1].samples == round(0.5 * setup(*MLP).problem.num_samples)


def test_rounds_are_seeded_and_sample_everybody_alike():
    algorithm = setup(*SHORT, *MLP, "algorithm.num_clients=20", "algorithm.participation=0.25").algorithm

    def rounds(count, seed):
        return [algorithm.sample(np.arange(20), number, seed) for number in range(count)]

    assert rounds(9, seed=1) == rounds(9, seed=1) != rounds(9, seed=2)
    sampled = rounds(2000, seed=1)
    assert all(len(set(clients)) == 5 for clients in sampled)
    counts = np.bincount(np.concatenate(sampled), minlength=20)  # of 2,000 draws with probability 1/4
    assert abs(counts - 500).max() < 5 * (2000 * 0.25 * 0.75) ** 0.5  # five standard deviations


def test_only_so_many_are_sampled_as_are_available():
    algorithm = setup(*SHORT, *MLP, "algorithm.num_clients=20", "algorithm.participation=0.25").algorithm
    assert algorithm.sample(np.array([3, 7]), number=0, seed=0) == [3, 7]


def test_dropout_takes_its_share_and_leaves_somebody():
    chosen = ["algorithm.num_clients=10", "algorithm.participation=1", "algorithm.dropout=0.7"]
    algorithm = setup(*SHORT, *MLP, *chosen).algorithm
    sizes = [len(algorithm.sample(np.arange(10), number, seed=0)) for number in range(1000)]
    assert min(sizes) == 1
    assert abs(np.mean(sizes) - 3) < 0.3  # the mean of 1,000 binomials, sd 0.046, and the rule that one stays, +0.03


@pytest.mark.parametrize("partition", ["iid", "by_label", "dirichlet"])
def test_every_sample_has_one_client(partition):
    composed = setup(*SHORT, *MLP, f"algorithm/partition={partition}")
    parts = composed.algorithm.partition.split(composed.problem, 100, seed=3)
    assert len(parts) == 100
    assert sorted(np.concatenate(parts).tolist()) == list(range(composed.problem.num_samples))


def test_partitions_differ_in_how_many_labels_a_client_has():
    def labels(*partition):
        composed = setup(*SHORT, *MLP, *partition)
        parts = composed.algorithm.partition.split(composed.problem, 10, seed=0)
        return np.mean([len(composed.problem.labels[torch.from_numpy(part).long()].unique()) for part in parts])

    assert labels() == 10
    assert labels("algorithm/partition=by_label") <= 4  # two shards, each of two labels at most
    alphas = [
        labels("algorithm/partition=dirichlet", f"algorithm.partition.alpha={alpha}") for alpha in (0.02, 0.2, 50)
    ]
    assert alphas[0] < alphas[1] < alphas[2] == 10


@pytest.mark.parametrize("hardware", ["sim_ethernet", "cpu"])
def test_what_is_sent_to_and_from_every_client_is_counted(hardware):
    """Ten clients a round for five rounds; a model of 64 numbers and a task of 4, and 64 signs and a scale."""
    chosen = [*SQUARES, "algorithm.num_clients=20", f"hardware={hardware}", "hardware.num_workers=2"]
    chosen += ["algorithm.participation=0.5", "problem.features=64", "algorithm.local_epochs=1", "budget.epochs=2.5"]
    done = run(*chosen, "algorithm/compression=sign")
    *workers, server = [each.sent_bytes for each in done.workers]
    down, up = 64 * 8 + 4 * 8, 64 / 8 + 8
    assert done.metrics["comm/upload_bytes_mean"] == done.metrics["comm/upload_bytes_max"] == up
    assert done.metrics["comm/download_bytes_mean"] == down
    assert sum(workers) == 50 * up and server == (50 + 2) * down  # and goodbyes
    variates = run(*chosen, "algorithm.control_variates=true")
    assert variates.metrics["comm/upload_bytes_mean"] == 2 * 64 * 8
    assert variates.metrics["comm/download_bytes_mean"] == 2 * 64 * 8 + 4 * 8


def test_compression_saves_the_time_that_it_saves_bytes():
    slow = ["algorithm.num_clients=4", "algorithm.participation=1", "hardware=sim_ethernet", "hardware.num_workers=2"]
    slow += ["hardware/compute=fixed", "hardware.network.bandwidth_bytes_per_s=1e6", "budget.epochs=5"]
    slow += ["algorithm.local_epochs=1", "hardware.compute.seconds_per_sample=1e-12"]
    whole, compressed = (run(*MLP, *slow, f"algorithm/compression={each}") for each in ("none", "sign"))
    model_s = whole.metrics["comm/upload_bytes_mean"] / 1e6
    # four models leave the server's port, and four came to it
    assert whole.run_s == pytest.approx(5 * 8 * model_s, rel=0.2)
    assert compressed.run_s == pytest.approx(5 * 4 * model_s, rel=0.2)


def test_a_worker_is_sent_its_next_client_while_it_plays_one():
    """Two clients that take 1 s each on one worker, messages 0.1 s; else there would be four of these in a round."""
    slow = [*SQUARES, "algorithm.num_clients=2", "algorithm.participation=1", "hardware=sim_ethernet"]
    slow += ["hardware.num_workers=1", "hardware/compute=fixed", "hardware.network.latency_s=0.1", "budget.epochs=10"]
    slow += ["algorithm.local_epochs=1", f"hardware.compute.seconds_per_sample={1 / 120}"]
    assert run(*slow).run_s == pytest.approx(10 * (2 + 2 * 0.1), rel=0.03)


def test_what_compression_leaves_out_is_sent_later(monkeypatch):
    """Of one entry in twenty at a time; a client owes what it owes, whichever worker plays it."""
    chosen = [*SQUARES, "algorithm.num_clients=4", "algorithm.participation=1", "problem.features=20"]
    chosen += ["algorithm/compression=top_k", "algorithm.compression.fraction=0.05", "budget.epochs=100"]
    chosen += ["hardware=sim_ethernet"]
    play, compressor = Player.play, setup(*SHORT, *chosen).algorithm.compressor
    meant, said, owed = defaultdict(int), defaultdict(int), {}

    def watched(self, common, task, drift=None):
        message, distance = play(self, common, task, drift)
        meant[task.client] += common - self.weights
        said[task.client] += compressor.decode(message, common)
        owed[task.client] = self._senders[task.client].feedback.residual.clone()
        return message, distance

    two = final(*chosen, "hardware.num_workers=2")
    monkeypatch.setattr(Player, "play", watched)
    three = final(*chosen, "hardware.num_workers=3")
    assert (two == three).all()
    assert sorted(owed) == [0, 1, 2, 3]
    for client, residual in owed.items():
        assert residual.abs().max() > 0
        torch.testing.assert_close(said[client] + residual, meant[client], **EXACT)


def test_refuses_labels_where_there_are_none():
    problem = ["problem=matrix_completion", "problem.synthetic_ratings=2000"]
    with pytest.raises(ValueError, match=r"algorithm/partition=by_label needs a label of every sample, which"):
        setup(*SHORT, *problem, "algorithm/partition=by_label")


@pytest.mark.parametrize(
    ("override", "rule"),
    [
        ("algorithm.num_clients=5000", r"algorithm\.num_clients must be at most the 1438 samples"),
        ("algorithm.participation=0", r"algorithm\.participation must be in \(0, 1\]"),
        ("algorithm.dropout=1", r"algorithm\.dropout must be in \[0, 1\)"),
        ("algorithm.partition.alpha=0", r"algorithm\.partition\.alpha must be > 0"),
        ("algorithm/optimizer=adam", r"algorithm\.control_variates must be false unless"),
    ],
)
def test_refuses_what_cannot_be(override, rule):
    chosen = ["algorithm/partition=dirichlet", "algorithm.control_variates=true"]
    with pytest.raises(ValueError, match=rule):
        setup(*SHORT, *MLP, *chosen, override)
