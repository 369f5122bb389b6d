"""Messy clusters: all of it repeats to the bit, and what breaks is told as torch would, in virtual time."""

import gzip
import subprocess
import sys
from contextlib import suppress
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from simulated_ranks import GLOO, compute_for, execute, results

from hardware.simulated.compute import Fixed
from hardware.simulated.network.topologies import FatTree, Switch
from harness.errors import UserError


def messy(worker):
    """Collectives of all ranks and of groups, messages and uneven computation."""
    times = []
    pair = dist.new_group([worker.rank ^ 1, worker.rank], use_local_synchronization=True)
    for step in range(3):
        compute_for(worker, 0.01)
        x = torch.full((1000,), float(worker.rank), dtype=torch.float64)
        work = dist.all_reduce(x, async_op=True)
        dist.all_reduce(y := torch.ones(500, dtype=torch.float64), group=pair)
        after, before = (worker.rank + 7) % worker.num_workers, (worker.rank - 7) % worker.num_workers
        sent = dist.isend(y, after, tag=step)
        dist.recv(y, before, tag=step)
        sent.wait()
        work.wait()
        times.append((worker.clock.now(), x.sum().item(), y.sum().item()))
    return times


def test_a_messy_run_of_64_ranks_repeats_to_the_bit_under_a_loaded_host():
    network = FatTree({"leaf0.up": 1e5}, {"leaf3.down": {0.02: 0.5, 0.2: 1.0}}, 8, 1e-4, 1e6, 4.0)
    options = {
        "compute": Fixed("lognormal(0.3)", streams=False, seconds_per_sample=1.0),
        "network": network,
        "stragglers": {3: 4.0, 40: 0.5},
        "slowdowns": {9: {0.05: 3.0, 0.1: 1.0}},
    }
    first = results(messy, 64, **options)
    loads = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
    try:
        assert results(messy, 64, **options) == first
    finally:
        for load in loads:
            load.kill()
            load.wait()
    assert results(messy, 64, **options, seed=1) != first


def caught(call):
    """What torch would raise, and when."""

    def body(worker):
        group = dist.new_group(timeout=timedelta(seconds=30))
        try:
            call(worker, group)
        except dist.DistBackendError as error:
            return worker.clock.now(), str(error)
        return worker.clock.now(), ""

    return body


def test_peers_of_a_rank_that_dies_lose_the_connection():
    def call(worker, group):
        compute_for(worker, 1.0)
        dist.all_reduce(torch.ones(1, dtype=torch.float64), group=group)
        compute_for(worker, 5.0)
        dist.all_reduce(torch.ones(1, dtype=torch.float64), group=group)

    found = {}

    def body(worker):
        found[worker.rank] = caught(call)(worker)

    execute(body, 3, deaths={1: 3.0}, network=Switch({}, {}, 0.0, 8e9), protocol=GLOO)
    assert set(found) == {0, 2}
    for time_s, words in found.values():
        assert time_s == pytest.approx(1.0 + 5.0, abs=1e-6)  # as they come to it
        assert words == (
            "Connection closed by peer at 6 s of virtual time, in all_reduce(SUM) of float64[1], collective 1 of ranks "
            "[0, 1, 2]: rank 1 died at 3 s"
        )


def test_who_waits_for_anyone_hears_the_living_and_who_waits_for_the_dead_loses_the_connection():
    def call(worker, group):
        if worker.rank == 0:
            x, sources = torch.zeros(1, dtype=torch.float64), []
            for _ in range(2):
                sources.append(dist.recv(x, group=group))
            heard.append((sources, x.item(), worker.clock.now()))
            dist.recv(x, 1, group=group)
        elif worker.rank == 1:
            dist.recv(torch.zeros(1, dtype=torch.float64), 0, tag=1, group=group)
        else:
            for value in (1.0, 2.0):
                compute_for(worker, 2.0)
                dist.send(torch.full((1,), value, dtype=torch.float64), 0, group=group)

    found, heard = {}, []
    body = lambda worker: found.update({worker.rank: caught(call)(worker)})  # noqa: E731
    # a message is on its way for 0.5 s
    execute(body, 3, deaths={1: 3.0}, network=Switch({}, {}, 0.5, 8e9), protocol=GLOO)
    assert heard == [([2, 2], 2.0, pytest.approx(found[2][0]))] and found[2] == (pytest.approx(2 * (2.0 + 0.5)), "")
    assert found[0][0] == pytest.approx(found[2][0]) and found[0][1].endswith(": rank 1 died at 3 s")


def test_news_of_a_death_takes_the_latency_of_the_way():
    def call(worker, group):
        dist.recv(torch.zeros(1, dtype=torch.float64), 1 - worker.rank, group=group)

    found = {}
    body = lambda worker: found.update({worker.rank: caught(call)(worker)})  # noqa: E731
    execute(body, 2, deaths={1: 3.0}, network=Switch({}, {}, 0.25, 8e9), protocol=GLOO)
    assert set(found) == {0} and found[0][0] == pytest.approx(3.0 + 0.25)


