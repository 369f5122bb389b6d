"""Who holds a line, and what it costs to read and to write it."""

from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from simulated_ranks import execute, results, shared_memory

from hardware.simulated.cache_lines import CacheLines, pass_row, read_line, read_lines_s, write_line, write_lines_s
from hardware.simulated.compute import Roofline
from hardware.simulated.core_cache import NOWHERE
from hardware.simulated.memory import SharedMemory
from harness.errors import UserError
from harness.kernels.access import Access, lock_words
from harness.kernels.sparse_linear import SQUARES, SparseLinearKernel
from harness.kernels.sparse_rows import SparseRows

NONZERO_S = 1e-9
COMPUTE = Roofline("none", False, {"float32": 1e30}, 1e30, 0.0, NONZERO_S)
COSTS = {"same_socket_s": 50.0, "cross_socket_s": 120.0, "shared_cache_s": 30.0, "local_memory_s": 80.0}
COSTS["remote_memory_s"] = 140.0


def caches(num_ranks=4, num_lines=8, **settings):
    """Ranks 0 and 2 on one socket, 1 and 3 on the other; lines in the memory of socket 0."""
    lines = CacheLines(shared_memory(**COSTS, **settings), num_ranks)
    lines.add(64 * num_lines, node=0)
    return lines.native


def read(lines, rank, line=0):
    return read_line(lines, rank, np.uint64(line))


def write(lines, rank, line=0):
    return write_line(lines, rank, np.uint64(line))


def update(lines, rank, line=0):
    """A read and the write that follows; the seconds of both."""
    return read(lines, rank, line), write(lines, rank, line)


@pytest.mark.parametrize("migrates", [False, True])
def test_a_line_nobody_wrote_comes_from_memory_once(migrates):
    lines = caches(migrates=migrates)
    assert [read(lines, rank) for rank in (0, 0, 1, 1, 2)] == [80, 0, 140, 0, 80]


@pytest.mark.parametrize(("reader", "seconds"), [(2, 50), (1, 120)])
def test_a_written_line_comes_from_its_writer(reader, seconds):
    lines = caches()
    assert update(lines, 0) == (80, (0, False))
    assert update(lines, 0) == (0, (0, False))
    assert read(lines, reader) == seconds


@pytest.mark.parametrize(("writer", "seconds"), [(2, 50), (1, 120)])
def test_without_migration_copies_are_claimed(writer, seconds):
    lines = caches(migrates=False)
    update(lines, 0)
    read(lines, writer)
    assert read(lines, 0) == 0  # both hold it
    assert write(lines, writer) == (seconds, False)
    assert read(lines, 0) == seconds


def test_with_migration_the_reader_of_a_written_line_has_it_alone():
    lines = caches(migrates=True)
    update(lines, 0)
    assert update(lines, 2) == (50, (0, False))
    assert read(lines, 0) == 50


@pytest.mark.parametrize("migrates", [False, True])
def test_a_line_that_others_took_between_read_and_write_clashes(migrates):
    lines = caches(migrates=migrates)
    update(lines, 0)
    read(lines, 0)
    update(lines, 1)
    assert write(lines, 0) == (120, True)
    assert read(lines, 1) == 120


def test_copies_that_many_hold_are_claimed_once():
    lines = caches(migrates=True)
    for rank in range(4):
        read(lines, rank)
    assert write(lines, 0) == (120, False)
    assert [read(lines, rank) for rank in (2, 3)] == [50, 120]


def test_a_small_cache_forgets():
    lines = caches(num_lines=8, cache_bytes=4 * 64)
    assert [update(lines, 0, line) for line in range(8)] == [(80, (0, False))] * 8
    assert [read(lines, 0, line) for line in (4, 5, 6, 7)] == [0] * 4
    assert read(lines, 0, 0) == 30  # line 4 had taken its place
    assert read(lines, 0, 4) == 30
    assert [read(lines, rank, 1) for rank in (2, 3)] == [30, 120]  # written by rank 0, forgotten: its socket's cache


@pytest.mark.parametrize("migrates", [False, True])
def test_a_line_is_in_the_caches_of_its_sharers_once(migrates):
    """Whoever reads, writes and forgets: 3 ranks, 24 lines, caches of 8 in sets of 8, rows that pass through."""
    lines, random = caches(3, 24, cache_bytes=8 * 64, migrates=migrates), np.random.default_rng(0)
    for step in range(3000):
        rank, line = int(random.integers(3)), int(random.integers(24))
        if step % 3:
            read(lines, rank, line)
        else:
            update(lines, rank, line)
        if step % 7 == 0:
            pass_row(lines, rank, (1.0, 0.0), 0)
        for each in range(3):
            held = lines.cached[each][lines.cached[each] < NOWHERE].tolist()
            bits = [number for number in range(24) if int(lines.state[number]["sharers"]) >> each & 1]
            assert sorted(held) == bits


