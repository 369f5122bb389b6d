"""Availability of federated clients: who can be sampled when, and what time passes until somebody can."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from composed import execution, setup
from simulated_ranks import execute, results

from algorithms.federation.availability import Periodic, Timetable, Trace
from algorithms.federation.clients import Player
from harness.errors import UserError

CLIENTS = ["problem=least_squares", "problem.dtype=float64", "problem.samples=60", "problem.features=4"]
CLIENTS += ["tracking=none", "algorithm.num_clients=6", "algorithm.local_epochs=1", "budget.observations=1"]
CLIENTS += ["algorithm.batch_size=10", "budget.epochs=2"]
ROUNDS = ["algorithm=federated", *CLIENTS, "algorithm.participation=1"]
BUFFERED = ["algorithm=fedbuff", *CLIENTS, "algorithm.buffer_size=2"]
SIMULATED = ["hardware=sim_ethernet", "hardware.num_workers=2", "hardware/compute=fixed"]
ALL = np.arange(6)


def trace(tmp_path, text):
    """The overrides that choose a file of these lines."""
    path = tmp_path / "trace.csv"
    path.write_text(text)
    return ["algorithm/availability=trace", f"algorithm.availability.path={path}"]


def microseconds(*seconds):
    return np.array([round(each * 1e6) for each in seconds])


def test_a_client_is_available_from_its_begin_until_before_its_end():
    timetable = Timetable(np.array([2, 4, 2]), microseconds(1, 2, 5), microseconds(3, 4, 6), None)
    found = {time_s: timetable.among(ALL, time_s).tolist() for time_s in (0, 1, 2, 2.999999, 3, 4, 5.5, 7)}
    assert found == {0: [], 1: [2], 2: [2, 4], 2.999999: [2, 4], 3: [4], 4: [], 5.5: [2], 7: []}
    assert timetable.among(np.array([0, 2]), 2.5).tolist() == [2]
    assert [timetable.opening_s(ALL, time_s) for time_s in (0, 4, 7)] == [1, 5, float("inf")]
    assert timetable.opening_s(np.array([4]), 0) == 2


def test_a_trace_that_is_repeated_begins_anew():
    timetable = Timetable(np.array([1]), microseconds(2), microseconds(4), 10_000_000)
    assert [len(timetable.among(ALL, time_s)) for time_s in (1, 2, 3, 4, 11, 12, 13, 14)] == [0, 1, 1, 0] * 2
    assert [timetable.opening_s(ALL, time_s) for time_s in (0, 5, 17.5)] == [2, 12, 22]


def test_periodic_clients_are_there_for_their_share_of_every_period():
    timetable = Periodic(period_s=0.3, share=0.25).timetable(400, seed=0)
    there = np.array([len(timetable.among(np.arange(400), time_s)) for time_s in np.linspace(0, 3, 301)])
    assert abs(there / 400 - 0.25).max() < 5 * (0.25 * 0.75 / 400) ** 0.5  # five standard deviations
    first = np.array([len(timetable.among(np.array([7]), time_s)) for time_s in np.arange(0, 6, 1e-3)])
    assert first.mean() == pytest.approx(0.25, abs=2e-3)
    assert (Periodic(0.3, 1.0).timetable(9, seed=0).among(np.arange(9), 0.1234) == np.arange(9)).all()


@pytest.mark.parametrize("begin_s", [1 / 3, 0.1 + 0.2, 12345.678901, 3e5 + 1 / 7])
def test_who_waits_for_an_opening_finds_it_open(begin_s):
    """Whatever the rounding of sums of seconds: otherwise it would wait for ever, for nothing."""
    timetable = Timetable(np.array([0]), microseconds(begin_s), microseconds(begin_s + 1e-6), None)

    def body(worker):
        return timetable.wait(worker, ALL), len(worker._place.interleaving.times)

    ((now_s, looks),) = results(body, 1)
    assert now_s == pytest.approx(begin_s, abs=1e-6) and looks == 2


def played(monkeypatch, *overrides):
    """Who began to train when, where a sample costs 0.1 s."""
    log, play = [], Player.play

    def logged(self, common, task, drift=None):
        log.append((self._worker.clock.now(), task.client))
        return play(self, common, task, drift)

    monkeypatch.setattr(Player, "play", logged)
    done = execution(*overrides, "hardware.compute.seconds_per_sample=0.1")
    assert done.failure is None, done.failure
    return sorted(log), done


def test_rounds_sample_who_is_available_and_wait_for_who_is_not(tmp_path, monkeypatch):
    """Client 3 until 1.5 s, then nobody, then clients 1 and 2; each has 10 samples, which take a second."""
    chosen = trace(tmp_path, "client,begin_s,end_s\n3,0,1.5\n1,50,50.5\n2,50,90\n")
    log, done = played(monkeypatch, *ROUNDS, *SIMULATED, *chosen, "hardware.num_workers=6")
    assert [(round(time_s, 1), client) for time_s, client in log[:5]] == [(0, 3), (1, 3), (50, 1), (50, 2), (51, 2)]
    assert done.workers[-1].idle_s > 47  # of the server


@pytest.mark.parametrize(("algorithm", "num_workers"), [(ROUNDS, 6), (BUFFERED, 3)])
def test_only_who_is_available_is_sampled(algorithm, num_workers, tmp_path, monkeypatch):
    """Client k from k s on for 1.5 s, every 8 s."""
    chosen = [*SIMULATED, *trace(tmp_path, "".join(f"{client},{client},{client + 1.5}\n" for client in range(6)))]
    chosen += ["algorithm.availability.repeat_s=8", f"hardware.num_workers={num_workers}", "budget.epochs=5"]
    log, _ = played(monkeypatch, *algorithm, *chosen)
    assert {client for _, client in log} == set(range(6)) and len(log) == 30
    for time_s, client in log:
        assert (time_s - client) % 8 < 1.5 + 1e-2  # it has been told since


@pytest.mark.parametrize("algorithm", [ROUNDS, BUFFERED])
def test_a_real_run_with_availability_is_repeated_in_virtual_time(algorithm):
    """What the server read from its clock is part of the record."""
    chosen = [*algorithm, "algorithm/availability=periodic", "algorithm.availability.period_s=0.01"]
    chosen += ["algorithm.availability.share=0.3", "hardware.num_workers=2"]
    real, simulated = (setup(*chosen, f"hardware={hardware}") for hardware in ("cpu", "sim_ethernet"))
    first = real.machine.execute(real.program(), lambda samples: None)
    assert first.failure is None and sum(len(each.times) for each in first.interleavings) > 2
    again = simulated.machine.execute(replace(simulated.program(), replay=first.interleavings), lambda samples: None)
    assert again.failure is None
    torch.testing.assert_close(
        again.observations[-1].parameters, first.observations[-1].parameters, rtol=1e-12, atol=1e-13
    )


@pytest.mark.parametrize("algorithm", [ROUNDS, BUFFERED])
def test_a_trace_that_ends_too_early_ends_the_run(algorithm, tmp_path):
    done = execution(*algorithm, *SIMULATED, *trace(tmp_path, "0,0,0.001\n"), "budget.epochs=100")
    assert isinstance(done.failure, UserError)
    assert "no client with samples after" in str(done.failure) and "availability.repeat_s" in str(done.failure)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no interval"),
        ("client,begin_s,end_s\n", "has no interval"),
        ("0,1\n", r"line 1: must be client,begin_s,end_s .* got '0,1'"),
        ("client,begin_s,end_s\n0,1,2\n1,5,5\n", r"line 3: must be .* got '1,5,5'"),
        ("-1,1,2\n", r"line 1: must be .* got '-1,1,2'"),
        ("0,-1,2\n", "line 1: must be"),
        ("0,1,nan\n", "line 1: must be"),
        ("0,1,inf\n", "line 1: must be"),
        ("zero,1,2\n", "line 1: must be"),
        ("6,1,2\n", r"algorithm\.num_clients must be above client 6 of .*trace\.csv, got 6"),
    ],
)
def test_a_bad_trace_is_refused_by_its_line(text, message, tmp_path):
    with pytest.raises(UserError, match=message):
        setup(*ROUNDS, *trace(tmp_path, text))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["trace"], r"algorithm\.availability\.path must name a file of intervals, got null"),
        (["trace", "path=/no/such/file"], r"algorithm\.availability\.path=/no/such/file cannot be read as text"),
        (["periodic", "share=0"], r"algorithm\.availability\.share must be in \(0, 1\]"),
        (["periodic", "period_s=0"], r"algorithm\.availability\.period_s must be >= 1e-6"),
    ],
)
def test_nonsense_is_refused_by_name(overrides, message):
    option, *settings = overrides
    with pytest.raises(UserError, match=message):
        setup(*ROUNDS, f"algorithm/availability={option}", *(f"algorithm.availability.{each}" for each in settings))


def test_a_trace_is_not_repeated_before_it_ends(tmp_path):
    with pytest.raises(UserError, match=r"algorithm\.availability\.repeat_s must be >= 8, where .* ends, got 5"):
        setup(*ROUNDS, *trace(tmp_path, "0,1,2\n3,4,8\n"), "algorithm.availability.repeat_s=5")


def test_a_trace_is_read_once_before_workers_start(tmp_path):
    path = tmp_path / "trace.csv"
    path.write_text("0,1,2\n")
    availability = Trace(str(path), None)
    availability.timetable(1, seed=0)
    path.unlink()
    assert availability.timetable(1, seed=0).among(np.array([0]), 1.5).tolist() == [0]


def test_waiting_is_idleness():
    timetable = Timetable(np.array([0]), microseconds(30), microseconds(40), None)
    done = execute(lambda worker: timetable.wait(worker, ALL), 1)
    assert done.workers[0].idle_s == 30
