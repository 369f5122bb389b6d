"""Staleness in virtual time has the distribution that theory gives it, where memory costs nothing.

Updates are read and written back to back, so that each interval of a worker, from read to write, begins where its last
one ended. The staleness of an update is the number of writes of the P - 1 others in its interval.
"""

import numpy as np
import pytest
import torch
from simulated_ranks import execute, shared_memory

from hardware.simulated.compute import Fixed
from tests.counting import CountKernel

FREE = shared_memory()


def staleness(begin_s, num_updates, chunk=1, jitter="none", **mess):
    """The histogram of workers that begin at `begin_s` and take so many updates each, of 1 s in the mean."""
    kernel = CountKernel([[0]], 1)

    def body(worker):
        model = worker.shared("model", torch.zeros(1, dtype=torch.float64))
        worker._place._machine.engine.current.charge(begin_s[worker.rank])
        for samples in torch.zeros(num_updates[worker.rank], dtype=torch.int32).split(chunk):
            worker.run(kernel, model, samples, 1.0)

    done = execute(body, len(begin_s), memory=FREE, compute=Fixed(jitter, False, 1.0), **mess)
    assert done.failure is None and done.metrics["async/lost_frac"] == 0.0
    return done.metrics["async/staleness_hist"]


@pytest.mark.parametrize("chunk", [1, 7, 50])
@pytest.mark.parametrize("workers", [2, 3, 8])
def test_equal_workers_with_random_phases_are_as_stale_as_in_lockstep(workers, chunk):
    """In an interval of 1 s every other worker writes once, whatever its phase; only the first updates miss some.

    The first update of the worker that begins as the i-th (from 0) sees the writes of the i that began before it.
    """
    begin_s = np.random.default_rng(workers).uniform(0.0, 1.0, workers)
    assert staleness(begin_s, [50] * workers, chunk) == [1] * (workers - 1) + [50 * workers - workers + 1]


@pytest.mark.parametrize("factor", [2, 3, 10])
def test_a_straggler_is_stale_for_all_and_the_others_hardly(factor):
    """Rank 1 takes `factor` seconds and begins at 0.5 s, so that it writes in mid-interval of the other, 99 times.

    The hundredth write is after the other's last. Each of its own intervals has `factor` writes of the other.
    """
    counts = staleness([0.0, 0.5], [100 * factor, 100], stragglers={1: float(factor)})
    assert counts == [100 * factor - 99, 99, *[0] * (factor - 2), 100]


@pytest.mark.parametrize("workers", [2, 4])
def test_with_exponential_costs_staleness_is_geometric(workers):
    """Writes of the others are a Poisson process of rate P - 1, intervals exponential: P(k) = (1 - 1/P)^k / P.

    The intervals of one worker are apart, so that its N staleness values are independent; those of different workers
    are not, but the mean of P frequencies deviates no more than one of them: sqrt(p (1 - p) / N). Within 5 of these.
    """
    each = 3000
    counts = np.array(staleness([0.0] * workers, [each] * workers, jitter="exponential"))
    expected = (1 - 1 / workers) ** np.arange(12) / workers
    found = np.pad(counts, (0, 12))[:12] / (each * workers)
    assert np.all(np.abs(found - expected) < 5 * np.sqrt(expected * (1 - expected) / each))
    mean, deviation = workers - 1, np.sqrt(workers * (workers - 1))  # of the geometric distribution
    assert abs(counts @ np.arange(len(counts)) / counts.sum() - mean) < 5 * deviation / np.sqrt(each)