def test_lines_that_fit_are_never_forgotten():
    lines = caches(num_lines=4, cache_bytes=4 * 64)
    for line in range(4):
        update(lines, 0, line)
    assert [read(lines, 0, line) for line in range(4)] == [0] * 4


def rows(num_samples, nonzeros, features, seed=0):
    random = np.random.default_rng(seed)
    indices = np.sort(np.argsort(random.random((num_samples, features)), axis=1)[:, :nonzeros], axis=1)
    indptr = torch.arange(0, num_samples * nonzeros + 1, nonzeros)
    data = SparseRows(indptr, torch.from_numpy(indices.astype(np.int32).ravel()), torch.ones(indices.size), features)
    return SparseLinearKernel(data, torch.ones(num_samples), SQUARES)


def test_misses_and_claims_overlap_and_clashes_overlap_less():
    lines = caches(num_lines=10, outstanding_misses=4, outstanding_clashes=2)
    shift, one, touched = np.uint64(4), np.uint64(1), np.arange(0, 160, 16, dtype=np.int32)  # of float32, a line each
    costs = SimpleNamespace(block=one, line_shift=shift, row_lines=(0.0, 0.0))

    def write_s(rank, touched, now_s=1e6):
        return write_lines_s.py_func(lines, np.uint64(0), rank, touched, one, shift, now_s)

    assert read_lines_s.py_func(lines, np.uint64(0), 0, touched, 0, costs, 0.0) == pytest.approx(10 * 80 / 4)
    for line in range(4):
        update(lines, 1, line)  # which rank 0 has lost then
    for line in range(4, 7):
        read(lines, 2, line)
    assert write_s(0, touched) == pytest.approx(3 * 50 / 4 + 4 * 120 / 2)
    assert write_s(0, touched) == 0
    read(lines, 2, 0)
    assert write_s(0, touched[:1], 2e6) == 50  # one alone overlaps with nothing


@pytest.mark.parametrize("locking", ["none", "atomic"])
@pytest.mark.parametrize("workers", [2, 8, 64])
def test_a_line_comes_to_one_core_at_a_time(workers, locking):
    """However many write it, it moves once in `same_socket_s`, and at most once for two updates of one core."""
    kernel, move_s = rows(200, 1, 1), 50e-9

    def body(worker):
        model, words = worker.shared("model", torch.zeros(1)), lock_words(locking, 1)
        worker.run(kernel, model, torch.arange(200, dtype=torch.int32), 1e-3, Access(locking, words))

    memory = shared_memory(sockets=1, cores_per_socket=64, same_socket_s=move_s, migrates=True)
    done = execute(body, workers, memory=memory, compute=COMPUTE)
    assert done.failure is None and 200 * workers * move_s / 2 < done.run_s < 200 * workers * 2 * move_s * 1.05


def test_a_model_of_ones_own_that_does_not_fit_costs_its_misses():
    kernel, samples = rows(300, 4, 4096), torch.arange(300, dtype=torch.int32)

    def run_s(cache_bytes, shared):
        memory = shared_memory(sockets=1, shared_cache_s=1e-6, outstanding_misses=4, cache_bytes=cache_bytes)

        def body(worker):
            model = torch.zeros(4096)
            if shared:
                model = worker.shared("model", model)
            worker.run(kernel, model, samples, 1e-3)
            worker.run(kernel, model, samples, 1e-3)
            return worker.clock.now()

        return results(body, 1, memory=memory, compute=COMPUTE)[0]

    at_hand = 2 * 300 * 4 * NONZERO_S
    # but for the first touch of a shared line, which comes from memory, here for nothing
    assert run_s(1024 * 4, shared=True) == pytest.approx(run_s(1024 * 4, shared=False), rel=0.1)
    assert run_s(4096 * 4, shared=False) == pytest.approx(at_hand)
    assert run_s(1024 * 4, shared=False) > 1.1 * at_hand
    assert run_s(1024 * 4, shared=True) > 1.1 * at_hand


def turns_of(ranks, **memory):
    """Ranks in the order in which they end updates of 1 ns under a spin lock that all of them want."""
    kernel, turns = rows(2000, 1, 16), []

    def body(worker):
        model = worker.shared("model", torch.zeros(16))
        access = Access("global_spin", worker.shared("locks", lock_words("global_spin", 16)))
        for samples in torch.arange(200, dtype=torch.int32).split(1):
            worker.run(kernel, model, samples, 1e-3, access)
            turns.append(worker.rank)

    memory = shared_memory(sockets=1, same_socket_s=2e-10, lock_s=1e-10, **memory)
    assert execute(body, ranks, memory=memory, compute=COMPUTE).failure is None
    return turns


