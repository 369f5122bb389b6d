"""A search finds the same best whatever the number of workers, in a fraction of the time, and repeats."""

import json

import pytest
import torch
from commands import command
from composed import execution, setup
from rich.console import Console

from hardware.real import processes
from hardware.simulated import engine
from harness import trial
from harness.errors import UserError, WorkerFailed
from harness.progress import Progress
from harness.setup import run_info

MLP = ["problem=digits_mlp", "problem.hidden_sizes=[8]", "problem.dtype=float64", "tracking=none"]
SEARCH = [*MLP, "algorithm=hyperparameter_search", "algorithm.trials=8", "budget.epochs=2"]
ETHERNET, PAIRS = (
    "hardware=sim_ethernet",
    ["algorithm.reduction=2", "algorithm.min_epochs=0.1", "algorithm.max_epochs=0.4"],
)


def run(*overrides):
    done = execution(*SEARCH, *overrides)
    assert done.failure is None, done.failure
    return done


def found(done):
    return {
        key: value for key, value in done.metrics.items() if key.startswith("search/") and key != "search/best_time_s"
    }


@pytest.mark.parametrize("hardware", ["cpu", "sim_ethernet"])
def test_a_trial_is_seen_to_go_on(hardware, monkeypatch):
    monkeypatch.setattr(processes, "PROGRESS_S", 0.002)
    monkeypatch.setattr(engine, "LOOK_S", 0.002)
    chosen = [*SEARCH, f"hardware={hardware}", "hardware.num_workers=1", "algorithm.trials=1"]
    composed, seen = setup(*chosen), []
    done = composed.machine.execute(composed.program(), seen.append)
    assert done.failure is None and seen == sorted(seen) and seen[-1] == done.observations[-1].samples
    assert any(0 < each < seen[-1] for each in seen)


@pytest.mark.parametrize("strategy", ["grid", "random", "successive_halving"])
def test_what_is_found_depends_on_the_seed_alone(strategy):
    chosen = [
        f"algorithm.strategy={strategy}",
        *PAIRS,
        "algorithm.grid_points=2",
        "algorithm.space.batch_size=one_of(16)",
    ]
    alone, three = (run(*chosen, ETHERNET, f"hardware.num_workers={workers}") for workers in (1, 3))
    assert found(alone) == found(three)
    assert torch.equal(alone.observations[-1].parameters, three.observations[-1].parameters)
    assert three.observations[-1].samples == alone.observations[-1].samples == 2 * 1438
    assert three.run_s < 0.6 * alone.run_s  # 4 trials or more by 3 workers


def test_processes_find_what_simulated_workers_find():
    real, simulated = (run(f"hardware={name}", "hardware.num_workers=2") for name in ("cpu", "sim_ethernet"))
    assert found(real)["search/best_trial"] == found(simulated)["search/best_trial"]
    torch.testing.assert_close(
        real.observations[-1].parameters, simulated.observations[-1].parameters, rtol=1e-12, atol=1e-13
    )


def test_asha_is_repeated_in_virtual_time():
    chosen = ["algorithm.strategy=asha", *PAIRS, "hardware.num_workers=2"]
    real, composed = run(*chosen, "hardware=cpu"), setup(*SEARCH, *chosen, ETHERNET)
    program = composed.program()
    repeated = composed.machine.execute(
        type(program)(**{**vars(program), "replay": real.interleavings}), lambda samples: None
    )
    assert repeated.failure is None, repeated.failure
    assert repeated.metrics["search/trials"] == real.metrics["search/trials"] > 8
    for one, other in zip(repeated.metrics["search/results"], real.metrics["search/results"], strict=True):
        assert one == pytest.approx(other, rel=1e-9)


def test_the_best_trial_is_sgd_with_its_settings():
    """Of the samples that are not held out, in their order: the model that counts is reproduced by hand."""
    from algorithms.common.optimizers import Momentum
    from algorithms.search.trainer import Trainer

    done, composed = run(ETHERNET, "hardware.num_workers=2"), setup(*SEARCH, ETHERNET)
    best = done.metrics["search/results"][done.metrics["search/best_trial"]]
    optimizer, step, size = composed.algorithm.of(
        {key: best[key] for key in ("learning_rate", "batch_size", "momentum")}
    )
    assert optimizer == Momentum(0.0, best["momentum"], False)

    class Alone:
        seed, device = 0, torch.device("cpu")

        def batches_of(self, samples, batch_size):
            return samples.split(batch_size)

    trainer = Trainer(composed.algorithm, Alone(), composed.problem)
    model = composed.problem.build_model(torch.device("cpu"), 0)
    steps = torch.optim.SGD(model.parameters(), step, momentum=best["momentum"])
    for batch in trainer._batches(0, best["samples"], size):
        steps.zero_grad()
        composed.problem.loss(model, batch).backward()
        steps.step()
    weights = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
    torch.testing.assert_close(done.observations[-1].parameters, weights, rtol=1e-10, atol=1e-12)
    held_out = {*trainer._validation.tolist()}
    assert len(held_out) == 144 and not held_out & {*trainer._training.tolist()}


