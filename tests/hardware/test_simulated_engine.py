import os
import signal
import sys
import threading
import time

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated_ranks import compute_for, execute, machine, program, results
from torch.distributed import distributed_c10d as c10d

from hardware.simulated import engine as engine_module
from hardware.simulated.activity import Signal, TimedOut
from hardware.simulated.engine import Engine
from harness.errors import UserError, WorkerFailed


@pytest.fixture(autouse=True)
def nothing_left_behind():
    threads, stack = threading.enumerate(), threading.stack_size()
    yield
    assert threading.enumerate() == threads
    assert threading.stack_size() == stack


def test_activities_go_in_order_of_time_then_rank():
    seen = []

    def body(worker):
        for _ in range(2):
            compute_for(worker, 2 if worker.rank == 0 else 1)
            worker._place.add("samples", 1)
            seen.append((worker.clock.now(), worker.rank))

    execute(body, 3)
    assert seen == [(1.0, 1), (1.0, 2), (2.0, 0), (2.0, 1), (2.0, 2), (4.0, 0)]


def test_only_one_activity_runs_at_a_time():
    inside = []

    def body(worker):
        for _ in range(20):
            inside.append(worker.rank)
            time.sleep(0.0005)  # another thread would use the chance
            assert inside == [worker.rank]
            inside.clear()
            compute_for(worker, 1)
            worker._place.add("samples", 1)

    assert execute(body, 4).failure is None


def test_deadlock_says_what_every_rank_waits_for():
    def body(worker):
        if worker.rank == 0:
            dist.all_reduce(torch.zeros(3))
        elif worker.rank == 1:
            dist.recv(torch.zeros(2, dtype=torch.int64), 0, tag=7)

    failure = execute(body, 3).failure
    here, line = os.path.relpath(__file__), body.__code__.co_firstlineno + 2
    assert isinstance(failure, WorkerFailed)
    assert str(failure) == (
        "deadlock at 0 s of virtual time: "
        f"rank 0 waits for all_reduce(SUM) of float32[3], collective 0 of ranks [0, 1, 2]: ranks [1, 2] have not come, "
        f"at {here}:{line}; "
        f"rank 1 waits for receive int64[2] from rank 0, tag 7: rank 0 has not come, at {here}:{line + 2}; "
        "rank 2 waits for nothing: it has finished"
    )


def test_error_of_one_rank_stops_all_and_unwinds_them():
    unwound = []

    def body(worker):
        try:
            if worker.rank == 1:
                raise ZeroDivisionError("by design")
            dist.barrier()
        finally:
            unwound.append(worker.rank)

    failure = execute(body, 4).failure
    assert isinstance(failure, WorkerFailed)
    assert str(failure) == "rank 1 failed: ZeroDivisionError: by design"
    assert "by design" in failure.details and "Traceback" in failure.details
    assert sorted(unwound) == [0, 1]  # 2 and 3 had not begun


def test_no_rank_catches_the_abort():
    def body(worker):
        if worker.rank == 1:
            raise UserError("stop")
        while True:
            try:
                dist.barrier()
            except Exception:
                continue

    failure = execute(body, 2).failure
    assert isinstance(failure, UserError)


def test_ctrl_c_ends_the_run():
    def body(worker):
        while True:
            dist.barrier()

    hardware = machine(4)
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    assert isinstance(hardware.execute(program(body), lambda samples: None).failure, KeyboardInterrupt)
    timer.join()


@pytest.fixture
def released():
    """Set at the end: a rank that was given up then ends, and so do those it kept waiting."""
    flag, before = threading.Event(), threading.enumerate()
    yield flag
    flag.set()
    for thread in set(threading.enumerate()) - set(before):
        thread.join()


def interrupted(body, interrupts):
    """The execution of `body` on three ranks, with Ctrl-C after so many seconds of the host."""
    timers = [threading.Timer(after_s, os.kill, (os.getpid(), signal.SIGINT)) for after_s in interrupts]
    for timer in timers:
        timer.start()
    done = machine(3).execute(program(body), lambda samples: None)
    for timer in timers:
        timer.join()
    return done