HOST = Fixed("none", streams=False, seconds_per_sample=1.0)
STREAMS = Fixed("none", streams=True, seconds_per_sample=1.0)
both_devices = pytest.mark.parametrize("compute", [HOST, STREAMS], ids=["host", "streams"])


def late(worker, seconds=100.0):
    """What a rank does that does not come in time."""
    compute_for(worker, seconds)
    torch.cpu.synchronize()


@both_devices
def test_a_script_that_catches_a_time_out_ends_well(compute):
    def body(worker):
        if worker.rank == 1:
            late(worker)
        with suppress(dist.DistBackendError):
            work = dist.all_reduce(torch.ones(1), async_op=True)
            work.wait(timedelta(seconds=10))
        with suppress(dist.DistBackendError):
            work.wait(timedelta(seconds=10))  # on streams it has been given up, and stays so

    done = execute(body, 3, compute=compute, deaths={1: 2.0})
    assert done.failure is None
    end_s = 10.0 if compute.streams else 2.5  # the library of hosts learns of a death; the way there takes 0.5 s
    assert [report.finish_s for report in done.workers] == [end_s, 2.0, end_s]


@both_devices
def test_the_timeline_of_what_was_given_up_has_finite_times(compute, tmp_path):
    def body(worker):
        if worker.rank == 1:
            late(worker)
        with suppress(dist.DistBackendError):
            dist.all_reduce(torch.ones(1), async_op=True).wait(timedelta(seconds=10))

    done = execute(body, 2, compute=compute, deaths={1: 2.0})
    assert [report.comm_s for report in done.workers] == [0.0, 0.0]
    done.timeline(tmp_path / "timeline.json.gz")
    assert b"Infinity" not in gzip.decompress((tmp_path / "timeline.json.gz").read_bytes())


@both_devices
@pytest.mark.parametrize(("wait_all_ranks", "named"), [(False, "Rank 1"), (True, "Ranks 1, 2")])
def test_a_monitored_barrier_names_the_ranks_of_the_group_that_do_not_come(compute, wait_all_ranks, named):
    """Though the device waits for another collective."""
    found = {}

    def body(worker):
        group = dist.new_group([1, 2, 3])
        if worker.rank == 1:
            dist.all_reduce(torch.ones(1), group=group, async_op=True)
            try:
                group.monitored_barrier(timedelta(seconds=4), wait_all_ranks)
            except RuntimeError as error:
                found[worker.rank] = worker.clock.now(), str(error)
        elif worker.rank > 1:
            dist.all_reduce(torch.ones(1), group=group, async_op=True)
            late(worker)

    execute(body, 4, compute=compute)
    assert found == {1: (4.0, f"{named} failed to pass monitored_barrier in 4000 ms of virtual time")}


@both_devices
def test_a_monitored_barrier_that_all_come_to_passes(compute):
    def body(worker):
        dist.group.WORLD.monitored_barrier()
        return worker.clock.now()

    assert results(body, 2, compute=compute) == [0.5, 0.5]


def test_a_rank_that_dies_in_the_middle_of_a_transfer_does_not_complete_it():
    def call(worker, group):
        x = torch.zeros(1000, dtype=torch.float64)
        if worker.rank == 0:
            dist.send(x, 1, group=group)
        else:
            dist.recv(x, 0, group=group)

    found = {}

    def body(worker):
        found[worker.rank] = caught(call)(worker)

    execute(body, 2, deaths={0: 3.0}, network=Switch({}, {}, 0.0, 1000.0), protocol=GLOO)  # it would take 8 s
    assert set(found) == {1}
    assert found[1][0] == pytest.approx(3.0) and found[1][1].endswith("rank 0 died at 3 s")


def test_who_came_after_the_time_out_is_named():
    def call(worker, group):
        compute_for(worker, 100.0 * worker.rank)
        dist.barrier(group=group)

    done = results(caught(call), 2)
    assert done[0][0] == pytest.approx(30.0) and done[0][1].endswith("rank 1 has not come")


def test_disagreement_ends_the_run_though_a_rank_catches_everything():
    def body(worker):
        with suppress(Exception):
            dist.all_reduce(torch.zeros(3 + worker.rank))

    failure = execute(body, 2).failure
    assert str(failure).startswith("ranks disagree on collective 0")


def test_a_link_that_breaks_lets_its_users_time_out():
    def call(worker, group):
        x = torch.zeros(1000, dtype=torch.float64)
        if worker.rank == 0:
            dist.send(x, 1, group=group)
        elif worker.rank == 1:
            dist.recv(x, 0, group=group)

    network = Switch({}, {"host0.up": {2.0: 0.0}}, 0.0, 1000.0)  # 8 s, and it breaks after 2
    done = results(caught(call), 3, network=network)
    assert done[2] == (0.0, "")
    for time_s, words in done[:2]:
        assert time_s == 30.0
        assert words.startswith("Timed out waiting 30000ms of virtual time")
        assert words.endswith(": nothing passes link host0.up")


