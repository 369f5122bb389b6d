"""This machine is measured, quickly and badly, and the simulator takes what comes of it."""

import os

import numpy as np
import pytest
from composed import execution

from hardware.real.topology import Core, Topology, read_topology
from harness.build import build
from harness.calibrate import core, files, memory
from harness.calibrate.__main__ import _warning, main
from harness.calibrate.constant import Constant, repeated
from harness.cli import composed
from harness.errors import UserError

needs_two_cores = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs 2 cores")
QUICK = [(memory, "ROUNDS", 12), (memory, "UPDATES", 16), (memory, "MEMORY_BYTES", 1 << 24), (core, "SAMPLES", 1000)]
QUICK += [
    (core, "TRIALS", 2),
    (core, "ROUNDS", 2),
    (core, "REPETITIONS", 2),
    (memory, "REPETITIONS", 4),
    (memory, "WARM", 2048),
    (memory, "DOZE_ROUNDS", 60),
    (core, "SIDE", 64),
    (core, "LARGE", 1 << 16),
]


@pytest.fixture
def quick(monkeypatch):
    for module, name, value in QUICK:
        monkeypatch.setattr(module, name, value)


@needs_two_cores
def test_device_files_are_written_and_used(quick, tmp_path, capsys):
    assert main(["memory", "--output", str(tmp_path), "--name", "mine"]) == 0
    printed = capsys.readouterr().out
    assert "outstanding_misses" in printed and f"--config-dir {tmp_path}" in printed
    chosen = ["hardware=sim_cpu", "hardware/memory=mine", "hardware/compute=mine", "hardware.num_workers=2"]
    hardware = build(composed(chosen, tmp_path).hardware, "hardware")
    assert hardware.memory.cache_bytes >= 2**14 and hardware.memory.same_socket_s > 0
    assert hardware.compute.nonzero_s > 0 and 0 < hardware.memory.sequential_rows <= 1
    for name in (*files.MEMORY, *files.CORE):
        assert f"\n{name}: " in "\n".join(path.read_text() for path in tmp_path.rglob("mine.yaml"))
    tiny = ["problem.synthetic_samples=200", "problem.synthetic_features=50", "problem.synthetic_nonzeros_per_sample=5"]
    chosen = [f"hydra.searchpath=['file://{tmp_path}']", "algorithm=hogwild", *chosen, *tiny, "tracking=none"]
    done = execution(*chosen)
    assert done.failure is None and done.run_s > 0


def test_one_core_is_refused():
    with pytest.raises(UserError, match="calibrating memory needs two cores"):
        memory.pairs(Topology((Core((0, 1), node=0, socket=0),)))