@pytest.mark.parametrize(("interrupts", "end_s"), [([0.3], 0.2), ([0.3, 0.8], 600.0)], ids=["once", "twice"])
def test_ctrl_c_ends_the_run_though_a_rank_waits_for_ever(monkeypatch, released, interrupts, end_s):
    monkeypatch.setattr(engine_module, "END_S", end_s)
    world, stack = c10d._world, threading.stack_size()

    def body(worker):
        if worker.rank == 1:
            released.wait()
        dist.barrier()

    assert isinstance(interrupted(body, interrupts).failure, KeyboardInterrupt)
    assert c10d._world is world and threading.stack_size() == stack
    assert results(lambda worker: dist.get_world_size(), 2) == [2, 2]


def test_ctrl_c_ends_a_loop_of_python():
    def body(worker):
        if worker.rank == 1:
            while True:
                pass
        dist.barrier()

    before = set(threading.enumerate())
    assert isinstance(interrupted(body, [0.3]).failure, KeyboardInterrupt)
    assert set(threading.enumerate()) == before


class HalfMade:
    def __init__(self):
        while True:
            pass

    def __del__(self):
        del self.never_made


def test_ctrl_c_says_nothing_of_destructors_of_what_was_being_made(monkeypatch):
    heard = []
    monkeypatch.setattr(sys, "unraisablehook", heard.append)
    assert isinstance(interrupted(lambda worker: HalfMade(), [0.3]).failure, KeyboardInterrupt)
    assert heard == []


def test_a_rank_that_does_not_end_is_named_and_leaves_the_caller_s_group_alone(monkeypatch, released):
    monkeypatch.setattr(engine_module, "END_S", 0.2)

    def body(worker):
        if worker.rank == 1:
            try:
                dist.recv(torch.zeros(1), 2)
            except BaseException:
                while not released.is_set():
                    pass
                raise
        if worker.rank == 0:
            compute_for(worker, 1)
            worker._place.add("samples", 1)
            raise ZeroDivisionError("by design")
        dist.barrier()

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        mine = set(threading.enumerate())
        failure = execute(body, 3).failure
        assert isinstance(failure, WorkerFailed)
        assert str(failure).startswith("rank 1 does not end: ")
        assert str(failure).endswith("after rank 0 failed: ZeroDivisionError: by design")
        released.set()
        for thread in set(threading.enumerate()) - mine:
            thread.join()
        assert dist.get_world_size() == 1
        dist.barrier()
    finally:
        dist.destroy_process_group()


def test_progress_is_called_from_the_calling_thread_and_at_the_end():
    calls = []

    def body(worker):
        worker._place.add("samples", 5)

    hardware = machine(3)
    hardware.execute(program(body), lambda samples: calls.append((samples, threading.current_thread())))
    assert calls[-1] == (15, threading.main_thread())


def test_background_activity_communicates_and_is_awaited():
    sums = {}

    def body(worker):
        group = dist.new_group()

        def help_out():
            x = torch.ones(1)
            dist.all_reduce(x, group=group)
            sums[worker.rank] = (float(x), dist.get_rank(), worker.clock.now())

        compute_for(worker, 1)
        worker.background(help_out)
        return worker.clock.now()

    assert results(body, 2) == [1.0, 1.0]
    # 2 steps x (0.5 s + 2 bytes / 8 bytes/s), from 1 s on
    assert sums == {0: (2.0, 0, 2.5), 1: (2.0, 1, 2.5)}


def test_error_in_the_background_names_it():
    def body(worker):
        worker.background(lambda: 1 / 0)
        dist.barrier()

    assert str(execute(body, 1).failure) == "rank 0 (background) failed: ZeroDivisionError: division by zero"


