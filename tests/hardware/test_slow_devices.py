"""Slower devices and idleness: run time that a worker spends on threads, on processes and in virtual time."""

from array import array
from dataclasses import replace

import pytest
import torch
from simulated_ranks import NCCL, SECOND, compute_for, execute, results, shared_memory
from simulated_ranks import machine as simulated
from simulated_ranks import program as simulated_program

from harness.errors import UserError
from harness.interleaving import Interleaving
from tests.hardware.toys import Slows, SlowsInTheBackground, machine, no_progress, program

REAL = ["threads", "processes"]


def run(kind, algorithm, num_workers=2, **options):
    """One batch of every worker on one kind of workers."""
    trained = program(
        algorithm, native=kind == "threads", budget=4 * num_workers, milestones=[4 * num_workers], **options
    )
    if kind == "simulated":
        return simulated(num_workers, memory=shared_memory()).execute(trained, no_progress)
    return machine(num_workers).execute(trained, no_progress)


@pytest.mark.parametrize("kind", REAL)
def test_a_real_worker_takes_at_least_as_long_and_is_computing_then_idle(kind):
    done = run(kind, Slows)
    assert done.failure is None
    fast, slow, idle = done.observations[-1].parameters.view(3, 2)
    assert (slow >= 3 * fast).all() and (idle >= slow + 0.03).all()
    for worker, computed in zip(done.workers, 2 * fast, strict=True):
        assert worker.compute_s >= computed and worker.idle_s >= 0.03


def test_a_simulated_worker_takes_exactly_as_long_and_is_computing_then_idle():
    done = run("simulated", Slows, factor=2.5, idle_s=7.0)
    fast, slow, idle = done.observations[-1].parameters.view(3, 2)
    assert fast.tolist() == [4.0] * 2 and slow.tolist() == [10.0] * 2 and idle.tolist() == [17.0] * 2
    assert [(worker.compute_s, worker.idle_s) for worker in done.workers] == [(10.0, 7.0)] * 2


def test_others_are_not_held_up():
    def body(worker):
        with worker.slowed(1.0 + 3 * worker.rank):
            compute_for(worker, 2.0)
        return worker.clock.now()

    assert results(body, 3) == [2.0, 8.0, 14.0]


def test_what_is_off_the_clock_is_not_stretched():
    def body(worker):
        with worker.slowed(5.0):
            compute_for(worker, 1.0)
            with worker.clock.paused():
                compute_for(worker, 100.0)
        return worker.clock.now()

    assert results(body, 1) == [5.0]


def test_an_accelerator_is_slowed_by_what_its_streams_do():
    """The host of an accelerator runs ahead of it, and would see nothing."""

    def body(worker):
        with worker.slowed(4.0):
            compute_for(worker, 3.0)
        worker._place.settle()
        return worker.clock.now()

    assert results(body, 1, compute=replace(SECOND, streams=True), protocol=NCCL) == [12.0]


def test_a_run_that_is_repeated_reads_the_clock_of_the_first():
    read = []

    def body(worker):
        compute_for(worker, 1.0)
        read.append(worker.read_clock())
        worker.idle(read[-1])
        worker.observe(torch.zeros(1), samples=1)

    first = execute(body, 1)
    assert list(first.interleavings[0].times) == [1.0] and first.run_s == 2.0
    again = replace(simulated_program(body), replay=[Interleaving(counts=array("q", [0, 0]), times=array("d", [0.25]))])
    done = simulated(1).execute(again, no_progress)
    assert read == [1.0, 0.25] and done.run_s == 1.25 and done.interleavings == again.replay
    short = replace(again, replay=[Interleaving()])
    assert "reads the clock more often" in str(simulated(1).execute(short, no_progress).failure)


@pytest.mark.parametrize("kind", ["threads", "simulated"])
def test_a_background_activity_cannot_be_slow(kind):
    assert "worker.idle(...) must be called by the worker itself" in str(run(kind, SlowsInTheBackground).failure)


@pytest.mark.parametrize(
    ("call", "rule"),
    [
        (lambda worker: worker.slowed(0.5).__enter__(), "factor >= 1, got 0.5"),
        (lambda worker: worker.idle(-1.0), "finite seconds >= 0, got -1.0"),
        (lambda worker: worker.idle(float("inf")), "finite seconds >= 0, got inf"),
    ],
)
def test_nonsense_is_refused(call, rule):
    with pytest.raises(UserError, match=rule):
        results(call, 1)


@pytest.mark.parametrize("order", [("measure", "conclude"), ("conclude", "measure")])
def test_a_key_is_measured_or_concluded(order):
    def body(worker):
        for call in order:
            getattr(worker, call)("toy/value", 1.0)

    assert "told both by worker.measure and by worker.conclude" in str(execute(body, 1).failure)


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_one_rank_concludes(num_ranks):
    done = execute(lambda worker: worker.conclude("toy/value", worker.rank), num_ranks)
    words = "'toy/value' is told by worker.conclude on several ranks: let one do, or use worker.measure"
    assert str(done.failure or "") == ("" if num_ranks == 1 else words)