def test_trials_that_diverge_are_a_result():
    wild = ["algorithm.space={learning_rate: 'one_of(0.1, 1e200)', batch_size: null, momentum: null}"]
    wild += ["algorithm.strategy=grid", "budget.epochs=1"]
    done = run(ETHERNET, "hardware.num_workers=2", *wild)
    assert (done.metrics["search/trials"], done.metrics["search/diverged"]) == (2, 1)
    assert done.metrics["search/best_learning_rate"] == 0.1
    assert [len(each) for each in done.metrics["search/results"]] == [4, 3]  # of the other, no loss


def test_a_run_says_what_it_found_and_how_fast(tmp_path):
    chosen = [each for each in SEARCH if each != "tracking=none"]
    outcome = command(*chosen, ETHERNET, "hardware.num_workers=4", "tracking=files", runs_dir=tmp_path)
    assert outcome.returncode == 0, outcome.stderr
    assert "8 trials" in outcome.stdout and "to the best loss" in outcome.stdout
    (summary,) = [json.loads(path.read_text()) for path in tmp_path.glob("2*/*/summary.json")]
    assert summary["speedup/baseline_name"] == "sim-hyperparameter_search(trials=8)-ethernet-w1-s0"
    assert summary["speedup/time_to_best"] > 1.5


@pytest.mark.parametrize(
    ("setting", "field"),
    [
        ("algorithm.strategy=guess", "algorithm.strategy"),
        ("algorithm.space={beta1: 'uniform(0, 1)'}", "algorithm.space"),
        ("algorithm.space.batch_size=uniform(1,2)", "algorithm.space.batch_size"),
        ("algorithm.space.learning_rate=uniform(-1,2)", "algorithm.space.learning_rate"),
        ("algorithm.space.momentum=one_of(0.5,1.5)", "optimizer.momentum"),
        ("algorithm.space.momentum=uniform(0.5,1.5)", "optimizer.momentum"),
        ("algorithm.reduction=1", "algorithm.reduction"),
        ("algorithm.max_epochs=0.1", "algorithm.max_epochs"),
        ("algorithm.validation_fraction=1", "algorithm.validation_fraction"),
    ],
)
def test_nonsense_is_refused_by_name(setting, field):
    with pytest.raises(UserError, match=field.replace(".", r"\.")):
        setup(*SEARCH, ETHERNET, setting)


@pytest.mark.parametrize("rank", [0, 2])
def test_a_worker_or_server_that_dies_ends_the_run(rank):
    done = execution(*SEARCH, ETHERNET, "hardware.num_workers=2", f"hardware.deaths={{{rank}: 0.003}}")
    assert isinstance(done.failure, WorkerFailed) and "rank 2" in str(done.failure)  # who waits for anybody, or died
    assert done.observations


def test_a_budget_below_a_sample_each_is_refused():
    halving = ["algorithm.strategy=successive_halving", "algorithm.reduction=2"]  # 8, 4 and 2 trials
    for chosen, least, few in ((["algorithm.strategy=random"], 8, 7), (halving, 24, 23)):
        done = execution(*SEARCH, ETHERNET, *chosen, f"budget.epochs={few / 1438}")
        assert isinstance(done.failure, UserError)
        assert f"budget.epochs must be at least {least / 1438:.6g}: a sample for each" in str(done.failure)
        run(ETHERNET, *chosen, f"budget.epochs={least / 1438:.6g}")


def test_a_search_that_finds_nothing_has_diverged_and_names_its_own_setting():
    space = ["algorithm.space.learning_rate='log_uniform(1e200,1e202)'", "algorithm.trials=2", ETHERNET]
    composed = setup(*SEARCH, *space)
    done = trial.execute(composed, run_info(composed, {}, None), "", Progress(Console(quiet=True)))
    assert done.status == "diverged"
    assert str(done.failure).startswith(
        "all 2 trials of the search diverged: try smaller steps in algorithm.space.learning"
    )
    assert "train/loss" not in done.summary and done.summary["search/trials"] == 2