def test_error_in_an_event_is_a_failure_of_the_simulation():
    def body(worker):
        engine = worker._place._machine.engine
        engine.at(1.0, 0, lambda: [].pop())
        engine.wait(Signal(), "nothing")

    assert str(execute(body, 1).failure) == "the simulation failed: IndexError: pop from empty list"


def test_baton_is_pinned_to_one_core():
    cores = results(lambda worker: os.sched_getaffinity(0), 3)
    assert len(cores[0]) == 1 and cores == [cores[0]] * 3


def test_engine_runs_without_torch_worlds():
    engine, times = Engine(), []
    activity = engine.spawn(
        0, "alone", lambda: (activity.charge(3.0), engine.sync(), times.append(engine.env.now)), 1.0
    )
    engine.run(lambda: None)
    assert times == [4.0]


def test_dead_rank_does_nothing_more_and_those_who_wait_for_it_give_up():
    engine, seen, never = Engine(deaths={1: 2.5}), [], Signal()

    def waits():
        try:
            engine.wait(never, "rank 1", timeout_s=10.0)
        except TimedOut:
            seen.append(("gave up", engine.current.now()))

    def ticks():
        while True:
            engine.current.charge(1.0)
            engine.sync()
            seen.append(("tick", engine.env.now))

    engine.spawn(0, "rank 0", waits, 0.0)
    engine.spawn(1, "rank 1", ticks, 0.0)
    engine.run(lambda: None)
    assert seen == [("tick", 1.0), ("tick", 2.0), ("gave up", 10.0)]


def test_rank_dies_while_it_waits():
    engine, never, ends = Engine(deaths={0: 3.0}), Signal(), []

    def waits():
        try:
            engine.wait(never, "nobody")
        finally:
            ends.append(engine.env.now)

    engine.spawn(0, "rank 0", waits, 0.0)
    engine.run(lambda: None)
    assert ends == [3.0]


def test_wait_that_is_too_long_times_out_though_it_would_end():
    engine, late = Engine(mortal=True), Signal()

    def waits():
        with pytest.raises(TimedOut):
            engine.wait(late, "something late", timeout_s=1.0)
        assert engine.current.now() == 1.0

    engine.spawn(0, "rank 0", waits, 0.0)
    engine.at(5.0, 0, lambda: engine.happen(late))
    engine.run(lambda: None)


@pytest.mark.parametrize("timeout_s", [10.0, 599.0, 3600.0, 1e6])
def test_a_time_out_that_was_asked_for_is_kept_however_long(timeout_s):
    engine, ends = Engine(), []

    def waits():
        with pytest.raises(TimedOut):
            engine.wait(Signal(), "nobody", timeout_s=timeout_s)
        ends.append(engine.current.now())

    engine.spawn(0, "rank 0", waits, 0.0)
    engine.run(lambda: None)
    assert ends == [timeout_s]


@pytest.mark.parametrize("timeout_s", engine_module.USUAL_S)
def test_a_wait_without_end_and_with_torch_s_usual_time_out_is_a_deadlock_unless_somebody_may_die(timeout_s):
    def run(engine):
        engine.spawn(0, "rank 0", lambda: engine.wait(Signal(), "nobody", timeout_s=timeout_s), 0.0)
        with pytest.raises(WorkerFailed) as failure:
            engine.run(lambda: None)
        return str(failure.value), engine.env.now

    words, end_s = run(Engine())
    assert words.startswith("deadlock at 0 s of virtual time: rank 0 waits for nobody") and end_s == 0.0
    assert run(Engine(mortal=True)) == ("rank 0 failed: ", timeout_s)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.floats(1e-9, 1e3), min_size=2, max_size=6))
def test_rounding_keeps_nobody_waiting(seconds):  # SimPy's clock reaches now + (then - now), which may be before then
    def body(worker):
        for each in seconds:
            compute_for(worker, each)
            compute_for(worker, each / 3)
            worker._place.add("samples", 1)
        return worker.clock.now()

    (finish_s,) = results(body, 1)
    assert finish_s == pytest.approx(sum(seconds) * 4 / 3, rel=1e-12)
