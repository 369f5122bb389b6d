"""Schedules are the formulas of the field, on torch and in native kernels; an update may take all samples."""

import composed
import pytest
import torch
from composed import execution, setup

from algorithms.common.schedules import Cosine, StepDecay
from harness.errors import UserError

CONVEX = ["problem=least_squares", "problem.samples=200", "problem.features=5", "problem.condition=4.0"]
RUN = [*CONVEX, "problem.dtype=float64", "budget.observations=3", "tracking=none", "hardware=sim_cpu"]
DECAY = ["algorithm/schedule=step_decay", "algorithm.schedule.decay=0.5"]


def last(*overrides):
    done = execution(*RUN, *overrides)
    assert done.failure is None, done.failure
    return done.observations[-1].parameters


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [
        (Cosine(0.0, 0.1, final=0.25), lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 10, eta_min=0.25)),
        (StepDecay(0.0, 0.1, decay=0.3, every=4.0), lambda o: torch.optim.lr_scheduler.StepLR(o, 4, gamma=0.3)),
        (
            StepDecay(4.0, 0.2, decay=1.0, every=1.0),
            lambda o: torch.optim.lr_scheduler.LinearLR(o, start_factor=0.2, total_iters=4),
        ),
    ],
)
def test_factors_are_torchs_own(mine, theirs):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = theirs(optimizer)
    for epoch in range(10):
        assert mine.factor(epoch, 10.0) == pytest.approx(scheduler.get_last_lr()[0], rel=1e-12)
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize("batch", [0, 32])
def test_steps_follow_the_schedule(batch):
    """Of a run written out by hand: batches across epochs take the step of the epoch in which they begin."""
    run = setup(*RUN, "algorithm=sgd")
    matrix, labels = run.problem.matrix, run.problem.labels
    rows = run.data.sequence(run.data.share(200, 600, 0, (0,)), 601, 0)
    weights = torch.zeros(5, dtype=torch.float64)
    size = batch or 200
    for start in range(0, 600, size):
        samples = rows[start : min(start + size, 600)]
        error = matrix[samples] @ weights - labels[samples]
        weights -= 0.1 * 0.5 ** (start // 200) * matrix[samples].T @ error / len(samples)
    chosen = ["algorithm=sgd", f"algorithm.batch_size={batch}", "algorithm.learning_rate=0.1", "budget.epochs=3"]
    torch.testing.assert_close(last(*chosen, *DECAY), weights, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("schedule", composed.options("algorithm/schedule"))
def test_native_kernels_follow_it_too(schedule):
    """Hogwild alone is SGD; with a step that never changes it ends elsewhere."""
    chosen = [f"algorithm/schedule={schedule}", "algorithm.learning_rate=0.02", "budget.epochs=2"]
    chosen += ["algorithm.schedule.warmup_epochs=1.0", "hardware.num_workers=1"]
    mine, sequential = last("algorithm=hogwild", *chosen), last("algorithm=sgd", *chosen)
    torch.testing.assert_close(mine, sequential, rtol=1e-9, atol=1e-12)
    constant = last("algorithm=sgd", *chosen[1:3], "hardware.num_workers=1")
    assert not torch.allclose(sequential, constant, rtol=1e-3)


LOCKSTEP = ["all_reduce", "ddp", "local_sgd", "gossip", "stochastic_gradient_push"]  # those that are SGD, alone


@pytest.mark.parametrize("algorithm", LOCKSTEP)
@pytest.mark.parametrize("schedule", composed.options("algorithm/schedule"))
def test_those_in_lockstep_follow_it_too(algorithm, schedule):
    """Alone all are SGD; those that average gradients are with two workers too, of two halves of a batch."""
    chosen = [f"algorithm/schedule={schedule}", "algorithm.learning_rate=0.1", "budget.epochs=3"]
    chosen += ["algorithm.schedule.warmup_epochs=1.0"]
    sequential = last("algorithm=sgd", *chosen, "algorithm.batch_size=20")
    for workers in (1, 2) if algorithm in ("all_reduce", "ddp") else (1,):
        one = [f"algorithm.batch_size={20 // workers}", "hardware=sim_ethernet", f"hardware.num_workers={workers}"]
        mine = last(f"algorithm={algorithm}", *chosen, *one)
        torch.testing.assert_close(mine, sequential, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("algorithm", ["local_sgd", "gossip", "stochastic_gradient_push"])
def test_two_workers_that_average_models_follow_it(algorithm):
    """Of equal models, a step of each is one of a batch of both."""
    chosen = ["algorithm/schedule=cosine", "algorithm.learning_rate=0.1", "budget.epochs=3"]
    sequential = last("algorithm=sgd", *chosen, "algorithm.batch_size=20")
    gossip = ["algorithm/mixing=complete", "algorithm.overlap=false"]
    two = ["algorithm.batch_size=10", "hardware=sim_ethernet", "hardware.num_workers=2"]
    two += ["algorithm.period=1"] if algorithm == "local_sgd" else gossip
    mine = last(f"algorithm={algorithm}", *chosen, *two)
    torch.testing.assert_close(mine, sequential, rtol=1e-12, atol=1e-12)


def test_the_whole_training_set_is_one_update():
    done = execution(*RUN, "algorithm=sgd", "algorithm.batch_size=0", "budget.epochs=7")
    assert (done.observations[-1].samples, done.observations[-1].updates) == (1400, 7)


@pytest.mark.parametrize(
    ("schedule", "setting"),
    [("step_decay", "decay=0"), ("step_decay", "every=0"), ("cosine", "final=2"), ("constant", "warmup_epochs=-1")],
)
def test_nonsense_is_refused_by_name(schedule, setting):
    key = setting.split("=")[0]
    with pytest.raises(UserError, match=rf"schedule\.{key}"):
        setup(*RUN, "algorithm=sgd", f"algorithm/schedule={schedule}", f"algorithm.schedule.{setting}")


def test_only_those_who_can_take_the_whole_set():
    with pytest.raises(UserError, match=r"algorithm\.batch_size must be >= 1, got 0"):
        setup(*RUN, "algorithm=all_reduce", "algorithm.batch_size=0")
    with pytest.raises(UserError, match="or 0 for the whole training set"):
        setup(*RUN, "algorithm=sgd", "algorithm.batch_size=-1")
