"""PipeDream against its own sequential replay: gradients of weights that are as old, one batch after the other."""

import pytest
import torch
from composed import setup
from torch.func import functional_call
from uniform import run

from algorithms.common.optimizers import Momentum, PlainSGD
from algorithms.common.schedules import Constant
from algorithms.pipedream import PipeDream, one_f_one_b
from algorithms.pipelining.stages import split, units
from algorithms.pipelining.stashing import Stashed
from harness.trial import averaged

DIGITS = ["algorithm=pipedream", "problem=digits_mlp", "problem.dtype=float64", "problem.hidden_sizes=[9,8,7]"]
DIGITS += ["algorithm.batch_size=24", "algorithm.learning_rate=0.5", "algorithm.balance=layers", "data.order=storage"]
DIGITS += ["budget.epochs=0.145", "budget.observations=3", "tracking=none"]  # eight batches, and one of 17 samples


def pipedream(batch_size, optimizer=None):
    return PipeDream(0.01, batch_size, "layers", optimizer or PlainSGD(0.0), Constant(0.0, 1.0))


def replay(problem, workers, batches, learning_rate, momentum=0.0):
    """All weights after all steps: stage s of n takes step t along a gradient of weights t - (n - 1 - s) steps old."""
    model = problem.build_model(torch.device("cpu"), 0)
    stages = split(model, workers, [1.0] * len(units(model)))
    versions = [[[weight.detach().clone() for weight in stage.parameters()]] for stage in stages]
    velocities = [[torch.zeros_like(weight) for weight in stage[0]] for stage in versions]
    for t, batch in enumerate(batches):
        ages = [max(0, t - (workers - 1 - s)) for s in range(workers)]
        used = [[w.clone().requires_grad_() for w in versions[s][ages[s]]] for s in range(workers)]
        outputs, targets = problem.gather(batch)
        for stage, weights in zip(stages, used, strict=True):
            names = [name for name, _ in stage.named_parameters()]
            outputs = functional_call(stage, dict(zip(names, weights, strict=True)), (outputs,))
        problem.objective(outputs, targets).backward()
        for s in range(workers):
            velocities[s] = [momentum * v + w.grad for v, w in zip(velocities[s], used[s], strict=True)]
            new = [w - learning_rate * v for w, v in zip(versions[s][t], velocities[s], strict=True)]
            versions[s].append(new)
    return torch.cat([weight.flatten() for stage in versions for weight in stage[-1]])


def digits(hardware, workers):
    """The last model of a run on handwritten digits, and its replay."""
    composed = setup(*DIGITS, f"hardware={hardware}", f"hardware.num_workers={workers}")
    program = composed.program()
    done = composed.machine.execute(program, lambda samples: None)
    assert done.failure is None
    batches = torch.arange(program.budget_samples).split(24)
    seen, _ = averaged(done.observations, workers)
    return seen[-1].parameters, replay(composed.problem, workers, batches, 0.5), done


@pytest.mark.parametrize(
    ("hardware", "workers"),
    [("sim_ethernet", 1), ("sim_ethernet", 2), ("sim_dgx", 4), ("cpu", 1), ("cpu", 2), ("cpu", 4)],
)
def test_equals_its_sequential_replay(hardware, workers):
    model, replayed, done = digits(hardware, workers)
    torch.testing.assert_close(model, replayed, rtol=1e-12, atol=1e-14)
    assert done.metrics["async/staleness_max"] == workers - 1


def test_is_not_what_the_unsplit_model_does():
    """Or the replay would prove nothing of staleness."""
    model, _, _ = digits("sim_ethernet", 4)
    unsplit, _, _ = digits("sim_ethernet", 1)
    assert (model - unsplit).abs().max() > 1e-4


def test_optimizers_keep_what_is_each_stage_s_own():
    workers, steps = 3, 9
    problem, done = run(pipedream(4, Momentum(0.0, 0.9, False)), workers, workers, steps)
    seen = sorted(done.observations, key=lambda each: each.member)
    replayed = replay(problem, workers, torch.arange(4 * steps).split(4), 0.01, momentum=0.9)
    torch.testing.assert_close(torch.cat([each.parameters for each in seen]), replayed, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_gradients_are_as_old_as_their_stage_is_early(workers):
    steps = 12
    _, done = run(pipedream(2), workers, workers, steps)
    ages = [min(t, workers - 1 - s) for s in range(workers) for t in range(steps)]
    assert done.metrics["async/staleness_hist"] == [ages.count(age) for age in range(workers)]
    assert pipedream(2).staleness_bound(workers) == workers - 1


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_the_pipeline_is_filled_once(workers):
    steps = 10
    _, done = run(pipedream(1), workers, workers, steps)
    assert done.run_s == pytest.approx(3 * (steps + workers - 1), rel=1e-9)
    assert [worker.compute_s for worker in done.workers] == [3.0 * steps] * workers


def test_sends_activations_and_their_gradients():
    workers, steps, batch = 3, 5, 4
    _, done = run(pipedream(batch), workers, workers, steps)
    assert sum(worker.sent_bytes for worker in done.workers) == 2 * (workers - 1) * steps * batch * 3 * 8


def test_versions_of_a_stage_keep_weights_of_their_own_and_one_gradient():
    stage, gradient = torch.nn.Linear(2, 1, bias=False), torch.zeros(2)
    old, new = (Stashed(stage, gradient) for _ in range(2))
    new.weights.zero_()
    assert torch.equal(old.weights, stage.weight.flatten())
    for each in (old, new):
        each.stage(torch.ones(2)).sum().backward()
    assert gradient.tolist() == [2, 2]


def test_a_stage_has_as_many_batches_under_way_as_there_are_stages_from_it_on():
    passes = ["".join(f"{'BF'[forward]}{batch}" for forward, batch in one_f_one_b(range(4), depth)) for depth in (1, 3)]
    assert passes == ["F0B0F1B1F2B2F3B3", "F0F1F2B0F3B1B2B3"]
