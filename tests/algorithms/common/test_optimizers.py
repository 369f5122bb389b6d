"""Optimisers are torch's, per parameter or flat, and accumulated gradients are those of whole batches."""

import composed
import pytest
import torch
from composed import execution, setup

from harness.build import build
from harness.errors import UserError

MLP = ["problem=digits_mlp", "problem.dtype=float64", "budget.epochs=0.5", "budget.observations=2", "tracking=none"]
BATCH, STEP = 32, 0.01
SEQUENTIAL = ["algorithm=sgd", f"algorithm.batch_size={BATCH}", "hardware=sim_cpu"]
TORCH = {
    "sgd": lambda p: torch.optim.SGD(p, STEP),
    "momentum": lambda p: torch.optim.SGD(p, STEP, momentum=0.9),
    "nesterov": lambda p: torch.optim.SGD(p, STEP, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, STEP),
    "adamw": lambda p: torch.optim.AdamW(p, STEP, weight_decay=0.01),
}


def last(*overrides):
    done = execution(*MLP, f"algorithm.learning_rate={STEP}", *overrides)
    assert done.failure is None
    return done.observations[-1].parameters


def by_torch(optimizer):
    """The same steps on the module's own parameters."""
    run = setup(*MLP, "algorithm=sgd")
    program = run.program()
    model = run.problem.build_model(torch.device("cpu"), 0)
    steps = TORCH[optimizer](model.parameters())
    rows = run.data.sequence(run.data.share(run.problem.num_samples, program.budget_samples, 0, (0,)), 2000, 0)
    for start in range(0, program.budget_samples, BATCH):
        run.problem.loss(model, rows[start : min(start + BATCH, program.budget_samples)]).backward()
        steps.step()
        steps.zero_grad()
    return torch.nn.utils.parameters_to_vector(model.parameters()).detach()


@pytest.mark.parametrize("optimizer", composed.options("algorithm/optimizer"))
def test_flat_steps_are_torchs_own(optimizer):
    mine = last(
        "algorithm=sgd", f"algorithm.batch_size={BATCH}", "hardware=sim_cpu", f"algorithm/optimizer={optimizer}"
    )
    torch.testing.assert_close(mine, by_torch(optimizer), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("optimizer", ["momentum", "adamw"])
def test_all_reduce_takes_the_steps_of_one_worker_with_the_global_batch(optimizer):
    chosen = [f"algorithm/optimizer={optimizer}", "hardware=sim_ethernet", "budget.epochs=0.4452"]  # 640 samples
    alone = last("algorithm=sgd", *chosen, "algorithm.batch_size=32", "hardware.num_workers=1")
    both = last("algorithm=all_reduce", *chosen, "algorithm.batch_size=16", "hardware.num_workers=2")
    torch.testing.assert_close(both, alone, rtol=1e-10, atol=1e-13)  # Adam divides by small second moments


def test_accumulated_gradients_are_those_of_whole_batches():
    torch.testing.assert_close(last(*SEQUENTIAL, "algorithm.accumulate=3"), last(*SEQUENTIAL), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    "refused",
    ["optimizer.momentum=1", "optimizer.weight_decay=-1", "accumulate=0"],
)
def test_nonsense_is_refused_by_name(refused):
    node = composed.node("algorithm/sgd")
    key, value = refused.split("=")
    chosen = ["algorithm=sgd", "algorithm/optimizer=momentum", f"algorithm.{key}={value}"]
    with pytest.raises(UserError, match=key.replace(".", r"\.")):
        setup(*MLP, *chosen)
    assert build(node, "algorithm") is not None
