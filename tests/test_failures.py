"""A worker or server that dies, and a loss that is not finite: one clear error, soon, and what was observed is kept."""

import re

import pytest
from composed import setup
from small_runs import COMMON, SENDING, run, settings

from hardware.real import processes
from harness.errors import Diverged, WorkerFailed

SEARCH = "hyperparameter_search"  # observes when a trial ends, and takes divergence for a result
SERVED = ("parameter_server", "elastic_averaging", "federated")
DEATHS = [(algorithm, 1) for algorithm in SENDING] + [(algorithm, 2) for algorithm in SERVED]  # a worker, a server
SERVER = "server 0 (rank 2)"
LONG = ["budget.epochs=2000", "budget.observations=2000", "hardware.timeout_s=20"]
CONSISTENCIES = ("synchronous", "backup_workers", "bounded_staleness")


def failing(algorithm, *extra):
    """What comes of a run of two workers that does not go well."""
    composed = setup(f"algorithm={algorithm}", *settings(algorithm), *COMMON, "hardware.num_workers=2", *extra)
    return composed.machine.execute(composed.program(), lambda samples: None)


@pytest.mark.parametrize(("algorithm", "rank"), DEATHS)
def test_a_simulated_rank_that_dies_is_named(algorithm, rank):
    _, _, well = run(algorithm, "sim_ethernet", 2)
    death_s = 0.7 * well.run_s
    execution = failing(algorithm, "hardware=sim_ethernet", f"hardware.deaths={{{rank}: {death_s}}}")
    assert isinstance(execution.failure, WorkerFailed)
    assert f"{SERVER if rank == 2 else 'rank 1'} died at {death_s:.6g} s" in str(execution.failure)
    assert 0 < len(execution.observations) < len(well.observations)


@pytest.mark.parametrize("consistency", CONSISTENCIES)
def test_whatever_the_servers_wait_for_a_death_is_named(consistency):
    chosen = ["hardware=sim_ethernet", f"algorithm.consistency={consistency}", "hardware.deaths={1: 0.004}"]
    assert "rank 1 died at 0.004 s" in str(failing("parameter_server", *chosen).failure)


@pytest.mark.parametrize(("algorithm", "rank"), [each for each in DEATHS if each[0] != SEARCH])
def test_a_real_rank_that_is_killed_is_named(algorithm, rank, tmp_path):
    layered = "problem=digits_mlp" in settings(algorithm)
    target = f"problem._target_=dying.{'DyingLayers' if layered else 'Dying'}"
    victim = target, f"+problem.victim={rank}", f"+problem.pid_file={tmp_path}/pid"
    execution = failing(algorithm, "hardware=cpu", *LONG, *victim)
    who = re.escape(SERVER if rank == 2 else "worker 1")
    assert re.fullmatch(rf"{who} \(pid \d+\) was killed by signal 9 \(SIGKILL\)", str(execution.failure))
    assert len(execution.observations) > 0


@pytest.mark.parametrize(("algorithm", "rank", "timeout_s"), [("parameter_server", 2, 20), ("all_reduce", 1, 1)])
def test_a_real_rank_that_is_stopped_is_named(algorithm, rank, timeout_s, tmp_path, monkeypatch):
    """Whether it is seen before the others have given up, or thereafter."""
    monkeypatch.setattr(processes, "STOPPED_LOOKS", 2 if timeout_s > 1 else 1000)
    victim = ["problem._target_=dying.Dying", f"+problem.victim={rank}", f"+problem.pid_file={tmp_path}/pid"]
    stopping = [f"hardware.timeout_s={timeout_s}", *victim, "+problem.signal=SIGSTOP"]
    execution = failing(algorithm, "hardware=cpu", *LONG, *stopping)
    who = re.escape(SERVER if rank == 2 else "worker 1")
    assert re.fullmatch(rf"{who} \(pid \d+\) was stopped by a signal \(SIGSTOP\), .*", str(execution.failure))
    assert len(execution.observations) > 0


@pytest.mark.parametrize("hardware", ["sim_ethernet", "cpu"])
@pytest.mark.parametrize("algorithm", [each for each in SENDING if each != SEARCH])
def test_weights_that_are_not_finite_end_the_run(algorithm, hardware):
    execution = failing(algorithm, f"hardware={hardware}", "algorithm.learning_rate=1e300")
    assert isinstance(execution.failure, Diverged) and "lower algorithm.learning_rate" in str(execution.failure)
    assert len(execution.observations) > 0