def test_pairs_are_of_one_socket_and_of_two():
    cores = tuple(Core((cpu,), node=cpu // 2, socket=cpu // 2) for cpu in range(4))
    assert memory.pairs(Topology(cores)) == ((0, 1), (0, 2))
    assert memory.pairs(Topology(cores[:2])) == ((0, 1), None)
    assert memory.pairs(Topology((cores[0], cores[2]))) == ((0, 2), (0, 2))


@needs_two_cores
def test_a_folder_that_cannot_be_written_is_one_sentence(quick, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["memory", "--output", str(tmp_path / "file")]) == 1
    assert "error: --output" in capsys.readouterr().err


def test_a_name_that_is_none_is_refused_before_anything_is_measured(capsys):
    assert main(["memory", "--name", "my machine"]) == 1
    assert (
        capsys.readouterr().err == "error: --name must be a name of letters, digits and underscores, got 'my machine'\n"
    )


@needs_two_cores
def test_every_core_of_a_topology_is_measurable(quick):
    found = {constant.name: constant.value for constant in memory.constants(read_topology())}
    assert set(found) | {"lock_s", "sequential_rows"} == set(files.MEMORY)
    assert all(value >= 0 for value in found.values())


def test_repeated_constants_are_medians_with_their_spread():
    """3 of 4 repetitions make sense; the lower of two middles would be the median of an even number."""
    values = iter([2.0, None, 1.0, 1.5])

    def measure():
        value = next(values)
        if value is None:
            raise UserError("shared lines were cheaper than own ones")
        yield Constant("lock_s", value, f"as {value}")

    (constant,) = repeated(measure, 4)
    assert (constant.value, constant.how) == (1.5, "as 1.5") and constant.spread == pytest.approx(1 / 1.5)
    assert files._line(constant, "s") == "lock_s: 1.500e+00  # s; as 1.5; repetitions within 67 %"


def test_no_repetition_that_makes_sense_is_an_error():
    def measure():
        raise UserError("shared lines were cheaper than own ones")
        yield

    with pytest.raises(UserError, match="cheaper"):
        list(repeated(measure, 3))


def test_constants_that_repetitions_disagree_on_are_named():
    steady, noisy, once = (
        Constant("wake_s", 1.0, "", 0.05),
        Constant("lock_s", 1.0, "", 0.6),
        Constant("sockets", 1, ""),
    )
    assert _warning([steady, once]) == ""
    assert "repetitions of lock_s differ by more than 30 %" in _warning([steady, noisy, once])


def quick_turns(wake_ns=9_000.0, sleep_ns=14_000.0, rounds=5):
    """Of a core that has a mutex for 200 ns at a time, while another one sleeps on it, is woken, and finds it held."""
    times, now_ns = [], 0.0
    for _ in range(rounds):
        for turn in range(int(sleep_ns / 250) + 1):
            left_ns = wake_ns if turn == 0 else 40.0
            times.append((now_ns, now_ns + 200, now_ns + 200 + left_ns))
            now_ns += 210 + left_ns
    return np.zeros(len(times), int), np.array(times)


def test_what_it_takes_to_wake_a_core_is_read_from_turns_at_a_mutex():
    assert memory.woken(*quick_turns()) == pytest.approx((9_000, 14_000), rel=0.02)  # to a turn


def test_turns_of_the_other_core_in_between_say_nothing_of_how_long_it_slept():
    owner, times = quick_turns(rounds=6)
    later = times.copy()
    later[20:] += 1e6  # in the first of five sleeps the other core had a turn
    owner[20] = 1
    assert memory.woken(owner, later) == pytest.approx((9_000, 14_000), rel=0.02)
    with pytest.raises(UserError, match="no core slept"):
        memory.woken(*(part[1:50] for part in quick_turns()))


def test_how_long_it_takes_to_fall_asleep_is_read_from_what_a_mutex_costs_who_lets_go(monkeypatch):
    """An imaginary machine: asked 80 ns after the mutex was taken, asleep 220 ns later; 400 ns or 11 us to let go."""

    def handed_over(cpus, held_ns):
        waited_ns = held_ns - 80.0
        left_ns = np.where(waited_ns > 220, 11_000.0, 400.0)
        asked_ns = held_ns - waited_ns
        had_ns = np.where(waited_ns > 220, held_ns + left_ns + 8000, asked_ns + 400.0)
        return np.stack([held_ns, held_ns + left_ns], 1), np.stack([asked_ns, had_ns], 1)

    monkeypatch.setattr(memory, "handed_over", handed_over)
    monkeypatch.setattr(memory, "contended", lambda cpus: quick_turns())
    wake_s, sleep_s, doze_s, futex_s = memory.mutex((0, 1))
    assert (wake_s, sleep_s, futex_s) == pytest.approx((9e-6, 14e-6, 400e-9), rel=0.02)
    assert doze_s == pytest.approx(220e-9, abs=1.5e-9 * memory.DOZE_NS / memory.DOZE_ROUNDS)


def test_a_mutex_on_which_others_are_asleep_at_once_makes_no_sense(monkeypatch):
    def handed_over(cpus, held_ns):
        return np.stack([held_ns, held_ns + 11_000.0], 1), np.stack([held_ns - 80.0, held_ns + 19_000.0], 1)

    monkeypatch.setattr(memory, "contended", lambda cpus: quick_turns())
    monkeypatch.setattr(memory, "handed_over", handed_over)
    with pytest.raises(UserError, match="slept at once"):
        memory.mutex((0, 1))
