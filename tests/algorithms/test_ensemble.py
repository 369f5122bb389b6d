"""Members do not know of each other or of the workers, and what is evaluated is the mean of their predictions."""

import math

import pytest
import torch
from composed import execution, setup
from torch.nn.functional import cross_entropy

from harness.errors import Diverged, UserError, WorkerFailed
from harness.trial import averaged, evaluate, missing

MLP = ["problem=digits_mlp", "problem.hidden_sizes=[8]", "problem.dtype=float64", "tracking=none"]
ENSEMBLE = [*MLP, "algorithm=ensemble", "algorithm.members=3", "budget.epochs=3", "budget.observations=3"]


def run(*overrides):
    done = execution(*ENSEMBLE, *overrides)
    assert done.failure is None, done.failure
    return done, averaged(done.observations, len(done.workers))[0]


@pytest.mark.parametrize(("hardware", "workers"), [("sim_ethernet", 2), ("sim_ethernet", 3), ("cpu", 2)])
def test_members_do_not_depend_on_the_workers(hardware, workers):
    _, alone = run("hardware=sim_ethernet", "hardware.num_workers=1")
    _, together = run(f"hardware={hardware}", f"hardware.num_workers={workers}")
    order = [member for rank in range(workers) for member in range(rank, 3, workers)]
    torch.testing.assert_close(together[-1].parameters, alone[-1].parameters[order], rtol=1e-12, atol=1e-14)
    assert alone[-1].samples == together[-1].samples == 3 * 1438


def test_members_differ_and_take_the_time_of_the_busiest_worker():
    alone, seen = run("hardware=sim_ethernet", "hardware.num_workers=1")
    assert len({tuple(row.tolist()) for row in seen[-1].parameters}) == 3
    two, _ = run("hardware=sim_ethernet", "hardware.num_workers=2")
    assert two.run_s == pytest.approx(alone.run_s * 2 / 3, rel=0.01)  # two members of three


def test_probabilities_are_averaged_not_weights():
    composed = setup(*ENSEMBLE, "hardware=sim_ethernet")
    _, seen = run("hardware=sim_ethernet")
    problem, rows = composed.problem, seen[-1].parameters
    (values,) = evaluate(problem, 0, seen[-1:])
    models = [problem.build_model(torch.device("cpu"), 0) for _ in rows]
    for row, model in zip(rows, models, strict=True):
        torch.nn.utils.vector_to_parameters(row, model.parameters())
    images, classes = problem.test
    with torch.no_grad():
        mean = torch.stack([model(images).softmax(1) for model in models]).mean(0)
        own = [float(cross_entropy(model(images), classes)) for model in models]
    assert values["eval/loss"] == pytest.approx(float(-mean[range(len(classes)), classes].log().mean()), rel=1e-12)
    assert values["eval/accuracy"] == pytest.approx(float((mean.argmax(1) == classes).double().mean()))
    assert values["ensemble/member_eval_loss"] == pytest.approx(sum(own) / 3, rel=1e-12)
    assert values["eval/loss"] < values["ensemble/member_eval_loss"]  # Jensen's inequality


@pytest.mark.parametrize(
    ("problem", "mean"),
    [
        ("least_squares", lambda problem, one: one.mean(0)),
        ("svm", lambda problem, one: one.mean(0)),
        ("logistic_regression", lambda problem, one: torch.logit(one.sigmoid().mean(0))),
    ],
)
def test_every_problem_averages_its_own_predictions(problem, mean):
    small = ["samples=60", "features=4"] if problem == "least_squares" else [
        "synthetic_samples=60", "synthetic_features=8", "synthetic_nonzeros_per_sample=3", "l2=0.1"]  # fmt: skip
    chosen = [f"problem.{each}" for each in small]
    composed = setup(f"problem={problem}", *chosen, "problem.dtype=float64", "algorithm=ensemble", "tracking=none",
                     "hardware=sim_ethernet").problem  # fmt: skip
    models = [composed.build_model(torch.device("cpu"), 0) for _ in range(3)]
    each = torch.randn(3, sum(p.numel() for p in models[0].parameters()), dtype=torch.float64)
    for model, weights in zip(models, each, strict=True):
        torch.nn.utils.vector_to_parameters(weights, model.parameters())
    if problem == "least_squares":
        expected = 0.5 * float((composed.matrix @ each.mean(0) - composed.labels).square().mean())
    else:
        margins = mean(composed, torch.stack([composed.rows.margins(weights) for weights in each]))
        loss = composed.pointwise(margins, composed.labels).mean()
        expected = float(loss + 0.05 * each.square().sum(1).mean())
    assert composed.evaluate_ensemble(models)["train/loss"] == pytest.approx(expected, rel=1e-9)
    assert composed.evaluate_ensemble(models[:1]) == composed.evaluate(models[0])


