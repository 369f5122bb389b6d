"""Elastic averaging against its paper's loop, and real runs repeated in virtual time."""

from dataclasses import replace

import pytest
import torch
from composed import execution, setup

from algorithms.flat import flatten_
from harness.data import Partitioned

BATCH, PERIOD, ELASTICITY, STEP = 8, 3, 0.5, 0.1
CHOSEN = ["algorithm=elastic_averaging", f"algorithm.period={PERIOD}", f"algorithm.elasticity={ELASTICITY}"]
CHOSEN += ["problem=digits_mlp", "problem.dtype=float64", f"algorithm.batch_size={BATCH}", "tracking=none"]
CHOSEN += [f"algorithm.learning_rate={STEP}", "budget.epochs=0.2", "budget.observations=2"]


@pytest.mark.parametrize("decay", [1.0, 0.5])
def test_one_worker_is_algorithm_1_written_by_hand(decay):
    schedule = "algorithm/schedule=step_decay", f"algorithm.schedule.decay={decay}", "algorithm.schedule.every=0.05"
    done = execution(*CHOSEN, *schedule, "hardware=sim_ethernet", "hardware.num_workers=1")
    composed = setup(*CHOSEN)
    problem, samples = composed.problem, composed.program().budget_samples
    policy = Partitioned("index")
    order = policy.sequence(policy.share(problem.num_samples, samples, 0, (0,)), samples, seed=0)
    weights, gradient = flatten_(model := problem.build_model(torch.device("cpu"), 0))
    centre = weights.clone()
    for step, batch in enumerate(order.split(BATCH)):
        gradient.zero_()
        problem.loss(model, batch).backward()
        if step % PERIOD == 0:
            pull = ELASTICITY * (weights - centre)
            weights -= pull
            centre += pull
        weights -= STEP * decay ** (step * BATCH / problem.num_samples // 0.05) * gradient
    centre += ELASTICITY * (weights - centre)  # as the worker leaves
    assert done.failure is None and done.observations[-1].samples == samples
    # the same operations in the same order, but for the products of the step
    torch.testing.assert_close(done.observations[-1].parameters, centre, rtol=1e-12, atol=1e-13)


def test_errors_that_would_grow_are_refused():
    unbiased = ["algorithm/compression=random_k", "algorithm.compression.unbiased=true"]
    with pytest.raises(ValueError, match=r"unbiased must be false in elastic_averaging, whose errors would add up"):
        setup(*CHOSEN, *unbiased, "algorithm.compression.error_feedback=false")


@pytest.mark.parametrize("compression", ["none", "sign"])
def test_a_real_run_is_repeated_in_virtual_time(compression):
    chosen = [*CHOSEN, f"algorithm/compression={compression}"]
    real, simulated = (
        setup(*chosen, f"hardware={hardware}", "hardware.num_workers=2") for hardware in ("cpu", "sim_ethernet")
    )
    first = real.machine.execute(real.program(), lambda samples: None)
    assert first.failure is None and len(first.interleavings[2].sources) > 2  # the centre heard somebody
    program = replace(simulated.program(), replay=first.interleavings)
    again = simulated.machine.execute(program, lambda samples: None)
    assert again.failure is None
    torch.testing.assert_close(
        again.observations[-1].parameters, first.observations[-1].parameters, rtol=1e-12, atol=1e-13
    )


@pytest.mark.parametrize(("field", "value"), [("period", 0), ("elasticity", 0), ("elasticity", 1.5)])
def test_refuses_what_cannot_be(field, value):
    with pytest.raises(ValueError, match=rf"algorithm\.{field} must be"):
        setup(*CHOSEN[:1], f"algorithm.{field}={value}")
