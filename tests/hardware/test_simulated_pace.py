"""Stragglers, transient slowdowns and jitter: each moves the answer as it says, and repeats."""

import numpy as np
import pytest
from simulated_ranks import compute_for, results

from hardware.simulated.compute import Fixed
from hardware.simulated.pace import Pace, drawn
from harness.errors import UserError


def computes(worker, steps=3):
    """Three steps of two seconds."""
    times = []
    for _ in range(steps):
        compute_for(worker, 2.0)
        times.append(worker.clock.now())
    return times


def test_a_straggler_computes_in_proportion():
    assert results(computes, 3, stragglers={1: 4.0, 2: 0.5}) == [[2, 4, 6], [8, 16, 24], [1, 2, 3]]


def test_a_slowdown_lasts_from_its_time_to_the_next():
    changes = {1: {3.0: 2.0, 7.0: 1.0}}  # 1 s alone, 4 s at half speed, then alone again
    assert results(computes, 2, slowdowns=changes) == [[2, 4, 6], [2, 5, 8]]


def test_a_slowdown_and_a_straggler_multiply():
    assert Pace(factor=2.0, slowdowns={1.0: 3.0}).stretch(1.0, at_s=0.0) == 1.0 + 3.0


def test_a_slowdown_that_began_before_counts_from_the_start():
    assert Pace(slowdowns={1.0: 3.0, 5.0: 1.0}).stretch(2.0, at_s=2.0) == 3.0 + 1.0


@pytest.mark.parametrize(("jitter", "spread"), [("exponential", 1.0), ("lognormal(0.2)", np.sqrt(np.expm1(0.04)))])
def test_jitter_has_mean_one_and_the_spread_it_says(jitter, spread):
    factors = drawn(jitter)(np.random.default_rng(0), 200_000)
    assert np.mean(factors) == pytest.approx(1.0, abs=0.01)
    assert np.std(factors) == pytest.approx(spread, rel=0.02)


def test_jitter_differs_by_rank_and_by_seed_and_repeats():
    compute = Fixed("lognormal(0.2)", False, 1.0)
    first = results(computes, 2, compute=compute)
    assert first == results(computes, 2, compute=compute)
    assert first[0] != first[1]
    assert first != results(computes, 2, compute=compute, seed=1)


@pytest.mark.parametrize(
    "jitter", ["normal(0.2)", "lognormal", "lognormal(x)", "lognormal(1e999)", "lognormal(-1)", ""]
)
def test_other_jitters_are_refused(jitter):
    with pytest.raises(UserError, match="jitter must"):
        drawn(jitter)
