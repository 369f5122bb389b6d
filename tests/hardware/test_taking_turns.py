"""Meetings and locks: the same on threads, on processes and in virtual time."""

from dataclasses import replace

import pytest
import torch
from simulated_ranks import NUMA, compute_for, execute, results
from simulated_ranks import machine as simulated

from harness.errors import UserError, WorkerFailed
from tests.hardware.toys import (
    Counted,
    CrossesLocks,
    HolderIsKilled,
    HolderRaises,
    LeavesOthers,
    LocksTwice,
    Meets,
    MeetsInTheBackground,
    SharesLockWithBackground,
    WaitsInVain,
    machine,
    no_progress,
    program,
)

REAL = ["threads", "processes"]
EVERYWHERE = [*REAL, "simulated"]


def run(kind, algorithm, num_workers=2, timeout_s=20.0, **options):
    """Execute a toy on one kind of workers."""
    trained = program(algorithm, native=kind == "threads", **{"budget": 64, "milestones": [64], **options})
    if kind == "simulated":
        return simulated(num_workers, memory=NUMA).execute(trained, no_progress)
    return machine(num_workers, timeout_s=timeout_s).execute(trained, no_progress)


@pytest.mark.parametrize("kind", EVERYWHERE)
@pytest.mark.parametrize("num_workers", [1, 2, 3, 4])
def test_what_is_done_under_a_lock_is_done_by_one(kind, num_workers):
    done = run(kind, Counted, num_workers, batch_size=1)
    assert done.failure is None
    assert done.observations[-1].parameters.item() == 64


@pytest.mark.parametrize("kind", EVERYWHERE)
def test_without_the_lock_additions_are_lost(kind):
    assert run(kind, Counted, 2, batch_size=1, locked=False).observations[-1].parameters.item() < 64


@pytest.mark.parametrize("kind", EVERYWHERE)
@pytest.mark.parametrize("num_workers", [1, 2, 4])
def test_all_meet(kind, num_workers):
    done = run(kind, Meets, num_workers)
    assert done.failure is None
    assert done.observations[-1].parameters.tolist() == [Meets.rounds] * num_workers


@pytest.mark.parametrize("kind", REAL)
def test_waiting_for_a_meeting_is_idleness(kind):
    early, late = run(kind, Meets).workers
    assert early.idle_s > Meets.rounds * 0.02 * 0.9  # a sleep is never shorter
    assert late.idle_s < early.idle_s
    for worker in (early, late):
        assert worker.comm_s == 0.0 and worker.compute_s + worker.idle_s <= worker.finish_s * (1 + 1e-9)


@pytest.mark.parametrize("kind", REAL)
def test_waiting_for_a_lock_is_idleness(kind):
    workers = run(kind, Counted, 2, batch_size=1).workers
    assert sum(worker.idle_s for worker in workers) > 64 * 1e-4 / 4  # one of two waits, for most of the time


@pytest.mark.parametrize("kind", REAL)
def test_a_worker_that_ends_where_others_meet_is_an_error(kind):
    failure = run(kind, LeavesOthers, 3).failure
    assert isinstance(failure, UserError)
    assert str(failure) == (
        "worker 0 meets, but worker 1 ends: all must share the same tensors, and meet, in the same order"
    )


@pytest.mark.parametrize("kind", REAL)
@pytest.mark.parametrize(
    ("algorithm", "words"),
    [
        (CrossesLocks, "waited for lock 'lock "),
        (WaitsInVain, "waited"),  # at worker.meet() or for the lock: whose time is up first
    ],
)
def test_workers_that_wait_for_each_other_end_after_the_timeout(kind, algorithm, words):
    failure = run(kind, algorithm, timeout_s=1.0).failure
    assert isinstance(failure, WorkerFailed)
    assert words in str(failure) and "for more than hardware.timeout_s=1" in str(failure)


@pytest.mark.parametrize("kind", EVERYWHERE)
def test_a_lock_is_not_taken_twice(kind):
    failure = run(kind, LocksTwice, 1).failure
    assert isinstance(failure, UserError)
    assert str(failure) == "worker.lock('twice') is held by its caller already: leave it before taking it again"


@pytest.mark.parametrize("kind", EVERYWHERE)
def test_background_activities_do_not_meet(kind):
    failure = run(kind, MeetsInTheBackground).failure
    assert isinstance(failure, UserError)
    assert str(failure) == "worker.meet() must be called by the worker itself, not by a background activity"


@pytest.mark.parametrize("kind", REAL)
def test_a_lock_holds_a_worker_and_its_background_apart(kind):
    assert run(kind, SharesLockWithBackground, 1).observations[-1].parameters.item() == 100


@pytest.mark.parametrize("kind", EVERYWHERE)
def test_a_holder_that_raises_ends_the_run(kind):
    failure = run(kind, HolderRaises).failure
    assert isinstance(failure, WorkerFailed) and "ZeroDivisionError: by design" in str(failure)


def test_a_lock_outlives_a_holder_that_is_killed():
    done = run("processes", HolderIsKilled, milestones=[8, 64])
    assert isinstance(done.failure, WorkerFailed)
    assert str(done.failure).startswith("worker 1 (pid ")
    assert str(done.failure).endswith("was killed by signal 9 (SIGKILL)")
    assert [seen.samples for seen in done.observations] == [8]  # rank 0 got it


