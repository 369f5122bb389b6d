import io
import threading

import pytest
from rich.console import Console

from harness.progress import Progress


class Hands:
    """A clock moved by hand."""

    def __init__(self):
        self.now_s = 0.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def clock():
    return Hands()


def console(terminal):
    return Console(file=io.StringIO(), force_terminal=terminal, width=120, color_system=None, legacy_windows=False)


def run(progress, clock, moments, total=1000, **options):
    with progress.phase("run", total, **options) as update:
        for now_s, done in moments:
            clock.now_s = now_s
            update(done)


def test_without_a_terminal_there_is_a_line_now_and_then(clock):
    out = console(False)
    run(Progress(out, clock), clock, [(0.5 * i, 10 * i) for i in range(1, 51)])
    assert out.file.getvalue().splitlines() == [
        "run: 20 of 1,000 samples, 20 samples/s, 49 s left",
        "run: 220 of 1,000 samples, 20 samples/s, 39 s left",
        "run: 420 of 1,000 samples, 20 samples/s, 29 s left",
        "run: 500 of 1,000 samples, 20 samples/s, ended in 25 s",
    ]


def test_a_phase_that_does_not_last_says_nothing(clock):
    out = console(False)
    run(Progress(out, clock), clock, [(0.5, 1000)])
    assert out.file.getvalue() == ""


def test_a_phase_that_ends_is_done(clock):
    out = console(False)
    run(Progress(out, clock), clock, [(0, 0), (100, 1000)], rate="samples/s (host)")
    assert out.file.getvalue().splitlines()[-1] == ("run: 1,000 of 1,000 samples, 10 samples/s (host), done in 1:40")


@pytest.mark.parametrize("terminal", [False, True])
def test_a_phase_that_fails_says_how_far_it_came(clock, terminal):
    out = console(terminal)
    with pytest.raises(RuntimeError), Progress(out, clock).phase("run", 1000) as update:
        update(0)
        clock.now_s = 2.0
        update(10)
        raise RuntimeError
    assert "10 of 1,000 samples, 5 samples/s, ended in 2 s" in out.file.getvalue()


def test_a_terminal_is_drawn_on_at_most_four_times_a_second(clock):
    out = console(True)
    run(Progress(out, clock), clock, [(0.001 * i, i) for i in range(1, 1001)])
    drawn = [text for text in out.file.getvalue().split("\r") if "samples/s" in text]
    assert 4 <= len(drawn) <= 7  # four, and what rich repeats when it ends
    assert "1,000 of 1,000 samples, 1,000 samples/s, done in 1 s" in drawn[-1]


def test_rates_count_from_when_the_work_began(clock):
    out = console(False)
    run(Progress(out, clock), clock, [(0, 0), (50.0, 0), (60.0, 100), (70.0, 200)])
    assert out.file.getvalue().splitlines()[1:] == [
        "run: 100 of 1,000 samples, 10 samples/s, 1:30 left",
        "run: 200 of 1,000 samples, 10 samples/s, 1:20 left",
        "run: 200 of 1,000 samples, 10 samples/s, ended in 1:10",
    ]


def test_who_was_never_heard_to_begin_has_no_rate(clock):
    out = console(False)
    run(Progress(out, clock), clock, [(100.0, 1000)])
    assert out.file.getvalue().splitlines()[-1] == "run: 1,000 of 1,000 samples, done in 1:40"


def test_a_phase_says_what_it_counts(clock):
    out = console(False)
    run(Progress(out, clock), clock, [(0, 0), (10.0, 10), (20.0, 40)], total=40, of="models evaluated", rate="")
    assert out.file.getvalue().splitlines() == [
        "run: 10 of 40 models evaluated, 30 s left",
        "run: 40 of 40 models evaluated, 20 s so far, finishing",
        "run: 40 of 40 models evaluated, done in 20 s",
    ]


@pytest.mark.parametrize("terminal", [False, True])
def test_there_is_no_thread(clock, terminal):
    before = threading.active_count()
    with Progress(console(terminal), clock).phase("run", 10) as update:
        update(1)
        assert threading.active_count() == before


def test_nothing_done_and_nothing_known_is_no_division_by_zero(clock):
    out = console(False)
    run(Progress(out, clock), clock, [(0.0, 0), (5.0, 0)], total=0)
    assert out.file.getvalue().splitlines()[-1] == "run: 0 of 0 samples, done in 5 s"


def test_lines_that_have_nothing_new_say_for_how_long_and_at_what(clock):
    out = console(False)
    run(Progress(out, clock), clock, [(0, 0), (2.0, 0), (13.0, 0), (24.0, 500), (35.0, 1000)])
    assert out.file.getvalue().splitlines() == [
        "run: 0 of 1,000 samples, 2 s so far, at work on what is next",
        "run: 0 of 1,000 samples, 13 s so far, at work on what is next",
        "run: 500 of 1,000 samples, 45 samples/s, 11 s left",
        "run: 1,000 of 1,000 samples, 45 samples/s, 35 s so far, finishing",
        "run: 1,000 of 1,000 samples, 45 samples/s, done in 35 s",
    ]