def test_a_spin_lock_goes_to_who_looks_all_the_time_and_hardly_to_who_looks_now_and_then():
    assert turns_of(2, spin_s=1e-8, atomic_s=1e-10)[:100] in ([0, 1] * 50, [1, 0] * 50)
    assert len(set(turns_of(2, yield_s=1e-7)[:100])) == 1  # asking again takes no time
    between = turns_of(2, yield_s=1e-9, atomic_s=5e-10)[:100]  # half of the looks come first
    assert 25 < sum(one != other for one, other in pairwise(between)) < 75


def test_a_spin_lock_starves_none_of_those_who_look_all_the_time():
    early = turns_of(3, spin_s=1e-6, atomic_s=1e-10)[:150]
    assert min(early.count(rank) for rank in range(3)) > 25
    assert early != early[:3] * 50


def test_of_many_who_look_now_and_then_one_comes_sooner():
    """The earliest of 7 looks at random times mostly comes before 1/8 of the time between two."""
    turns = turns_of(8, yield_s=4e-9, atomic_s=5e-10)[:400]
    assert 0.5 < sum(one != other for one, other in pairwise(turns)) / 400 < 0.72  # 1 - (7 / 8)^7 = 0.61


def test_a_mutex_wakes_nobody_who_is_not_asleep_yet():
    """Both want it at once; 10 updates of 1 ns each, whose worker lets go before the other one is asleep, or after."""
    kernel = rows(10, 1, 1)

    def run_s(doze_s, **costs):
        def body(worker):
            words = worker.shared("locks", lock_words("global_mutex", 1))
            samples = torch.arange(10 if worker.rank == 0 else 1, dtype=torch.int32)
            worker.run(kernel, worker.shared("model", torch.zeros(1)), samples, 1e-3, Access("global_mutex", words))
            return worker.clock.now()

        return results(body, 2, memory=shared_memory(sockets=1, doze_s=doze_s, **costs), compute=COMPUTE)

    awake = run_s(2e-9, futex_s=1e-6, wake_s=1.0, sleep_s=1.0)
    assert max(awake) < 1e-4 and min(awake) >= 1e-6
    asleep = run_s(0.5e-9, futex_s=100.0, wake_s=1.0, sleep_s=1.0)
    assert 2.0 < max(asleep) < 10.0


def test_a_lock_costs_its_own_time_when_nobody_else_wants_it():
    kernel = rows(100, 1, 16)

    def run_s(locking, **costs):
        def body(worker):
            model = worker.shared("model", torch.zeros(16))
            words = lock_words(locking, 16)
            words = worker.shared("locks", words) if words.numel() else words
            worker.run(kernel, model, torch.arange(100, dtype=torch.int32), 1e-3, Access(locking, words))
            return worker.clock.now()

        return results(body, 1, memory=shared_memory(**costs), compute=COMPUTE)[0]

    for locking in ("global_spin", "global_mutex", "round_robin"):
        assert run_s(locking, lock_s=1e-7) - run_s("none") == pytest.approx(100 * 1e-7, rel=1e-9)
    assert run_s("atomic", atomic_s=1e-7) - run_s("none") == pytest.approx(100 * 1e-7, rel=1e-9)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("outstanding_clashes", 0.5, "hardware.memory.outstanding_clashes must be >= 1, got 0.5"),
        ("cache_bytes", 32, "hardware.memory.cache_bytes must be >= hardware.memory.line_bytes=64, got 32"),
        ("shared_cache_s", -1.0, "hardware.memory.shared_cache_s must be >= 0, got -1.0"),
    ],
)
def test_costs_that_cannot_be_are_refused(field, value, words):
    with pytest.raises(UserError, match=words):
        shared_memory(**{field: value})


def test_every_field_has_a_line_in_a_device_file():
    from dataclasses import fields

    from harness.calibrate.files import MEMORY

    assert {field.name for field in fields(SharedMemory)} == {*MEMORY, "pin_policy", "memory_policy"}


@pytest.mark.parametrize("locking", ["global_spin", "global_mutex", "round_robin", "per_coordinate"])
def test_waiting_for_locks_is_idleness(locking):
    """Two workers on one coordinate: under a lock, one of them always waits, but in lockstep none waits for its turn.

    Who lets go of the one lock has it again before the other, until it has no more to do: half the run of that one.
    """
    kernel = rows(400, 1, 1)

    def body(worker):
        model, words = worker.shared("model", torch.zeros(1)), worker.shared("locks", lock_words(locking, 1))
        worker.run(kernel, model, torch.arange(400, dtype=torch.int32), 1e-3, Access(locking, words))

    atomic_s = 2e-9 * (locking == "per_coordinate")
    done = execute(body, 2, memory=shared_memory(sockets=1, atomic_s=atomic_s), compute=COMPUTE)
    idle = sum(report.idle_s for report in done.workers) / (2 * done.run_s)
    assert all(report.compute_s + report.idle_s == pytest.approx(report.finish_s, rel=1e-6) for report in done.workers)
    expected = 0.0 if locking == "round_robin" else 0.25
    assert idle == pytest.approx(expected, abs=0.01)