def test_meeting_takes_until_the_last_has_come():
    def body(worker):
        times = []
        for _ in range(2):
            compute_for(worker, 1 + worker.rank)
            worker.meet()
            times.append(worker.clock.now())
        return times

    assert results(body, 3) == [[3.0, 6.0]] * 3
    reports = execute(body, 3).workers
    assert [(report.compute_s, report.idle_s, report.comm_s) for report in reports] == [
        (2.0, 4.0, 0.0),
        (4.0, 2.0, 0.0),
        (6.0, 0.0, 0.0),
    ]


def turns(worker, come_s, hold_s=1.0):
    """When a rank that comes at `come_s` had the lock."""
    compute_for(worker, come_s[worker.rank])
    with worker.lock("it"):
        since_s = worker.clock.now()
        compute_for(worker, hold_s)
    return since_s, worker.clock.now()


def test_who_comes_first_is_next_and_of_equals_the_lowest_rank():
    assert results(lambda worker: turns(worker, [0.0] * 4), 4) == [(rank, rank + 1.0) for rank in range(4)]
    late_first = results(lambda worker: turns(worker, [0.0, 0.75, 0.5, 0.75]), 4)
    assert late_first == [(0.0, 1.0), (2.0, 3.0), (1.0, 2.0), (3.0, 4.0)]


def test_a_lock_that_nobody_holds_costs_nothing_to_its_last_holder():
    def body(worker):
        for _ in range(10):
            with worker.lock("it"):
                pass
        return worker.clock.now()

    assert results(body, 1, memory=NUMA) == [0.0]


@pytest.mark.parametrize(
    ("policy", "expected"), [("spread", [0.0, 120e-9, 240e-9]), ("fill", [0.0, 50e-9, 100e-9]), (None, [0.0] * 3)]
)
def test_the_line_of_a_lock_travels_with_it(policy, expected):
    memory = replace(NUMA, pin_policy=policy) if policy else None

    def body(worker):
        with worker.lock("it"):
            return worker.clock.now()

    assert results(body, 3, memory=memory) == pytest.approx(expected, abs=1e-18)


def test_locks_of_other_names_are_others():
    def body(worker):
        with worker.lock(f"of {worker.rank}"):
            compute_for(worker, 1.0)
        return worker.clock.now()

    assert results(body, 3) == [1.0] * 3


def test_a_background_activity_waits_for_its_own_worker_in_virtual_time():
    def body(worker):
        times = []

        def take():
            with worker.lock("it"):
                times.append(worker.clock.now())

        with worker.lock("it"):
            worker.background(take)
            compute_for(worker, 2.0)
        return times

    assert results(body, 1) == [[2.0]]


def test_a_deadlock_says_who_waits_for_which_lock_and_for_whom_to_meet():
    failure = run("simulated", WaitsInVain).failure
    assert isinstance(failure, WorkerFailed) and str(failure).startswith("deadlock at ")
    assert "rank 0 waits for all to meet: ranks [1] have not come, at tests/hardware/toys.py" in str(failure)
    assert "rank 1 waits for lock 'held', which rank 0 holds, at tests/hardware/toys.py" in str(failure)


def test_a_rank_that_ends_where_others_meet_is_a_deadlock():
    failure = run("simulated", LeavesOthers, 3).failure
    assert "rank 0, rank 2 wait for all to meet: ranks [1] have not come" in str(failure)
    assert "rank 1 waits for nothing: it has finished" in str(failure)


def test_the_dead_give_no_lock_back():
    failure = execute(lambda worker: turns(worker, [0.0, 1.0], hold_s=5.0), 2, deaths={0: 3.0}).failure
    assert "rank 0 waits for nothing: it died at 3 s" in str(failure)
    assert "rank 1 waits for lock 'it', which rank 0 holds" in str(failure)


def test_the_dead_are_not_given_a_lock():
    had = {}

    def body(worker):
        had[worker.rank] = turns(worker, [0.0, 1.0, 2.0], hold_s=5.0)

    done = execute(body, 3, deaths={1: 3.0})
    assert done.failure is None
    assert had == {0: (0.0, 5.0), 2: (5.0, 10.0)}


@pytest.mark.parametrize("num_workers", [2, 3])
def test_a_loop_that_takes_free_locks_gets_on_in_virtual_time(num_workers):
    """All but rank 1, each by a lock of its own that costs nothing, wait for what rank 1 does at 1 ms."""

    def body(worker):
        flag, takes = worker.shared("flag", torch.zeros(1)), 0
        if worker.rank == 1:
            compute_for(worker, 1e-3)
            flag.fill_(1.0)
        while not flag:
            with worker.lock(f"of {worker.rank}"):
                takes += 1
        return takes, worker.clock.now()

    free = replace(NUMA, **{f"{name}_s": 0.0 for name in ("same_socket", "cross_socket")})
    for takes, time_s in results(body, num_workers, memory=free):
        assert takes < 1200 and 1e-3 <= time_s <= 1e-3 + 3e-6  # a microsecond each, after the first hundred


def test_a_hundred_locks_at_one_instant_cost_nothing():
    def body(worker):
        for _ in range(10):
            for _ in range(100):
                with worker.lock("it"):
                    pass
            compute_for(worker, 1.0)
        return worker.clock.now()

    assert results(body, 1, memory=NUMA) == [10.0]


def test_locks_are_taken_in_the_same_order_every_time():
    def body(worker):
        order = worker.shared("order", torch.full((40,), -1.0))
        for _ in range(10):
            with worker.lock("it"):
                order[int((order >= 0).sum())] = worker.rank
        worker.meet()
        return order.tolist(), worker.clock.now()

    first = results(body, 4, memory=NUMA)
    assert first == results(body, 4, memory=NUMA) and sorted(first[0][0]) == sorted([*range(4)] * 10)
