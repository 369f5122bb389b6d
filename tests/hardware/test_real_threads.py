"""Workers as threads."""

import os
import signal
import threading

import pytest
import torch

from harness.errors import UserError, WorkerFailed
from tests.hardware.toys import (
    StuckWithLock,
    Wild,
    WildHelped,
    WildLingering,
    WildOdd,
    WildPublishing,
    WildRaises,
    WildStuck,
    WildStuckAndHelperRaises,
    WildStuckAndRaises,
    machine,
    no_progress,
    program,
)


def test_one_thread_equals_the_kernel_alone():
    trained = program(Wild, budget=128)
    weights = torch.zeros(1, dtype=torch.float64)
    order = trained.data.sequence(trained.data.share(64, 128, 0, (0,)), 128, trained.seed)
    trained.problem.kernel(weights, order, 0.1)
    execution = machine(1).execute(trained, no_progress)
    assert torch.equal(execution.observations[-1].parameters, weights)
    assert execution.facts["workers"] == "threads"


def test_two_threads_share_one_model_and_the_budget():
    execution = machine(2).execute(program(Wild), no_progress)
    assert [seen.samples for seen in execution.observations] == [64, 128, 192, 256]
    assert execution.observations[-1].updates == 256
    assert 20 < execution.observations[-1].parameters.item() < 45  # the mean is 31.5
    assert execution.facts["placement"]["model"] == {"policy": "first_touch", "pages_by_node": {"0": 1}}
    for worker in execution.workers:
        assert 0 <= worker.compute_s < worker.finish_s <= execution.run_s  # one may have done it all
        assert (worker.comm_s, worker.idle_s, worker.sent_bytes, worker.peak_bytes) == (0.0, 0.0, 0, None)


def test_each_thread_is_pinned(monkeypatch):
    seen = {}
    monkeypatch.setattr(Wild, "interfere", lambda self, worker: seen.update({worker.rank: os.sched_getaffinity(0)}))
    two = machine(2)
    two.execute(program(Wild, batch_size=1), no_progress)
    assert [tuple(cpus) for _, cpus in sorted(seen.items())] == [seat.cpus for seat in two.topology.seats(2)]


def test_unpinned_threads_may_run_anywhere(monkeypatch):
    seen = {}
    monkeypatch.setattr(Wild, "interfere", lambda self, worker: seen.update({worker.rank: os.sched_getaffinity(0)}))
    execution = machine(2, pinning=False).execute(program(Wild), no_progress)
    assert set(map(frozenset, seen.values())) == {frozenset(os.sched_getaffinity(0))}
    assert execution.facts["pinning"] is None


def test_one_failure_ends_all():
    execution = machine(2).execute(program(WildRaises, budget=10**6, milestones=[4, 10**6]), no_progress)
    assert isinstance(execution.failure, WorkerFailed)
    assert str(execution.failure) == "worker 1 raised ZeroDivisionError: by design"
    assert "ZeroDivisionError" in execution.failure.details
    assert execution.workers == []


def test_what_was_published_before_a_failure_is_kept():
    execution = machine(2).execute(program(WildPublishing), no_progress)
    assert str(execution.failure) == "worker 1 raised ZeroDivisionError: by design"
    values = {"toy/rank_mean": 0.5, "toy/rank_p95": 1, "toy/rank_max": 1, "toy/rank_hist": [1, 1]}
    assert execution.metrics == {**values, "toy/said": "so far"}


def test_disagreement_is_an_error():
    execution = machine(2).execute(program(WildOdd), no_progress)
    assert isinstance(execution.failure, UserError)
    assert "worker 0 shares 'model 0'" in str(execution.failure)
    assert "worker 1 shares 'model 1'" in str(execution.failure)


def test_background_activities_run():
    execution = machine(2).execute(program(WildHelped), no_progress)
    assert execution.observations[-1].parameters.tolist() == [1.0, 1.0]


def test_a_worker_finishes_before_its_background_activities():
    execution = machine(1).execute(program(WildLingering), no_progress)
    # A second passes between the two if the activity, which sleeps that long, is waited for.
    assert execution.workers[0].finish_s - execution.observations[-1].time_s < 1.0


@pytest.fixture
def stuck(monkeypatch):
    """Lets worker 1 of `WildStuck` loop until the test is over."""
    monkeypatch.setattr("hardware.real.threads.GRACE_S", 0.1)
    WildStuck.looping.clear()
    WildStuck.released.clear()
    yield
    WildStuck.released.set()
    for thread in threading.enumerate():
        if thread.name.startswith("worker"):
            thread.join(10)
            assert not thread.is_alive()


LEFT_BEHIND = "worker 1 did not leave within 0.1 s: left behind, until this process ends"


@pytest.mark.usefixtures("stuck")
@pytest.mark.parametrize(
    ("algorithm", "who"),
    [(WildStuckAndRaises, "worker 0"), (WildStuckAndHelperRaises, "a background activity of worker 1")],
)
def test_a_worker_that_cannot_be_ended_is_left_behind(algorithm, who):
    failure = machine(2).execute(program(algorithm, budget=10**6, milestones=[10**6]), no_progress).failure
    assert isinstance(failure, WorkerFailed)
    assert str(failure) == f"{who} raised ZeroDivisionError: by design; {LEFT_BEHIND}"
    assert "ZeroDivisionError" in failure.details


@pytest.mark.usefixtures("stuck")
def test_a_worker_that_waits_for_the_lock_of_one_that_is_left_behind_leaves():
    failure = machine(2).execute(program(StuckWithLock), no_progress).failure
    assert str(failure) == f"a background activity of worker 1 raised ZeroDivisionError: by design; {LEFT_BEHIND}"


@pytest.mark.usefixtures("stuck")
def test_interrupt_gets_by_a_worker_that_cannot_be_ended():
    heard = []

    def interrupt(samples):
        heard.append(samples)
        if len(heard) > 1:  # the first time is before they begin
            os.kill(os.getpid(), signal.SIGINT)

    failure = machine(2).execute(program(WildStuck), interrupt).failure
    assert isinstance(failure, KeyboardInterrupt)
    assert failure.__notes__ == [LEFT_BEHIND]


def test_torch_threads_are_restored():
    before = torch.get_num_threads()
    machine(2, intra_op_threads=1).execute(program(Wild), no_progress)
    assert torch.get_num_threads() == before


def test_interrupt_ends_the_threads_and_is_returned():
    def interrupt(samples):
        os.kill(os.getpid(), signal.SIGINT)

    execution = machine(2).execute(program(Wild, budget=10**6, milestones=[10**6]), interrupt)
    assert isinstance(execution.failure, KeyboardInterrupt)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("worker")]


def test_progress_is_told():
    seen = []
    machine(2).execute(program(Wild, budget=20000, milestones=[20000]), seen.append)
    assert seen == sorted(seen) and seen[-1] == 20000
