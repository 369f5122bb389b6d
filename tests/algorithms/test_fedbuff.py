"""FedBuff: against FedAvg, against Algorithm 1 by hand, and real runs repeated in virtual time."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from composed import execution, setup

from algorithms import fedbuff
from harness.errors import UserError, WorkerFailed
from harness.trial import evaluate

SQUARES = ["problem=least_squares", "problem.dtype=float64", "problem.samples=120", "problem.features=4"]
SQUARES += ["algorithm.learning_rate=0.1", "algorithm.batch_size=8", "tracking=none", "budget.observations=1"]
SQUARES += ["algorithm.local_epochs=2", "budget.epochs=20"]
MLP = ["problem=digits_mlp", "tracking=none", "algorithm.local_epochs=2"]
EXACT = {"rtol": 1e-12, "atol": 1e-13}


def run(*overrides, hardware="sim_ethernet"):
    done = execution("algorithm=fedbuff", *SQUARES, f"hardware={hardware}", *overrides)
    assert done.failure is None, done.failure
    return done


def test_a_single_client_and_a_buffer_of_one_are_fedavg():
    one = ["algorithm.num_clients=1", "hardware.num_workers=1", "algorithm/schedule=cosine"]
    mine = run(*one, "algorithm.buffer_size=1").observations[-1]
    whole = ["algorithm=federated", *SQUARES, "hardware=sim_ethernet", *one, "algorithm.participation=1"]
    theirs = execution(*whole).observations[-1]
    assert (mine.samples, mine.updates) == (theirs.samples, theirs.updates) == (2400, 10)
    torch.testing.assert_close(mine.parameters, theirs.parameters, **EXACT)


def test_stale_changes_are_those_of_algorithm_1_written_by_hand():
    """Clients of 12 samples in one batch, of all speeds; who was heard when is the run's, all else is done again."""
    chosen = ["algorithm.num_clients=10", "algorithm.buffer_size=3", "algorithm.batch_size=12"]
    chosen += ["algorithm/devices=lognormal", "hardware.num_workers=4", "algorithm.server_learning_rate=0.7"]
    done = run(*chosen)
    composed = setup("algorithm=fedbuff", *SQUARES, *chosen)
    problem, parts = composed.problem, composed.algorithm.partition.split(composed.problem, 10, seed=0)
    centre, buffer, buffered, steps, number = torch.zeros(4, dtype=torch.float64), 0.0, 0, 0, 0
    tasks = {}

    def give(rank):
        nonlocal number
        free = np.setdiff1d(np.arange(10), [client for client, *_ in tasks.values()])
        client = int(np.random.default_rng([0, fedbuff._SAMPLING, number]).choice(free))
        tasks[rank], number = (client, centre, steps), number + 1

    for rank in range(4):
        give(rank)
    for rank in done.interleavings[4].sources:
        client, weights, version = tasks.pop(rank)
        matrix, labels, start = problem.matrix[parts[client]], problem.labels[parts[client]], weights
        for _ in range(2):
            weights = weights - 0.1 * matrix.T @ (matrix @ weights - labels) / 12
        buffer, buffered = buffer + (start - weights) / (1 + steps - version) ** 0.5, buffered + 1
        if buffered == 3:
            centre, buffer, buffered, steps = centre - 0.7 * buffer / 3, 0.0, 0, steps + 1
        if number < 100:  # tasks of 24 samples
            give(rank)
    centre = centre - 0.7 * buffer / buffered
    assert done.observations[-1].updates == steps + 1 == 34 and done.metrics["async/staleness_max"] >= 2
    torch.testing.assert_close(done.observations[-1].parameters, centre, rtol=1e-9, atol=1e-12)


def test_a_real_run_is_repeated_in_virtual_time():
    chosen = ["algorithm=fedbuff", *SQUARES, "algorithm.buffer_size=2", "algorithm.num_clients=7"]
    chosen += [
        "algorithm/compression=qsgd",
        "algorithm.compression.error_feedback=false",
        "hardware.num_workers=2",
        "algorithm/devices=lognormal",
    ]
    real, simulated = (setup(*chosen, f"hardware={hardware}") for hardware in ("cpu", "sim_ethernet"))
    first = real.machine.execute(real.program(), lambda samples: None)
    assert first.failure is None and len(first.interleavings[2].sources) > 20
    again = simulated.machine.execute(replace(simulated.program(), replay=first.interleavings), lambda samples: None)
    assert again.failure is None
    torch.testing.assert_close(again.observations[-1].parameters, first.observations[-1].parameters, **EXACT)
    assert again.metrics["async/staleness_hist"] == first.metrics["async/staleness_hist"]