def test_ratings_are_averaged_not_factors():
    ratings = ["problem.synthetic_users=20", "problem.synthetic_items=20", "problem.synthetic_ratings=150"]
    problem = setup(
        "problem=matrix_completion", *ratings, "algorithm=ensemble", "tracking=none", "hardware=sim_ethernet"
    ).problem
    models = [problem.build_model(torch.device("cpu"), seed) for seed in range(2)]
    users, items = problem.rows[:, 0], problem.rows[:, 1] - problem.num_users
    with torch.no_grad():
        mean = sum((model.users[users] * model.items[items]).sum(1).double() for model in models) / 2
    penalty = (
        0.5
        * problem.l2
        * sum(float(p.detach().double().square().sum()) for model in models for p in model.parameters())
        / 2
    )
    expected = 0.5 * float((mean - problem.values.double()).square().mean()) + penalty
    assert problem.evaluate_ensemble(models)["train/loss"] == pytest.approx(expected, rel=1e-5)  # float32 factors


def test_members_that_diverge_or_die_end_the_run():
    wild = execution(*ENSEMBLE, "hardware=sim_ethernet", "algorithm.learning_rate=1e300")
    assert isinstance(wild.failure, Diverged)
    dead = execution(*ENSEMBLE, "hardware=sim_ethernet", "hardware.num_workers=2", "hardware.deaths={1: 0.001}")
    failure = dead.failure or missing(dead.observations, 2)  # nobody waits for it
    assert isinstance(failure, WorkerFailed) and "worker 1 died" in str(failure)
    assert missing(run("hardware=sim_ethernet")[0].observations, 3) is None


def test_no_more_workers_than_members():
    assert setup(*ENSEMBLE, "hardware=sim_ethernet", "hardware.num_workers=8").num_workers == 3


def test_a_schedule_goes_by_a_members_own_epochs():
    chosen = ["hardware=sim_ethernet", "algorithm/schedule=step_decay", "algorithm.schedule.decay=0.5"]
    _, one_epoch_each = run(*chosen)  # in which no step is smaller
    _, constant = run("hardware=sim_ethernet")
    assert torch.equal(one_epoch_each[-1].parameters, constant[-1].parameters)
    _, two = run(*chosen, "budget.epochs=6")
    _, steady = run("hardware=sim_ethernet", "budget.epochs=6")
    assert not torch.allclose(two[-1].parameters, steady[-1].parameters)


@pytest.mark.parametrize("setting", ["members=0", "batch_size=0"])
def test_nonsense_is_refused_by_name(setting):
    with pytest.raises(UserError, match=f"algorithm.{setting.split('=')[0]}"):
        setup(*ENSEMBLE, "hardware=sim_ethernet", f"algorithm.{setting}")


def test_mean_of_equal_predictions_is_that_prediction():
    problem = setup(*ENSEMBLE, "hardware=sim_ethernet").problem
    model = problem.build_model(torch.device("cpu"), 0)
    together, alone = problem.evaluate_ensemble([model, model]), problem.evaluate(model)
    assert all(math.isclose(together[key], alone[key], rel_tol=1e-12) for key in alone)
