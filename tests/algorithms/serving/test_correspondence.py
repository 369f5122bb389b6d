"""Servers hear and answer all their workers at a time: a latency there and one back, however many they are."""

import pytest
from composed import execution

FAR = ["hardware=sim_ethernet", "hardware.network.latency_s=0.01", "hardware/compute=fixed", "tracking=none"]
SQUARES = ["problem=least_squares", "problem.samples=240", "problem.features=4", "budget.observations=1"]
CHOSEN = [*FAR, *SQUARES, "algorithm.batch_size=4", "algorithm.learning_rate=0.05"]
SERVERS = {  # and the exchanges of a worker of eight that has an eighth of the samples
    "synchronous": (["algorithm=parameter_server", "algorithm.consistency=synchronous", "budget.epochs=2"], 15),
    "asynchronous": (["algorithm=parameter_server", "algorithm.consistency=asynchronous", "budget.epochs=2"], 15),
    "bounded": (["algorithm=parameter_server", "algorithm.consistency=bounded_staleness", "budget.epochs=2"], 15),
    "elastic": (["algorithm=elastic_averaging", "algorithm.period=1", "budget.epochs=2"], 15),
    # 80 tasks of 12 samples
    "fedbuff": (["algorithm=fedbuff", "algorithm.num_clients=20", "algorithm.local_epochs=1", "budget.epochs=4"], 10),
}


@pytest.mark.parametrize("server", SERVERS)
def test_latencies_of_several_workers_pass_together(server):
    settings, exchanges = SERVERS[server]
    done = execution(*CHOSEN, *settings, "hardware.num_workers=8")
    assert done.failure is None, done.failure
    assert 0.9 < 2 * 0.01 * exchanges / done.run_s < 1.1


def test_trials_of_several_workers_pass_together():
    """A job goes there, a result and a model come back."""
    chosen = ["algorithm=hyperparameter_search", "algorithm.trials=16", "budget.epochs=1"]
    alone, eight = (execution(*CHOSEN, *chosen, f"hardware.num_workers={workers}").run_s for workers in (1, 8))
    assert eight < alone / 3