def test_changes_are_as_stale_as_the_others_are_many():
    """Equal clients take turns: with a buffer of one, each other worker has moved the model once since."""
    equal = ["algorithm.num_clients=20", "hardware.num_workers=4"]
    found = run(*equal, "algorithm.buffer_size=1").metrics
    assert found["async/staleness_p95"] == 3 and sum(found["async/staleness_hist"]) == 200
    assert run(*equal, "algorithm.buffer_size=4").metrics["async/staleness_max"] <= 1


def test_stale_changes_count_less():
    chosen = ["algorithm.num_clients=20", "hardware.num_workers=4", "algorithm.buffer_size=1", "budget.epochs=2"]
    start = setup("algorithm=fedbuff", *SQUARES).problem.build_model(torch.device("cpu"), 0)
    initial = torch.nn.utils.parameters_to_vector(start.parameters())
    moved = [
        (run(*chosen, f"algorithm.staleness_exponent={a}").observations[-1].parameters - initial).norm()
        for a in (0, 0.5, 4)
    ]
    assert moved[0] > moved[1] > moved[2]


def test_more_workers_than_clients_take_turns():
    done = run("algorithm.num_clients=2", "hardware.num_workers=4", "algorithm.buffer_size=1")
    assert done.observations[-1].samples == 2400
    assert done.metrics["async/staleness_max"] <= 1


def test_takes_more_rounds_and_less_time_than_fedavg_where_devices_differ():
    """Nguyen et al., AISTATS 2022, section 5: a round waits for its slowest client, a buffer does not."""
    shared = [*MLP, "algorithm.num_clients=40", "algorithm/devices=lognormal", "algorithm.devices.sigma=1.5"]
    shared += ["hardware=sim_ethernet", "hardware.num_workers=8", "budget.epochs=8", "budget.observations=40"]

    def to_target(*overrides):
        composed = setup(*overrides, *shared)
        done = composed.machine.execute(composed.program(), lambda samples: None)
        losses = [values["train/loss"] for values in evaluate(composed.problem, 0, done.observations)]
        reached = next(seen for seen, loss in zip(done.observations, losses, strict=True) if loss < 1.7)
        return reached.updates, reached.time_s

    rounds, rounds_s = to_target("algorithm=federated", "algorithm.participation=0.2")  # 8 clients: one per worker
    steps, steps_s = to_target("algorithm=fedbuff", "algorithm.buffer_size=4")
    assert steps > rounds and steps_s < rounds_s / 2


def test_what_clients_send_is_compressed_and_measured():
    def sent(compression):
        chosen = [f"algorithm/compression={compression}", "algorithm.num_clients=20", "hardware.num_workers=2"]
        chosen += ["algorithm.compression.error_feedback=false"] * (compression != "none")
        done = run(*chosen, "problem.features=64")
        return done.metrics["comm/upload_bytes_mean"], sum(worker.sent_bytes for worker in done.workers[:2])

    assert sent("none") == (64 * 8, 200 * 64 * 8)
    assert sent("sign") == (8 + 64 / 8, 200 * (8 + 64 / 8))


@pytest.mark.parametrize(
    ("compression", "words"),
    [
        ("top_k", "algorithm.compression.error_feedback must be false with algorithm=fedbuff"),
        ("power_sgd", "algorithm/compression must make messages of one worker alone with algorithm=fedbuff"),
    ],
)
def test_compression_that_cannot_be_is_refused(compression, words):
    with pytest.raises(UserError, match=words):
        setup("algorithm=fedbuff", *SQUARES, "hardware=sim_ethernet", f"algorithm/compression={compression}")


def test_a_server_that_dies_ends_the_run():
    chosen = ["algorithm=fedbuff", *SQUARES, "hardware=sim_ethernet", "hardware.num_workers=2"]
    done = execution(*chosen, "hardware.deaths={2: 0.001}")
    assert isinstance(done.failure, WorkerFailed) and "rank 2" in str(done.failure)


@pytest.mark.parametrize(
    "setting", ["buffer_size=0", "staleness_exponent=-1", "num_clients=0", "local_epochs=0", "server_learning_rate=0"]
)
def test_nonsense_is_refused_by_name(setting):
    with pytest.raises(UserError, match=f"algorithm.{setting.split('=')[0]}"):
        setup("algorithm=fedbuff", *SQUARES, f"algorithm.{setting}")
