"""The breakdown of time, and the small parts it stands on."""

import os
import time
from array import array
from concurrent.futures import ThreadPoolExecutor

import composed
import numpy as np
import pytest
import torch

from hardware.real.breakdown import Ledger, break_down, shares_of
from hardware.real.counters import LocalCounters, SharedCounters
from hardware.real.fork_server import start_fork_server
from hardware.real.host_clock import HostClock, RunClock
from hardware.real.meter import ASIDE, NEVER, Meter
from hardware.real.parcel import Parcel
from hardware.real.segment import Segment
from harness.place import COUNTERS, Observation

START_S = 1000.0


def broken_down(ledgers, alone=True):
    """Where rank 0 alone observes, or every rank, none of which waits for another."""
    shares = [1.0] + [0.0] * (len(ledgers) - 1) if alone else [1 / len(ledgers)] * len(ledgers)
    return break_down(ledgers, START_S, shares)


def ledger(collectives, finish=10.0, busy=100.0, pauses=(), messages=(), waits=(), group="0"):
    """Times on the run's clock, for a run that starts at START_S; NEVER and ASIDE stay what they are."""

    def table(rows):
        return np.array(rows, dtype=float).reshape(-1, 4) + START_S

    shifted = [(begin + START_S, end + START_S) for begin, end in pauses]
    waited = np.array(waits, dtype=float).reshape(-1, 2) + START_S
    return Ledger(START_S + finish, busy, shifted, {group: table(collectives)}, table(messages), waited, 8, None)


def test_waiting_for_the_last_is_idleness_and_the_rest_communication():
    first = ledger([(1, 1, 4, 4)])
    last = ledger([(3, 3, 4, 4)])
    early, late = broken_down([first, last]).workers
    assert (early.idle_s, early.comm_s, early.compute_s) == pytest.approx((2, 1, 7))
    assert (late.idle_s, late.comm_s, late.compute_s) == pytest.approx((0, 1, 9))


def test_waiting_for_a_meeting_or_a_lock_is_idleness_pauses_apart():
    (report,) = broken_down([ledger([], waits=[(1, 3), (4, 8)], pauses=[(5, 6)])]).workers
    assert (report.idle_s, report.comm_s, report.compute_s, report.finish_s) == pytest.approx((5, 0, 4, 9))


def test_who_need_not_wait_is_not_idle_afterwards():
    root = ledger([(1, 1, 2, 2)])  # a broadcast's root leaves before the others come
    late = ledger([(5, 5, 6, 6)])
    report = broken_down([root, late]).workers[0]
    assert (report.idle_s, report.comm_s) == pytest.approx((1, 0))


def test_communication_under_computation_is_hidden():
    both = [(1, 4, 5, 4.5)]  # called at 1, over at 4.5, waited for from 4 to 5
    breakdown = broken_down([ledger(both), ledger(both)])
    assert [(r.idle_s, r.comm_s) for r in breakdown.workers] == [pytest.approx((0, 1))] * 2
    assert breakdown.overlap_frac == pytest.approx(1 - 1 / 3.5)


def test_what_nobody_waited_for_in_python_held_up_the_worker_since_its_last_call():
    buckets = [(1, NEVER, NEVER, 3), (4, NEVER, NEVER, 7), (5, NEVER, NEVER, 8)]
    report = broken_down([ledger(buckets)]).workers[0]
    assert report.comm_s == pytest.approx((3 - 1) + (7 - 5) + (8 - 7))


def test_background_communication_holds_nobody_up():
    breakdown = broken_down([ledger([(1, ASIDE, 4, 4)])], alone=False)
    assert (breakdown.workers[0].comm_s, breakdown.overlap_frac) == (0, 1)


def test_messages_are_communication():
    report = broken_down([ledger([], messages=[(1, 1, 3, 3), (4, 6, 7, 7)])], alone=False).workers[0]
    assert (report.comm_s, report.idle_s) == pytest.approx((3, 0))


def test_groups_are_matched_apart():
    one, other = ledger([(1, 1, 2, 2)], group="left"), ledger([(5, 5, 6, 6)], group="right")
    assert [r.idle_s for r in broken_down([one, other]).workers] == [0, 0]


def test_a_pause_of_rank_0_costs_nobody_anything():
    observer = ledger([(1, 1, 2, 2), (7, 7, 8, 8)], pauses=[(3, 6)])
    waiter = ledger([(1, 1, 2, 2), (3, 3, 8, 8)])
    zero, one = broken_down([observer, waiter]).workers
    assert (zero.finish_s, one.finish_s) == (7, 7)
    assert (one.idle_s, one.comm_s) == pytest.approx((1, 2))


def test_a_pause_of_one_of_two_who_go_on_by_themselves_holds_up_half_a_run():
    paused, other = ledger([], pauses=[(3, 6)]), ledger([])
    breakdown = broken_down([paused, other], alone=False)
    assert [report.finish_s for report in breakdown.workers] == [8.5, 8.5]
    assert [report.compute_s for report in breakdown.workers] == [7, 8.5]  # busy whenever it was not at rest
    rows = [Observation(time_s, START_S + host_s, 0, 0, torch.empty(0)) for time_s, host_s in ((3, 3), (4, 4), (4, 7))]
    assert [row.time_s for row in breakdown.on_its_clock(rows)] == [3, 3.5, 5.5]


