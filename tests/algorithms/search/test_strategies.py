"""Plans of searches: who is trained how far, in literal schedules; and search spaces."""

import math

import numpy as np
import pytest

from algorithms.search.space import Range
from algorithms.search.strategies import Asha, Job, Rungs
from harness.errors import UserError


def done(plan, losses, workers=1):
    """The jobs of a plan, in order; those of `workers` are under way at a time, and end in the order they began."""
    jobs, running = [], []
    while True:
        while len(running) < workers and (job := plan.next()) is not None:
            jobs.append(job)
            running.append(job)
        if not running:
            assert plan.over
            return jobs
        ended = running.pop(0)
        plan.report(ended, losses[ended.trial])


def test_one_rung_is_an_equal_share_for_everybody():
    assert done(Rungs(3, None, 10), [1, 2, 3]) == [Job(0, 0, 3), Job(1, 0, 3), Job(2, 0, 4)]


def test_successive_halving_is_the_papers():
    """8 trials, eta 2: 3 rungs of a third of the budget each, for 8, 4 and 2 trials."""
    losses = [8, 1, 7, 2, 6, 3, 5, 4]
    jobs = done(Rungs(8, 2, 2400), losses)
    assert jobs[:8] == [Job(trial, 0, 100) for trial in range(8)]
    assert jobs[8:12] == [Job(trial, 100, 300) for trial in (1, 3, 5, 7)]
    assert jobs[12:] == [Job(trial, 300, 700) for trial in (1, 3)]


@pytest.mark.parametrize("workers", [2, 5, 20])
def test_rungs_do_not_depend_on_the_number_of_workers(workers):
    losses = np.random.default_rng(0).random(13)
    alone, together = (done(Rungs(13, 3, 10_007), losses, each) for each in (1, workers))
    assert sorted(alone, key=repr) == sorted(together, key=repr)
    assert sum(job.end - job.begin for job in alone) == 10_007


def test_trials_that_diverge_are_not_promoted():
    jobs = done(Rungs(4, 2, 400), [math.nan, 1, math.inf, math.nan])
    assert jobs[4:] == [Job(1, 50, 250)]
    assert len(done(Rungs(4, 2, 400), [math.nan] * 4)) == 4


def test_asha_promotes_as_soon_as_it_can():
    """Algorithm 2 with eta 2, r 1, R 4: the best of every two goes on, the highest rung first."""
    jobs = done(Asha(1, 4, 2, 11), [4, 3, 2, 1, 0, 0, 0])
    expected = [(0, 0, 1), (1, 0, 1), (1, 1, 2), (2, 0, 1), (2, 1, 2), (2, 2, 4), (3, 0, 1), (3, 1, 2), (3, 2, 4)]
    assert [(job.trial, job.begin, job.end) for job in jobs] == expected


@pytest.mark.parametrize(
    ("least", "most", "reduction", "ends"),
    [
        (0.25 * 1438, 4.0 * 1438, 4, [360, 1438, 5752]),  # 359.5 is rounded, 16 times 360 is not meant
        (0.1 * 1797, 0.9 * 1797, 3, [180, 539, 1617]),
        (0.1 * 3, 0.3, 3, [1]),  # 0.1 * 3 is above 0.3
        (1.3, 10, 2, [1, 3, 5]),
    ],
)
def test_ashas_rungs_are_rounded_each_by_itself(least, most, reduction, ends):
    plan = Asha(max(1.0, least), max(1.0, most), reduction, 10**6)
    jobs = [plan.next() for _ in range(reduction ** len(ends))]
    assert {job.end for job in jobs} == {ends[0]}
    for _ in range(2 * len(jobs)):
        plan.report(jobs[-1], 1.0 / len(jobs))
        jobs.append(plan.next())
    assert sorted({job.end for job in jobs}) == ends


def test_asha_waits_for_nobody_and_stops_at_the_budget():
    plan = Asha(10, 1000, 4, 95)
    assert [plan.next() for _ in range(11)] == [Job(trial, 0, 10) for trial in range(10)] + [None]
    assert plan.over


@pytest.mark.parametrize(
    ("text", "low", "high"), [("uniform(0, 2)", 0, 2), ("log_uniform(1e-3, 10)", 1e-3, 10), ("one_of(1, 3)", 1, 3)]
)
def test_draws_are_spread_over_the_range(text, low, high):
    values = Range.read("x", text)
    random = np.random.default_rng(0)
    drawn = np.array([values.draw(random) for _ in range(2000)])
    middle = math.sqrt(low * high) if "log" in text else (low + high) / 2
    assert drawn.min() >= low and drawn.max() <= high
    assert abs((drawn < middle).mean() - 0.5) < 0.05  # 4.5 standard deviations of a fair coin


@pytest.mark.parametrize(
    "text", ["", "uniform(1)", "uniform(2, 1)", "log_uniform(0, 1)", "one_of()", "f(1, 2)", "one_of(a)"]
)
def test_nonsense_is_no_range(text):
    with pytest.raises(UserError, match=r"algorithm\.space\.momentum must be"):
        Range.read("algorithm.space.momentum", text)
