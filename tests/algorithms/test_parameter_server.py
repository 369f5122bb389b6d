"""Parameter servers: what each consistency promises, and runs that are repeated."""

from dataclasses import replace

import pytest
import torch
from composed import execution, setup

from harness.errors import UserError, WorkerFailed
from harness.interleaving import read, write
from harness.trial import averaged

MLP = ["problem=digits_mlp", "problem.dtype=float64", "budget.observations=2", "tracking=none"]
EPOCHS = "budget.epochs=0.33401"  # 480 samples
SERVER = ["algorithm=parameter_server", "algorithm.learning_rate=0.1", EPOCHS]
STRAGGLING = ["hardware=sim_ethernet", "hardware.num_workers=3", "hardware.stragglers={0: 8.0}"]


def run(*overrides):
    done = execution(*MLP, *SERVER, *overrides)
    assert done.failure is None, done.failure
    return done


@pytest.mark.parametrize("servers", [1, 3])
@pytest.mark.parametrize(("hardware", "workers"), [("sim_ethernet", 2), ("sim_ethernet", 4), ("cpu", 2)])
def test_synchronous_is_minibatch_sgd(hardware, workers, servers):
    rounds = f"algorithm.batch_size={24 // workers}", "algorithm.consistency=synchronous"
    chosen = [*rounds, f"algorithm.num_servers={servers}", f"hardware={hardware}", f"hardware.num_workers={workers}"]
    alone = execution(*MLP, EPOCHS, "algorithm=sgd", "algorithm.batch_size=24", "algorithm.learning_rate=0.1",
                      "hardware=sim_ethernet", "hardware.num_workers=1")  # fmt: skip
    mine, reference = run(*chosen).observations[-1], alone.observations[-1]
    assert (mine.samples, mine.updates) == (reference.samples, reference.updates) == (480, 20)
    torch.testing.assert_close(mine.parameters, reference.parameters, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("consistency", ["asynchronous", "bounded_staleness", "backup_workers"])
def test_every_push_of_a_single_worker_counts(consistency):
    chosen = ["hardware=sim_ethernet", "hardware.num_workers=1", "algorithm.batch_size=24"]
    alone = execution(*MLP, EPOCHS, "algorithm=sgd", "algorithm.learning_rate=0.1", *chosen)
    mine = run(f"algorithm.consistency={consistency}", "algorithm.backups=0", *chosen)
    torch.testing.assert_close(
        mine.observations[-1].parameters, alone.observations[-1].parameters, rtol=1e-12, atol=1e-13
    )


def test_gradients_are_as_stale_as_the_others_are_many():
    """Equal workers take turns: between two pushes of one, each other one has pushed once."""
    found = run("hardware=sim_ethernet", "hardware.num_workers=4", "algorithm.batch_size=4", "budget.epochs=1").metrics
    assert found["async/staleness_p95"] == 3 and abs(found["async/staleness_mean"] - 3) < 0.1
    assert sum(found["async/staleness_hist"]) == 360  # pushes: 1,438 samples by 4


@pytest.mark.parametrize("bound", [0, 2])
def test_bounded_staleness_keeps_the_fast_back(bound):
    """With s, a worker is at most s pushes ahead of the slowest; unbounded, a straggler is left behind."""
    chosen = [*STRAGGLING, "algorithm.batch_size=4"]

    def stalest(*how):
        return run(*chosen, *how).metrics["async/staleness_max"]

    kept = stalest("algorithm.consistency=bounded_staleness", f"algorithm.staleness={bound}")
    assert kept <= 2 * (2 * bound + 1)  # each of two others: s behind to s ahead of the slowest, and one under way
    assert kept < stalest("algorithm.consistency=asynchronous")


def test_backup_workers_drop_the_straggler():
    chosen = [*STRAGGLING, "algorithm.batch_size=4"]
    backed = run(*chosen, "algorithm.consistency=backup_workers", "algorithm.backups=1")
    waiting = run(*chosen, "algorithm.consistency=synchronous")
    assert backed.metrics["async/dropped_mean"] > 0
    assert backed.run_s < 0.7 * waiting.run_s


def test_a_stale_gradient_takes_a_smaller_step():
    chosen = ["hardware=sim_ethernet", "hardware.num_workers=4", "algorithm.batch_size=4"]
    one, other = (run(*chosen, f"algorithm.staleness_aware={aware}") for aware in ("true", "false"))
    start = setup(*MLP).problem.build_model(torch.device("cpu"), 0)
    initial = torch.nn.utils.parameters_to_vector(start.parameters())
    moved = [(done.observations[-1].parameters - initial).norm() for done in (one, other)]
    assert moved[0] < moved[1]


@pytest.mark.parametrize("consistency", ["asynchronous", "bounded_staleness", "backup_workers"])
def test_a_real_run_is_repeated_in_virtual_time(consistency, tmp_path):
    chosen = [f"algorithm.consistency={consistency}", "algorithm.num_servers=2", "hardware.num_workers=2"]
    real = run(*chosen, "hardware=cpu")
    write(tmp_path / "interleaving.json", real.interleavings)
    simulated = setup(*MLP, *SERVER, *chosen, "hardware=sim_ethernet")
    program = replace(simulated.program(), replay=read(tmp_path / "interleaving.json"))
    repeated = simulated.machine.execute(program, lambda samples: None)
    assert repeated.failure is None
    for mine, theirs in zip(repeated.observations, real.observations, strict=True):
        assert (mine.samples, mine.updates) == (theirs.samples, theirs.updates)
        torch.testing.assert_close(mine.parameters, theirs.parameters, rtol=1e-12, atol=1e-13)
    assert [each.sources for each in repeated.interleavings] == [each.sources for each in real.interleavings]


def test_what_is_to_be_repeated_must_be_there(tmp_path):
    with pytest.raises(UserError, match="replay="):
        setup(*MLP, *SERVER, "hardware=sim_ethernet", f"replay={tmp_path}")


def test_what_an_older_version_wrote_is_not_repeated(tmp_path):
    (tmp_path / "interleaving.json").write_text('[{"claims": [0], "sources": [], "turns": []}]')
    with pytest.raises(UserError, match="was written by an older version: run it again"):
        read(tmp_path / "interleaving.json")


def test_a_server_that_dies_ends_the_run():
    done = execution(*MLP, *SERVER, "hardware=sim_ethernet", "hardware.num_workers=2", "hardware.deaths={2: 0.001}")
    assert isinstance(done.failure, WorkerFailed) and "rank 2" in str(done.failure)


@pytest.mark.parametrize(
    "setting", ["num_servers=0", "consistency=eventual", "staleness=-1", "backups=-1", "backups=2"]
)
def test_nonsense_is_refused_by_name(setting):
    chosen = ["algorithm.consistency=backup_workers"] if setting == "backups=2" else []
    with pytest.raises(UserError, match=f"algorithm.{setting.split('=')[0]}"):
        setup(*MLP, *SERVER, *chosen, f"algorithm.{setting}", "hardware=sim_ethernet", "hardware.num_workers=2")


def test_what_late_pushes_would_owe_is_refused():
    chosen = [*SERVER, "hardware=sim_ethernet", "algorithm.consistency=backup_workers", "algorithm/compression=top_k"]
    rule = "error_feedback must be false with algorithm.consistency=backup_workers: late pushes are dropped"
    with pytest.raises(UserError, match=rule):
        setup(*MLP, *chosen)
    setup(*MLP, *chosen, "algorithm.compression.error_feedback=false")


def test_models_of_ones_own_are_averaged():
    from harness.place import Observation

    own = [
        Observation(1.0 + rank, 0.0, 10 + rank, 5, torch.tensor([0.0, 2.0 * rank]), member=rank, milestone=0)
        for rank in range(2)
    ]
    unfinished = Observation(9.0, 0.0, 20, 9, torch.zeros(2), member=0, milestone=1)
    seen, spreads = averaged([*own, unfinished], num_workers=2)
    assert [(each.time_s, each.samples, each.parameters.tolist()) for each in seen] == [(2.0, 11, [0.0, 1.0])]
    assert spreads == [{"stat/consensus_distance": 1.0}]