def test_pauses_of_many_never_hold_up_more_than_the_run():
    ledgers = [ledger([], pauses=[(3, 6)]), ledger([], pauses=[(4, 8)]), ledger([], pauses=[(5, 7)])]
    reports = break_down(ledgers, START_S, [0.5, 0.5, 1.0]).workers  # two workers and a server
    assert [report.finish_s for report in reports] == pytest.approx([3 + 0.5 + 0 + 0 + 0 + 0.5 + 2] * 3)


@pytest.mark.parametrize(
    ("chosen", "workers", "shares"),
    [
        (["algorithm=all_reduce"], 3, [1, 0, 0]),
        (["algorithm=gossip"], 3, [1, 1, 1]),
        (["algorithm=parameter_server", "algorithm.consistency=asynchronous"], 2, [0.5, 0.5, 1]),
    ],
)
def test_whose_pauses_hold_up_how_much(chosen, workers, shares):
    ranks = ["hardware=sim_ethernet", f"hardware.num_workers={workers}", "problem=digits_mlp"]
    assert shares_of(composed.setup(*chosen, *ranks, "tracking=none").program(), 3) == shares


def test_parts_never_exceed_the_whole():
    report = broken_down([ledger([(0, 0, 10, 10)], busy=50.0)]).workers[0]
    assert report.compute_s + report.comm_s + report.idle_s == pytest.approx(report.finish_s)


def test_without_collectives_there_is_no_overlap():
    assert broken_down([ledger([])]).overlap_frac is None


class SlowArray(array):
    """Gives other threads every chance to come between a look at its length and what follows."""

    def __len__(self):
        length = super().__len__()
        time.sleep(1e-4)
        return length


def test_operations_of_several_threads_lose_nothing():
    meter = Meter()
    meter.messages.times = SlowArray("d")
    with ThreadPoolExecutor(4) as threads:
        places = list(threads.map(lambda _: meter.start(meter.messages, 3), range(100)))
    assert sorted(places) == list(range(0, 400, 4))
    assert (meter.messages.table().shape, meter.sent_bytes) == ((100, 4), 300)


def test_a_cleared_meter_has_nothing():
    meter = Meter()
    meter.finish(meter.messages, meter.start(meter.messages, 3), 0.0)
    meter.clear()
    assert (meter.messages.table().shape, meter.sent_bytes) == ((0, 4), 0)


def test_the_clock_stands_still_in_a_pause():
    clock = HostClock(time.perf_counter())
    before_s = clock.now()
    with clock.paused():
        time.sleep(0.05)
    (begin_s, end_s), after_s = clock.pauses[0], time.perf_counter()
    assert end_s - begin_s >= 0.05
    assert before_s <= clock.now() <= before_s + (time.perf_counter() - clock.start_s) - 0.05
    assert RunClock(clock.start_s, [clock.pauses], [1.0]).at(np.array(after_s)) <= after_s - clock.start_s - 0.05


@pytest.mark.parametrize("make", [LocalCounters, lambda: SharedCounters(Segment(8 * len(COUNTERS)))])
def test_counters_tell_the_value_before(make):
    counters = make()
    assert [counters.add("samples", 3), counters.add("samples", 4), counters.add("updates", 1)] == [0, 3, 0]
    assert (counters.value("samples"), counters.value("dealt")) == (7, 0)


def count(segment, times):
    counters = SharedCounters(segment)
    for _ in range(times):
        counters.add("dealt", 1)


def test_counters_of_several_processes_lose_nothing():
    segment = Segment(8 * len(COUNTERS))
    context = start_fork_server([])
    processes = [context.Process(target=count, args=(segment, 2000)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        process.close()
    assert SharedCounters(segment).value("dealt") == 6000


def test_a_parcel_opens_to_what_was_put_in():
    content = {
        "weights": torch.arange(6.0).view(2, 3).T,
        "flags": torch.tensor([True, False]),
        "half": torch.tensor(1.5, dtype=torch.bfloat16),
        "empty": torch.zeros(0, 3),
        "array": np.arange(4),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "text": "x",
    }
    parcel = Parcel(content)
    opened = parcel.open()
    parcel.close()
    assert list(opened) == list(content)
    for name in ("weights", "flags", "half", "empty", "parameter"):
        assert torch.equal(opened[name], content[name]) and opened[name].dtype == content[name].dtype
    assert np.array_equal(opened["array"], content["array"])
    assert opened["parameter"].requires_grad


def test_nobody_can_spoil_a_parcel():
    parcel = Parcel(torch.zeros(4))
    parcel.open().fill_(1.0)
    assert parcel.open().sum() == 0


def test_segments_leave_no_file_descriptor():
    before = len(os.listdir("/proc/self/fd"))
    segment = Segment(4096)
    assert segment.grow(10) == 4096 and segment.append(memoryview(b"abc")) == 4160
    assert bytes(segment.map(3, 0)) == bytes(3)
    del segment
    assert len(os.listdir("/proc/self/fd")) == before
