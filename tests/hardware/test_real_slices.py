"""Helper activities are soon let in: their threads have short slices, and are otherwise scheduled as they were."""

import os
import threading

import pytest

from hardware.real import slices
from hardware.real.crew import Background

HAS_SLICES = slices.own_ns() is not None


def in_background(ask):
    """What a helper activity is told."""
    told, background = [], Background(timeout_s=10.0, tell=lambda error, details: None)
    background.start(lambda: told.append(ask()))
    background.finish()
    return told[0]


@pytest.mark.skipif(not HAS_SLICES, reason="needs Linux 6.12, and not to run idly")
def test_a_helper_activity_has_the_shortest_slice_and_its_worker_keeps_its_own():
    before = slices.own_ns()
    assert in_background(slices.own_ns) == slices.SHORTEST_NS < before
    assert slices.own_ns() == before


def test_neither_policy_nor_niceness_changes():
    def scheduled():
        return os.sched_getscheduler(0), os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    assert in_background(scheduled) == scheduled()


def test_a_machine_whose_calls_are_not_known_is_left_alone(monkeypatch):
    monkeypatch.setattr(slices, "SCHED_GETATTR", {})
    assert in_background(slices.own_ns) is None
