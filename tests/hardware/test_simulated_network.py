"""Flows on shared links: exact cases, random plans on random topologies, and the shortcut against the solver."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated_networks import ALPHA, BANDWIDTH, ETHERNET, QUIET, carried

from hardware.simulated.network import links as links_module
from hardware.simulated.network import plans
from hardware.simulated.network.plans import Plan, step
from hardware.simulated.network.topologies import Edges, FatTree, Rails, Star, Switch, Torus
from harness.errors import UserError


def messages(network, num_devices, rows):
    """End of messages (begin in s, source, destination, bytes)."""
    jobs = [(begin_s, plans.message(float(payload)), [a, b]) for begin_s, a, b, payload in rows]
    return [float(end[1]) for end in carried(network, num_devices, jobs)[0]]


def edges(*rows, **options):
    whole = {"devices_per_host": 1, "inside_latency_s": 0.0, "inside_bandwidth_bytes_per_s": 1e12} | QUIET | options
    return Edges(**whole, edges=[list(row) for row in rows])


def test_parking_lot():
    """host0 - host1 is link 1, host1 - host2 link 2: f0 takes both."""
    network = edges(("host0", "host1", 0.0, 1e6), ("host1", "host2", 0.0, 2e6))
    ends = messages(network, 3, [(0, 0, 2, 1e6), (0, 0, 1, 1e6), (0, 1, 2, 1e6)])
    assert ends == pytest.approx([2.0, 2.0, 2 / 3], rel=1e-9)


def test_incast():
    network = Switch(**QUIET, latency_s=0.0, bandwidth_bytes_per_s=1e6)
    assert messages(network, 8, [(0, i, 0, 1e6) for i in range(1, 8)]) == pytest.approx([7.0] * 7, rel=1e-9)


def test_shared_uplink_with_late_comers():
    network = edges(("host0", "switch", 0.0, 1e6), *((f"host{i}", "switch", 0.0, 1e9) for i in range(1, 5)))
    ends = messages(network, 5, [(float(i), 0, 1 + i, 2e6) for i in range(4)])
    assert ends == pytest.approx([11 / 3, 20 / 3, 23 / 3, 8.0], rel=1e-9)


def test_the_latency_comes_after_the_last_byte_has_left():
    assert messages(Switch(**QUIET, latency_s=0.5, bandwidth_bytes_per_s=8.0), 2, [(1.0, 0, 1, 8)]) == [2.5]


@pytest.mark.parametrize("shortcuts", [True, False])
@pytest.mark.parametrize(
    ("num_ranks", "payload_bytes", "seconds"),
    [(8, 1e8, 0.140700), (64, 1e8, 0.163800), (256, 1e8, 0.184875), (8, 1e3, 0.000701), (256, 1e3, 0.025502)],
)
def test_the_ring_agrees_with_simgrid(num_ranks, payload_bytes, seconds, shortcuts):
    """SimGrid 4.1, model CM02 without corrections, 10 Gb/s, 50 us; it printed six decimals, the last one off by one."""
    jobs = [(0.0, plans.ring_all_reduce(num_ranks, payload_bytes), range(num_ranks))]
    ((ends,), _) = carried(ETHERNET, num_ranks, jobs, shortcuts)
    assert ends == pytest.approx(seconds, abs=2e-6)


def test_one_slow_host_slows_the_ring_as_in_simgrid():
    slow = {"host3.up": {0.0: 0.1}, "host3.down": {0.0: 0.1}}
    network = Switch({}, slow, ALPHA, BANDWIDTH)
    ((ends,), _) = carried(network, 8, [(0.0, plans.ring_all_reduce(8, 1e8), range(8))])
    assert max(ends) == pytest.approx(1.400700, abs=2e-6)


@pytest.mark.parametrize(("depth", "expected"), [(1, 4 * 1.5), (2, 3.0 + 1.5 - 0.5 + 0.5), (8, 4.5)])
def test_a_deeper_plan_hides_latency(depth, expected):
    """Four steps of 1 s and 0.5 s latency around a ring."""
    ring = plans.ring_all_reduce(3, 24.0).rounds[0]
    plan = Plan(3, (ring,), depth)
    network = Switch(**QUIET, latency_s=0.5, bandwidth_bytes_per_s=8.0)
    for shortcuts in (True, False):
        ((ends,), _) = carried(network, 3, [(0.0, plan, range(3))], shortcuts)
        assert ends.tolist() == [expected] * 3


def test_setup_overhead_and_efficiency():
    message = plans.message(8.0)
    plan = Plan(2, message.rounds, setup_s=1.0, overhead_s=0.25, efficiency=0.5)
    network = Switch(**QUIET, latency_s=0.5, bandwidth_bytes_per_s=8.0)
    ((ends,), links) = carried(network, 2, [(0.0, plan, [0, 1])])
    assert ends.tolist() == [1.0 + 2.0 + 0.75] * 2
    assert vars(links.traffic()["host0.up"]) == {"payload_bytes": 8.0, "wire_bytes": 16.0, "busy_s": 2.0}


def test_ranks_without_transfers_end_at_once():
    ((ends,), _) = carried(ETHERNET, 3, [(2.0, Plan(3, (), setup_s=0.5), range(3))])
    assert ends.tolist() == [2.5] * 3
    network = Switch(**QUIET, latency_s=0.5, bandwidth_bytes_per_s=8.0)
    ((ends,), _) = carried(network, 3, [(0.0, Plan(3, ((step([(0, 1, 8.0)]), 1),)), range(3))])
    assert ends.tolist() == [1.5, 1.5, 0.0]


def test_background_traffic_leaves_the_rest():
    network = Switch({"host1.down": 6.0}, {}, 0.0, 8.0)
    assert messages(network, 3, [(0, 0, 1, 8), (0, 0, 2, 8)]) == pytest.approx([4.0, 8 / 6], rel=1e-9)


def test_a_link_slows_breaks_and_recovers():
    network = Switch({}, {"host0.up": {1.0: 0.5, 3.0: 0.0, 10.0: 1.0}}, 0.0, 8.0)
    assert messages(network, 2, [(0, 0, 1, 24), (20, 0, 1, 8)]) == [11.0, 21.0]


def test_a_broken_link_carries_nothing():
    (end,) = messages(Switch({}, {"host0.up": {0.0: 0.0}}, 0.0, 8.0), 2, [(0, 0, 1, 8)])
    assert np.isnan(end)


@pytest.mark.parametrize(
    ("network", "source", "destination", "names", "latency_s"),
    [
        (Torus(**QUIET, shape=[5], latency_s=1.0, bandwidth_bytes_per_s=1.0), 0, 2, ["host0.0+", "host1.0+"], 2.0),
        (Torus(**QUIET, shape=[5], latency_s=1.0, bandwidth_bytes_per_s=1.0), 0, 3, ["host0.0-", "host4.0-"], 2.0),
        (
            Torus(**QUIET, shape=[2, 3], latency_s=1.0, bandwidth_bytes_per_s=1.0),
            1,
            3,
            ["host1.0+", "host4.1-"],
            2.0,
        ),
        (FatTree(**QUIET, hosts_per_leaf=2, latency_s=1.0, bandwidth_bytes_per_s=1.0, oversubscription=2.0), 0, 1,
         ["host0.up", "host1.down"], 2.0),
        (FatTree(**QUIET, hosts_per_leaf=2, latency_s=1.0, bandwidth_bytes_per_s=1.0, oversubscription=2.0), 0, 3,
         ["host0.up", "leaf0.up", "leaf1.down", "host3.down"], 4.0),
        (Rails({}, {}, 2, 1.0, 1.0, 10.0, 1.0), 0, 1, ["device0.out", "device1.in"], 1.0),
        (Rails({}, {}, 2, 1.0, 1.0, 10.0, 1.0), 0, 2, ["card0.up", "card2.down"], 10.0),
        (Rails({}, {}, 2, 1.0, 1.0, 10.0, 1.0), 0, 3, ["device0.out", "device1.in", "card1.up", "card3.down"], 11.0),
        (Star({}, {}, [1.0, 1.0], [2.0, 2.0], [5.0, 7.0], 1.0, 9.0), 0, 2, ["host0.up", "host2.down"], 2.0),
        (Star({}, {}, [1.0, 1.0], [2.0, 2.0], [5.0, 7.0], 1.0, 9.0), 0, 3,
         ["host0.up", "site0.up", "site1.down", "host3.down"], 14.0),
        (edges(("host0", "a", 1.0, 1.0), ("a", "host1", 1.0, 1.0), ("host0", "host1", 3.0, 1.0)), 0, 1,
         ["host0-a", "a-host1"], 2.0),
        (edges(("host0", "host1", 3.0, 1.0), devices_per_host=2, inside_latency_s=0.5), 0, 1, ["host0"], 0.5),
        (edges(("host0", "host1", 3.0, 1.0), devices_per_host=2, inside_latency_s=0.5), 1, 2, ["host0-host1"], 3.0),
    ],
)  # fmt: skip
def test_routes_are_literal(network, source, destination, names, latency_s):
    wires = network.wires(4)
    (route,) = wires.route(np.array([source]), np.array([destination])).tolist()
    assert [wires.names[link] for link in route if link >= 0] == names
    assert sum(wires.latency_s[link] for link in route if link >= 0) == latency_s


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (Switch({"host9.up": 1.0}, {}, 0.0, 8.0), "background must name links, such as .*host.*, got host9.up"),
        (Switch({}, {"leaf0.up": {1.0: 0.5}}, 0.0, 8.0), "changes must name links"),
        (Switch({"host0.up": 8.0}, {}, 0.0, 8.0), r"background.host0.up must be in \[0, 8\)"),
        (Torus({}, {}, [3], 0.0, 8.0), r"shape must have room for 4 ranks, workers and servers .*, got \[3\]"),
    ],
)
def test_what_cannot_be_is_refused(network, words):
    with pytest.raises(UserError, match=words):
        network.check(4)


def test_hosts_without_a_way_are_refused_before_the_run():
    network = edges(("host0", "a", 0.0, 1.0), ("a", "host1", 0.0, 1.0), devices_per_host=2)
    network.check(4)
    words = "must connect all hosts, got no way from host0 to host2 for 5 ranks, workers and servers, 2 on each host"
    with pytest.raises(UserError, match=words):
        network.check(5)


NETWORKS = [
    ETHERNET,
    Torus({"host0.0+": 3e8}, {"host1.0+": {0.01: 0.25, 0.05: 1.0}}, [2, 4], 1e-5, 1e9),
    FatTree({}, {"leaf0.up": {0.02: 0.5}}, 3, 1e-5, 1e9, 4.0),
    Rails({}, {}, 4, 1e-6, 1e11, 1e-5, 1e10),
    Star({}, {}, [1e7, 2e7, 1e8], [1e8, 3e8, 5e7], [0.01, 0.02, 0.03], 1e-4, 1e9),
]


@st.composite
def random_plans(draw):
    """Steps among 8 ranks, in which no rank sends to itself, with random repetition, depth and begin."""
    transfer = st.tuples(st.integers(0, 7), st.integers(1, 7), st.sampled_from([0.0, 1e3, 1e6, 3.3e6]))
    rounds = draw(st.lists(st.tuples(st.lists(transfer, min_size=1, max_size=6), st.integers(1, 4)), max_size=4))
    steps = tuple((step((a, (a + ahead) % 8, n) for a, ahead, n in rows), times) for rows, times in rounds)
    return draw(st.floats(0.0, 0.05)), Plan(8, steps, draw(st.integers(1, 3))), draw(st.permutations(range(8)))


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(NETWORKS), st.lists(random_plans(), min_size=1, max_size=4))
def test_random_plans_conserve_bytes_and_beat_no_bound(network, jobs):
    ends, links = carried(network, 8, jobs)
    again, _ = carried(network, 8, jobs)
    assert [end.tolist() for end in ends] == [end.tolist() for end in again]
    wires = network.wires(8)
    expected = np.zeros(len(wires.names))
    for _, plan, devices in jobs:
        for one in plan.steps():
            places = np.array(devices)
            routes = wires.route(places[one.sources], places[one.destinations])
            for route, payload in zip(routes, one.payload_bytes, strict=True):
                expected[route[route >= 0]] += payload
    last_s = max(end.max() for end in ends)
    carried_bytes = np.array([traffic.payload_bytes for traffic in links.traffic().values()])
    busy_s = np.array([traffic.busy_s for traffic in links.traffic().values()])
    assert carried_bytes == pytest.approx(expected, rel=1e-12)
    assert (busy_s * wires.bandwidth_bytes_per_s >= expected * (1 - 1e-9)).all()
    assert (busy_s <= last_s * (1 + 1e-9)).all()
    for end, (begin_s, _, _) in zip(ends, jobs, strict=True):
        assert (end >= begin_s).all()


@settings(max_examples=60, deadline=None)
@given(
    st.integers(2, 8),
    st.integers(1, 3),
    st.sampled_from([0.0, 1e3, 1e7]),
    st.lists(st.tuples(st.floats(0.0, 0.05), st.integers(0, 7), st.integers(1, 7)), max_size=3),
)
def test_the_shortcut_is_what_the_solver_says(num_ranks, depth, payload_bytes, interruptions):
    ring = Plan(num_ranks, plans.ring_all_reduce(num_ranks, payload_bytes).rounds, depth)
    jobs = [(0.001, ring, range(num_ranks))]
    jobs += [(begin_s, plans.message(1e6), [a, (a + ahead) % 8]) for begin_s, a, ahead in interruptions]
    fast, fast_links = carried(ETHERNET, 8, jobs)
    slow, slow_links = carried(ETHERNET, 8, jobs, shortcuts=False)
    for one, other in zip(fast, slow, strict=True):
        assert one == pytest.approx(other, rel=1e-9)
    for name, traffic in fast_links.traffic().items():
        assert vars(traffic) == pytest.approx(vars(slow_links.traffic()[name]), rel=1e-9)


def test_a_plan_of_many_ranks_that_is_alone_is_not_solved():
    num_ranks = 16_384
    jobs = [(0.0, plans.ring_all_reduce(num_ranks, 1e8), range(num_ranks))]
    ((ends,), _) = carried(ETHERNET, num_ranks, jobs)  # the solver would take minutes
    assert ends == pytest.approx(2 * (num_ranks - 1) * (ALPHA + 1e8 / num_ranks / BANDWIDTH), rel=1e-9)


def test_programs_are_forgotten_while_others_are_under_way(monkeypatch):
    """The state stays small though the links never rest, and no plan under way is lost."""
    rng, num_messages = np.random.default_rng(0), 2_000
    network = FatTree(**QUIET, hosts_per_leaf=2, latency_s=1e-5, bandwidth_bytes_per_s=1e9, oversubscription=2.0)
    long = plans.pipelined(plans.ring_all_reduce(6, 1e9), 4, 2)
    jobs = [(0.3, long, range(6))]
    for number in range(num_messages):
        ends = rng.choice(8, 2, replace=False).tolist()
        jobs.append((rng.uniform(0.0, 1.0), plans.message(1e6 + number), ends))
    expected, usual = carried(network, 8, jobs)
    monkeypatch.setattr(links_module, "_KEPT_BYTES", 2_000)
    found, links = carried(network, 8, jobs)
    assert len(links._state.sends) <= 512 < num_messages < len(usual._state.sends)
    for one, other in zip(expected, found, strict=True):
        assert one.tolist() == other.tolist()
    assert links.traffic() == usual.traffic()
