"""Devices of federated clients: how slow they are, and what that does to time."""

import numpy as np
import pytest
from composed import execution, setup

from algorithms.federation.devices import Classes, LogNormal
from harness.errors import UserError

ALONE = ["algorithm=federated", "problem=least_squares", "problem.samples=60", "problem.features=4", "tracking=none"]
ALONE += ["algorithm.num_clients=3", "algorithm.participation=1", "algorithm.local_epochs=2", "budget.epochs=4"]
ALONE += ["hardware=sim_ethernet", "hardware.num_workers=1", "hardware/compute=fixed", "budget.observations=1"]
KINDS = "algorithm/devices=classes"


def test_a_client_twice_as_slow_takes_exactly_twice_the_virtual_time():
    once, twice = (
        execution(*ALONE, KINDS, f"algorithm.devices.slowdowns=[{slow}]", "algorithm.devices.shares=[1]")
        for slow in (1.0, 2.0)
    )
    (fast, _), (slow, _) = once.workers, twice.workers
    # samples cost, operators do not; sums of the same few numbers
    assert slow.compute_s == pytest.approx(2 * fast.compute_s, rel=1e-12)
    assert slow.finish_s - slow.compute_s == pytest.approx(fast.finish_s - fast.compute_s, abs=1e-12)
    assert (twice.observations[-1].parameters == once.observations[-1].parameters).all()


def test_a_round_takes_as_long_as_its_slowest_client():
    chosen = [*ALONE, KINDS, "algorithm.devices.slowdowns=[1,8]", "algorithm.devices.shares=[0.5,0.5]"]
    chosen += ["hardware.num_workers=6", "algorithm.num_clients=6"]
    devices = setup(*chosen).algorithm.devices
    slowdowns = [devices.slowdown(client, seed=0) for client in range(6)]
    assert sorted(set(slowdowns)) == [1, 8]
    done = execution(*chosen)
    for worker, slowdown in zip(done.workers[:6], slowdowns, strict=True):
        share = worker.compute_s / max(each.compute_s for each in done.workers)
        assert share == pytest.approx(slowdown / 8, rel=1e-9)
        assert (worker.idle_s > 0.5 * done.run_s) == (slowdown == 1)


def test_classes_have_their_shares():
    devices = Classes([1.0, 4.0], [0.75, 0.25])
    drawn = [devices.slowdown(client, seed=1) for client in range(2000)]
    assert drawn == [devices.slowdown(client, seed=1) for client in range(2000)]
    assert drawn[:50] != [devices.slowdown(client, seed=2) for client in range(50)]
    assert abs(drawn.count(4.0) - 500) < 5 * (2000 * 0.25 * 0.75) ** 0.5  # five standard deviations


def test_lognormal_devices_are_spread_by_sigma_and_none_is_faster():
    drawn = np.array([LogNormal(0.5).slowdown(client, seed=0) for client in range(4000)])
    assert drawn.min() >= 1
    # |z| has a second moment of 1; its square a variance of 2
    assert abs(np.mean(np.log(drawn) ** 2) / 0.25 - 1) < 5 * (2 / 4000) ** 0.5
    assert LogNormal(0.0).slowdown(3, seed=0) == 1.0


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        ("lognormal", "sigma", "-1"),
        ("classes", "slowdowns", "[0.5,1,2]"),
        ("classes", "shares", "[0.5,0.5]"),
        ("classes", "shares", "[0.5,0.5,0.5]"),
        ("classes", "shares", "[1.5,-0.5,0]"),
    ],
)
def test_nonsense_is_refused_by_name(kind, field, value):
    with pytest.raises(UserError, match=rf"algorithm\.devices\.{field} must be"):
        setup(*ALONE, f"algorithm/devices={kind}", f"algorithm.devices.{field}={value}")