def test_a_wait_with_a_time_out_of_its_own():
    def call(worker, group):
        if worker.rank:
            compute_for(worker, 5.0)
        work = dist.all_reduce(torch.ones(1, dtype=torch.float64), group=group, async_op=True)
        work.wait(timedelta(seconds=2 if worker.rank == 0 else 20))

    first, second = results(caught(call), 2, network=Switch({}, {}, 0.0, 8e9), protocol=GLOO)
    assert first[0] == 2.0 and first[1].startswith("Timed out waiting 2000ms of virtual time for all_reduce(SUM)")
    assert second[1] == ""


def test_a_link_that_slows_and_recovers_delays():
    def body(worker):
        x = torch.zeros(1000, dtype=torch.float64)
        if worker.rank == 0:
            dist.send(x, 1)
        else:
            dist.recv(x, 0)
        return worker.clock.now()

    network = Switch({}, {"host0.up": {2.0: 0.5, 6.0: 1.0}}, 0.0, 1000.0)  # 2 s, 4 s at half speed, 4 s
    assert results(body, 2, network=network) == [10.0, 10.0]


def test_a_host_that_waits_for_streams_learns_which_link_broke():
    def call(worker, group):
        x = torch.zeros(1000, dtype=torch.float64)
        dist.all_reduce(x, group=group)  # issued; the host goes on
        torch.cpu.current_stream().synchronize()

    streams = Fixed("none", streams=True, seconds_per_sample=1.0)
    network = Switch({}, {"host0.up": {2.0: 0.0}}, 0.0, 1000.0)
    for time_s, words in results(caught(call), 2, compute=streams, network=network, protocol=GLOO):
        assert time_s == 30.0
        assert words.endswith(
            "all_reduce(SUM) of float64[1000], collective 0 of ranks [0, 1]: nothing passes link host0.up"
        )


def test_not_even_a_barrier_passes_a_broken_link():
    def call(worker, group):
        compute_for(worker, 1.0)
        dist.barrier(group=group)

    network = Switch({}, {"host0.up": {0.5: 0.0}}, 0.5, 8.0)
    for time_s, words in results(caught(call), 2, network=network):
        assert time_s == 31.0 and words.endswith("nothing passes link host0.up")


def test_a_barrier_waits_for_a_link_that_recovers():
    def body(worker):
        compute_for(worker, 1.0)
        dist.barrier()
        return worker.clock.now()

    network = Switch({}, {"host0.up": {0.5: 0.0, 4.0: 1.0}}, 0.5, 8.0)
    assert results(body, 2, network=network) == [4.5, 4.5]


def test_a_dead_rank_stops_what_its_streams_were_to_do():
    def call(worker, group):
        compute_for(worker, 5.0)
        dist.all_reduce(torch.ones(2), group=group)
        torch.cpu.synchronize()

    found = {}

    def body(worker):
        found[worker.rank] = caught(call)(worker)

    streams = Fixed("none", streams=True, seconds_per_sample=1.0)
    done = execute(body, 2, compute=streams, deaths={1: 3.0})
    assert set(found) == {0} and found[0][1].endswith("rank 1 died at 3 s")
    assert done.workers[1].finish_s == done.workers[1].compute_s == 3.0


def test_a_rank_whose_device_outlives_it_hands_in_nothing():
    found = {}

    def body(worker):
        if worker.rank == 1:
            late(worker)  # its host waits for that, and dies meanwhile
        x = torch.ones(1)
        with suppress(dist.DistBackendError):
            dist.all_reduce(x, async_op=True).wait(timedelta(seconds=10))
        found[worker.rank] = x.item()

    assert execute(body, 2, compute=STREAMS, deaths={1: 3.0}).failure is None
    assert found == {0: 1.0}


def test_long_computing_is_no_time_out_of_what_was_issued_before():
    def call(worker, group):
        work = dist.all_reduce(torch.ones(2), group=group, async_op=True)
        compute_for(worker, 100.0)
        torch.cpu.synchronize()
        work.wait()

    streams = Fixed("none", streams=True, seconds_per_sample=1.0)
    assert results(caught(call), 2, compute=streams) == [(100.0, "")] * 2


def test_who_times_out_goes_on_from_there():
    def body(worker):
        group = dist.new_group([0, 1], timeout=timedelta(seconds=10))
        x = torch.ones(1, dtype=torch.float64)  # a second on a link, and half of one to arrive
        if worker.rank == 0:
            with pytest.raises(dist.DistBackendError):
                dist.all_reduce(x, group=group)
            dist.send(x, 2)
        elif worker.rank == 1:
            compute_for(worker, 100.0)
        else:
            dist.recv(x, 0)
        return worker.clock.now()

    assert results(body, 3) == [11.5, 100.0, 11.5]


def test_what_the_background_leaves_of_a_slowed_link():
    network = Switch({"host0.up": 6.0}, {"host0.up": {1.0: 0.5}}, 0.5, 8.0)
    with pytest.raises(UserError, match=r"changes.host0.up must leave more than the background takes, 6 bytes/s"):
        network.check(2)
