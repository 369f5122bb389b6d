"""An observer looks at models between milestones: nothing trains for long on what is no longer finite."""

import re
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from composed import execution

from harness.errors import Diverged
from harness.interleaving import Interleaving
from harness.observer import Observer

RARE = ["budget.observations=1", "algorithm.learning_rate=1e30", "tracking=none"]
DIGITS = ["problem=digits_mlp", "budget.epochs=30", *RARE]  # 43,140 samples, of which some hundred go by until the end
NATIVE = ["problem=least_squares", "problem.samples=2000", "problem.features=20", "budget.epochs=40", *RARE]


@pytest.mark.parametrize(
    "options",
    [
        ["algorithm=gossip", "hardware=sim_ethernet", "hardware.num_workers=2", *DIGITS],
        ["algorithm=all_reduce", "hardware=sim_dgx", "hardware.num_workers=2", *DIGITS],
        ["algorithm=elastic_averaging", "hardware=sim_ethernet", "hardware.num_workers=2", *DIGITS],
        ["algorithm=sgd", "hardware=cpu", *NATIVE],
        ["algorithm=hogwild", "hardware=cpu", "hardware.num_workers=2", *NATIVE],
    ],
    ids=lambda options: f"{options[0]} {options[1]}",
)
def test_a_model_that_is_not_finite_ends_the_run_long_before_the_next_milestone(options):
    failure = execution(*options).failure
    assert isinstance(failure, Diverged)
    samples = int(re.search(r"after (\d+) samples", str(failure))[1])
    assert samples < (43_140 if options[-4] in DIGITS else 80_000) / 4


def observer(budget_samples):
    """That of a lonely worker, which reaches one milestone, at the end."""
    seen = SimpleNamespace(samples=0, pauses=0)

    def count(samples, updates, alone):
        seen.samples += samples
        return seen.samples - samples, 0

    def paused():
        seen.pauses += 1
        return nullcontext()

    clock = SimpleNamespace(paused=paused, now=lambda: 0.0)
    place = SimpleNamespace(rank=0, interleaving=Interleaving(), count=count, clock=clock, settle=lambda: None)
    place.report = lambda observation: None
    algorithm = SimpleNamespace(synchronous=True, observes_own=False, needs_shared_memory=False)
    problem = SimpleNamespace(is_fake=False)
    program = SimpleNamespace(algorithm=algorithm, problem=problem, milestones=[budget_samples], replay=[])
    program.budget_samples, program.share = budget_samples, lambda place: (0, 1)
    return Observer(place, program), seen


@pytest.mark.parametrize(("samples", "looks"), [(1, 1000), (10, 1000), (50, 200)])
def test_there_are_a_thousand_looks_or_one_an_update(samples, looks):
    watching, seen = observer(10_000)
    for _ in range(10_000 // samples):
        watching.observe(torch.ones(3), samples, 1, None)
    assert seen.pauses == looks + 1  # and a milestone


def test_large_numbers_whose_sum_is_infinite_are_finite():
    watching, _ = observer(1000)
    watching.observe(torch.full((4,), 3e38), 1, 1, None)
    with pytest.raises(Diverged, match=r"after 2 samples: lower algorithm\.learning_rate"):
        watching.observe(torch.tensor([1.0, float("inf"), float("-inf")]), 1, 1, None)
