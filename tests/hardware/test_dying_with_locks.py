"""Whoever dies with a lock ends the run, or lets it go on where nobody waits for him: nobody hangs."""

from dataclasses import replace

import pytest
import torch
from composed import execution
from patience import impatient
from simulated_ranks import SECOND, compute_for, execute, shared_memory

from algorithms.shared_memory.replicas import Merged
from harness.errors import WorkerFailed
from harness.kernels.access import LOCKING, Access, lock_words
from tests.counting import CountKernel
from tests.hardware.toys import Counts, DiesInItsKernel, machine, program

LOCKS = [locking for locking in LOCKING if locking not in ("none", "atomic")]
FREE = shared_memory()


@pytest.mark.parametrize("locking", LOCKS)
def test_a_process_killed_in_its_kernel_with_a_lock_ends_the_run(locking):
    dying = program(DiesInItsKernel, problem=Counts, native=False, locking=locking)
    failure = machine(2).execute(dying, impatient()).failure
    assert isinstance(failure, WorkerFailed)
    assert str(failure).startswith("worker 1 (pid ") and str(failure).endswith("was killed by signal 9 (SIGKILL)")


def updates(locking, begin_s, counts, num_updates=1):
    """A body whose rank r begins `num_updates` of 1 s at `begin_s[r]`, without locks to a coordinate of its own."""
    kernel = CountKernel([[0], [1], [2]], 3)
    words = lock_words(locking, 3)

    def body(worker):
        model = worker.shared("model", torch.zeros(3))
        access = Access(locking, worker.shared("locks", words) if len(words) else words)
        compute_for(worker, begin_s[worker.rank])
        sample = 0 if len(words) else worker.rank
        worker.run(kernel, model, torch.full((num_updates,), sample, dtype=torch.int32), 1.0, access)
        counts[worker.rank] = model.tolist()

    return body


@pytest.mark.parametrize("locking", ["global_spin", "global_mutex", "round_robin"])
def test_a_simulated_rank_that_dies_in_its_kernel_with_a_lock_ends_the_run(locking):
    body = updates(locking, [0.25, 0.0, 0.25], {})
    failure = execute(body, 3, memory=FREE, compute=SECOND, deaths={1: 0.5}).failure
    assert isinstance(failure, WorkerFailed)
    assert f"rank 0, rank 2 wait for {locking}, which rank 1 held when it died" in str(failure)
    assert "rank 1 waits for nothing: it died at 0.5 s" in str(failure)


def test_a_simulated_rank_that_dies_with_the_locks_of_coordinates_ends_the_run():
    """Rank 1 has them from 1 s, when its gradient is there, until 3 s: an atomic operation of 2 s."""
    body, memory = updates("per_coordinate", [0.25, 0.0], {}), replace(FREE, atomic_s=2.0)
    failure = execute(body, 2, memory=memory, compute=SECOND, deaths={1: 2.0}).failure
    assert "rank 0 waits for per_coordinate, which rank 1 held when it died" in str(failure)


@pytest.mark.parametrize("locking", LOCKING)
def test_the_updates_of_the_dead_end_and_those_of_others_go_on(locking):
    """Rank 1 dies at 3.5 s: without locks after 3 of its updates; with them while it waits, or before it began."""
    counts = {}
    begin_s = [0.0, 3.75 if len(lock_words(locking, 3)) else 0.0, 0.0]
    done = execute(updates(locking, begin_s, counts, 10), 3, memory=FREE, compute=SECOND, deaths={1: 3.5})
    assert done.failure is None and set(counts) == {0, 2}
    assert sum(counts[2]) == (20 if len(lock_words(locking, 3)) else 23)


def test_who_dies_before_it_takes_a_lock_lets_the_next_one_have_it():
    """Rank 0 lets the mutex go at 1 s and wakes rank 1, who dies at 1.5 s, before it looks; rank 2 looks at 2.5 s."""
    counts = {}
    body, memory = updates("global_mutex", [0.0, 0.1, 0.2], counts), replace(FREE, sleep_s=1.0)
    done = execute(body, 3, memory=memory, compute=SECOND, deaths={1: 1.5})
    assert done.failure is None
    assert counts[2] == [2.0, 0.0, 0.0] and done.run_s == 3.5


def test_who_dies_after_it_let_go_keeps_nobody():
    """Rank 1 lets the mutex go at 1 s, wakes rank 0 until 2 s, and dies at 1.5 s."""
    counts = {}
    body, memory = updates("global_mutex", [0.25, 0.0], counts), replace(FREE, wake_s=1.0)
    done = execute(body, 2, memory=memory, compute=SECOND, deaths={1: 1.5})
    assert done.failure is None and counts == {0: [2.0, 0.0, 0.0]}


DYING = ["algorithm=hogwild", "hardware=sim_cpu", "budget.epochs=1", "problem.synthetic_samples=2000"]


@pytest.mark.parametrize("sharing", ["shared", "replica_per_worker"])
def test_survivors_of_a_shared_model_say_who_died_and_what_was_not_done(sharing):
    chosen = [*DYING, "budget.observations=2", f"algorithm.sharing={sharing}", "hardware.deaths={1: 2.2e-4, 3: 9.0}"]
    done = execution(*chosen)
    assert done.failure is None and done.metrics["run/deaths"] == [{"rank": 1, "time_s": pytest.approx(2.2e-4)}]
    lost, last = done.metrics["run/lost_samples"], done.observations[-1]
    assert lost > 0 and last.samples + lost == 1800 and last.time_s == done.run_s


def test_nobody_died_who_had_finished_by_then():
    done = execution(*DYING, "hardware.deaths={3: 9.0}")
    assert "run/deaths" not in done.metrics and done.observations[-1].samples == 1800


def test_what_the_dead_have_merged_counts_and_nothing_else():
    """Each sample adds 1, so that the common model has counted the samples: rank 1 merges twice, then dies."""
    kernel, counts = CountKernel([[0]] * 100, 1), {}

    def body(worker):
        replica = Merged(worker, torch.zeros(1), Access(), worker.rank, 2, "delta_sum", 10)
        for begin in range(0, 50, 5):
            worker.run(kernel, replica.model, torch.arange(begin, begin + 5, dtype=torch.int32), 1.0)
            replica.processed(5)
        replica.finish()
        counts[worker.rank] = replica.whole().tolist()

    done = execute(body, 2, budget=100, milestones=(100,), memory=FREE, compute=SECOND, deaths={1: 25.5})
    assert done.failure is None and counts == {0: [70.0]}
    assert done.metrics["run/lost_samples"] == 30


@pytest.mark.parametrize("locking", ["global_spin", "global_mutex"])
def test_the_dead_do_not_get_a_lock_they_waited_for(locking):
    counts = {}
    done = execute(updates(locking, [0.0, 0.1, 0.2], counts), 3, memory=FREE, compute=SECOND, deaths={1: 0.5})
    assert done.failure is None and counts[2] == [2.0, 0.0, 0.0] and done.run_s == 2.0
