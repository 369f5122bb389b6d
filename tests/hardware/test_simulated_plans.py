"""Plans: closed forms on a quiet network, literal steps, and what every rank knows in the end."""

from itertools import product
from math import ceil, log2

import numpy as np
import pytest
from simulated_networks import ALPHA, BANDWIDTH, ETHERNET, PAYLOAD, carried

from hardware.simulated.network import doubling, hierarchy, plans, rails, trees
from hardware.simulated.network.plans import Plan
from hardware.simulated.network.protocol import ALGORITHMS, Gloo, Nccl
from hardware.simulated.network.topologies import Rails, Switch
from harness.errors import UserError

BETA = 1 / BANDWIDTH
EVERY = [(kind, name) for kind, names in ALGORITHMS.items() for name in names]
EVERY_SIZE = range(2, 65)
SIZES = [2, 3, 4, 5, 7, 8, 12, 16, 31, 32, 33, 64]
GLOO = Gloo({}, 2**20, 2, 2, 0.0, 0.0, 1.0)
WIRES = {"LL": 1e-6, "LL128": 2e-6, "Simple": 3e-6}
HALF = {"LL": 0.5, "LL128": 0.9375, "Simple": 1.0}
NCCL = Nccl({}, 2**19, 1, 8, 1e4, 5e6, 1e3, 1e5, WIRES, WIRES, {"LL": 1e-5, "LL128": 2e-5, "Simple": 3e-5}, HALF)


def lg(p):
    return ceil(log2(p))


def folding(p, n):
    return 0.0 if 2 ** int(log2(p)) == p else 2 * (ALPHA + n * BETA)


CLOSED_FORMS = {
    plans.ring_all_reduce: lambda p, n: 2 * (p - 1) * ALPHA + 2 * n * (p - 1) / p * BETA,
    plans.ring_all_gather: lambda p, n: (p - 1) * ALPHA + n * (p - 1) / p * BETA,
    plans.pairwise_all_to_all: lambda p, n: (p - 1) * ALPHA + n * (p - 1) / p * BETA,
    plans.direct_all_to_all: lambda p, n: ALPHA + n * (p - 1) / p * BETA,
    plans.direct_gather: lambda p, n: ALPHA + n * (p - 1) / p * BETA,
    plans.direct_scatter: lambda p, n: ALPHA + n * (p - 1) / p * BETA,
    doubling.recursive_doubling: lambda p, n: int(log2(p)) * (ALPHA + n * BETA) + folding(p, n),
    doubling.halving_doubling: lambda p, n: (
        2 * int(log2(p)) * ALPHA + 2 * n * (1 - 0.5 ** int(log2(p))) * BETA + folding(p, n)
    ),
    trees.binomial_broadcast: lambda p, n: lg(p) * (ALPHA + n * BETA),
    trees.binomial_reduce: lambda p, n: lg(p) * (ALPHA + n * BETA),
    trees.binomial_all_reduce: lambda p, n: 2 * lg(p) * (ALPHA + n * BETA),
    trees.binomial_scatter: lambda p, n: lg(p) * ALPHA + n * (p - 1) / p * BETA,
    trees.binomial_gather: lambda p, n: lg(p) * ALPHA + n * (p - 1) / p * BETA,
    trees.scatter_all_gather: lambda p, n: (lg(p) + p - 1) * ALPHA + 2 * n * (p - 1) / p * BETA,
}
ROOTED = [trees.binomial_broadcast, trees.binomial_reduce, trees.binomial_scatter, trees.binomial_gather]
ROOTED += [trees.scatter_all_gather, plans.direct_gather, plans.direct_scatter]


def duration_s(plan, network=ETHERNET, shortcuts=True):
    ((ends,), _) = carried(network, plan.num_ranks, [(0.0, plan, range(plan.num_ranks))], shortcuts)
    return max(ends)


@pytest.mark.parametrize("shortcuts", [True, False])
@pytest.mark.parametrize("make", CLOSED_FORMS, ids=lambda make: make.__name__)
def test_a_plan_takes_its_closed_form(make, shortcuts):
    for num_ranks in EVERY_SIZE:
        expected = CLOSED_FORMS[make](num_ranks, PAYLOAD)
        assert duration_s(make(num_ranks, PAYLOAD), shortcuts=shortcuts) == pytest.approx(expected, rel=1e-9), num_ranks


@pytest.mark.parametrize("make", ROOTED, ids=lambda make: make.__name__)
def test_any_root_takes_as_long(make):
    for num_ranks in SIZES:
        expected = CLOSED_FORMS[make](num_ranks, PAYLOAD)
        assert duration_s(make(num_ranks, PAYLOAD, num_ranks - 1)) == pytest.approx(expected, rel=1e-9), num_ranks


@pytest.mark.parametrize("num_ranks", EVERY_SIZE)
def test_the_barrier_takes_its_closed_form(num_ranks):
    assert duration_s(plans.dissemination_barrier(num_ranks)) == pytest.approx(lg(num_ranks) * ALPHA, rel=1e-9)


def pipelined_s(num_steps, tau, depth):
    """Of steps in a row: each begins when the one before has left and the one `depth` before has arrived."""
    begins = []
    for t in range(num_steps):
        left_s = begins[t - 1] + tau if t else 0.0
        arrived_s = begins[t - depth] + tau + ALPHA if t >= depth else 0.0
        begins.append(max(left_s, arrived_s))
    return begins[-1] + tau + ALPHA


@pytest.mark.parametrize("shortcuts", [True, False])
@pytest.mark.parametrize("num_ranks", SIZES)
@pytest.mark.parametrize(("segments", "in_flight"), [(2, 2), (5, 3), (8, 8)])
@pytest.mark.parametrize("payload", [1e3, 1e6, PAYLOAD])
def test_pipelined_rings_take_their_closed_form(num_ranks, segments, in_flight, payload, shortcuts):
    plan = plans.pipelined(plans.ring_all_reduce(num_ranks, payload), segments, in_flight)
    tau = payload / num_ranks / segments * BETA
    expected = pipelined_s(2 * (num_ranks - 1) * segments, tau, in_flight)
    assert duration_s(plan, shortcuts=shortcuts) == pytest.approx(expected, rel=1e-9)


def test_no_more_segments_are_under_way_than_there_are():
    with pytest.raises(ValueError, match="in_flight"):
        plans.pipelined(plans.ring_all_reduce(3, 6.0), 2, 3)


def double_tree_s(num_ranks, num_chunks):
    """Where steps are as long as two halves over one link take: all but the first, which may be of a single leaf."""
    k, chunk_s = int(log2(num_ranks)), PAYLOAD / num_chunks * BETA
    if num_ranks == 2:
        return 2 * num_chunks * (ALPHA + chunk_s / 2)  # no rank has two children
    single = chunk_s / 2 if num_ranks < 1.5 * 2**k else 0.0
    return 2 * ((num_chunks + k - 1) * (ALPHA + chunk_s) - single)


@pytest.mark.parametrize("num_ranks", EVERY_SIZE)
def test_the_double_tree_takes_its_closed_form(num_ranks):
    for num_chunks in {max(1, int(log2(num_ranks)) - 1), 7, 16}:
        expected = double_tree_s(num_ranks, num_chunks)
        assert duration_s(trees.double_tree(num_ranks, PAYLOAD, num_chunks)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("num_ranks", SIZES)
def test_in_the_double_tree_a_rank_is_inner_once(num_ranks):
    """Of a rank's two halves one comes from children; with an odd number one rank may have both."""
    up = list(trees.double_tree(num_ranks, 2.0, 1).steps())
    received = np.zeros(num_ranks)
    for one in up:
        np.add.at(received, one.destinations, one.payload_bytes)
    assert sum(received > 4) <= num_ranks % 2  # up: at most two halves of 1; down: at most one of each tree
    assert sum(len(one.sources) for one in up) == 4 * (num_ranks - 1)


@pytest.mark.parametrize(("num_hosts", "per_host"), [(1, 4), (2, 4), (3, 2), (4, 8), (5, 1)])
def test_the_hierarchical_plan_takes_its_closed_form(num_hosts, per_host):
    inside_alpha, inside_beta = 1e-6, 1e-11
    network = Rails({}, {}, per_host, inside_alpha, 1 / inside_beta, ALPHA, BANDWIDTH)
    hosts = network.hosts(num_hosts * per_host)
    plan = hierarchy.hierarchical_all_reduce(hosts, PAYLOAD)
    inside = 2 * (per_host - 1) * (inside_alpha + PAYLOAD / per_host * inside_beta)
    between = 2 * (num_hosts - 1) * (ALPHA + PAYLOAD / per_host / num_hosts * BETA)
    assert duration_s(plan, network) == pytest.approx(inside + between, rel=1e-9)


@pytest.mark.parametrize("inside_bandwidth", [1e10, 4e9, 2e9])
@pytest.mark.parametrize(("num_hosts", "per_host"), [(2, 2), (3, 4), (4, 4), (5, 1), (1, 4)])
def test_rings_on_rails_take_their_closed_form(num_hosts, per_host, inside_bandwidth):
    inside_alpha, num_ranks = 1e-6, num_hosts * per_host
    network = Rails({}, {}, per_host, inside_alpha, inside_bandwidth, ALPHA, BANDWIDTH)
    hosts = network.hosts(num_ranks)
    plan = rails.on_rails(plans.ring_all_reduce(num_ranks, PAYLOAD), hosts)
    crossing = 1 / per_host if num_hosts > 1 else 0
    # who crosses goes through the host first, to the card of the rank it reaches, unless there is one rank alone
    alpha = inside_alpha * (1 if per_host > 1 else 0) + crossing * ALPHA
    part = PAYLOAD / num_ranks
    tau = part * max(crossing * BETA, (per_host > 1) / inside_bandwidth)
    assert duration_s(plan, network) == pytest.approx(2 * (num_ranks - 1) * (alpha + tau), rel=1e-9)
    assert plan.rings == (per_host if min(num_hosts, per_host) > 1 else 1)


def test_rings_on_rails_use_all_cards_alike():
    network, hosts = Rails({}, {}, 4, 0.0, 1e10, 0.0, BANDWIDTH), np.arange(12) // 4
    plan = NCCL.plan("all_gather", hosts, PAYLOAD, 0, None)
    (_, links) = carried(network, 12, [(0.0, plan, range(12))])
    payloads = {name: traffic.payload_bytes for name, traffic in links.traffic().items()}
    assert [payloads[f"card{i}.up"] for i in range(12)] == pytest.approx([PAYLOAD * 11 / 12 / 4] * 12)
    assert [payloads[f"device{i}.out"] for i in range(12)] == pytest.approx([PAYLOAD * 11 / 12] * 12)


def test_there_are_as_many_rings_as_the_emptiest_host_has_ranks():
    ring = plans.ring_all_gather(3, PAYLOAD)
    assert rails.on_rails(ring, np.array([0, 0, 1])) is ring
    unequal = rails.on_rails(plans.ring_all_gather(5, PAYLOAD), np.array([0, 0, 0, 1, 1]))
    assert unequal.rings == 2
    assert sent(unequal).sum(1) == pytest.approx([PAYLOAD * 4 / 5] * 5)


@pytest.mark.parametrize(("kind", "name"), [each for each in EVERY if each[0] != "message"])
def test_what_is_empty_is_sent_in_time(kind, name):
    protocol = Gloo({kind: name}, 2**20, 2, 2, 0.0, 0.0, 1.0)
    assert 0 < duration_s(protocol.plan(kind, np.arange(8) // 4, 0.0, 0, None)) < 1


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_one_rank_sends_nothing(kind, name):
    if kind != "message":
        plan = Gloo({kind: name}, 2**20, 2, 2, 0.0, 0.0, 1.0).plan(kind, np.zeros(1, int), PAYLOAD, 0, None)
        assert sum(len(one.sources) for one in plan.steps()) == 0


def knowledge(plan, begin):
    """What each rank knows in the end if it tells all it knows, step by step."""
    knows = [set(begin[rank]) for rank in range(plan.num_ranks)]
    for one in plan.steps():
        before = [set(known) for known in knows]
        for source, destination in zip(one.sources.tolist(), one.destinations.tolist(), strict=True):
            knows[destination] |= before[source]
    return knows


@pytest.mark.parametrize("num_ranks", [2, 3, 5, 6, 8, 13])
@pytest.mark.parametrize(("kind", "name"), [row for row in EVERY if row[0] in ("all_reduce", "all_gather", "barrier")])
def test_everyone_knows_of_everyone(kind, name, num_ranks):
    hosts = np.arange(num_ranks) // 2
    plan = Gloo({kind: name}, 1e7, 2, 2, 0.0, 0.0, 1.0).plan(kind, hosts, PAYLOAD, 0, None)
    assert knowledge(plan, [{rank} for rank in range(num_ranks)]) == [set(range(num_ranks))] * num_ranks


@pytest.mark.parametrize(("num_ranks", "root"), [(2, 1), (3, 2), (5, 1), (8, 3), (13, 12)])
def test_roots_give_and_get(num_ranks, root):
    hosts, everyone = np.arange(num_ranks), set(range(num_ranks))
    for kind, name in product(("broadcast", "scatter"), ("tree", "scatter_all_gather", "direct")):
        if name in ALGORITHMS[kind]:
            plan = Gloo({kind: name}, 1e7, 2, 2, 0.0, 0.0, 1.0).plan(kind, hosts, PAYLOAD, root, None)
            begin = [{"it"} if rank == root else set() for rank in range(num_ranks)]
            assert knowledge(plan, begin) == [{"it"}] * num_ranks
    for kind, name in product(("reduce", "gather"), ("tree", "ring", "direct")):
        if name in ALGORITHMS[kind]:
            plan = Gloo({kind: name}, 1e7, 2, 2, 0.0, 0.0, 1.0).plan(kind, hosts, PAYLOAD, root, None)
            assert knowledge(plan, [{rank} for rank in range(num_ranks)])[root] == everyone


def sent(plan):
    """Payload bytes, by source and destination."""
    table = np.zeros((plan.num_ranks, plan.num_ranks))
    for one in plan.steps():
        np.add.at(table, (one.sources, one.destinations), one.payload_bytes)
    return table


def test_bytes_are_those_of_the_theory():
    assert sent(plans.ring_all_reduce(4, 8.0)).sum(1).tolist() == [12.0] * 4
    assert sent(plans.pipelined(plans.ring_all_reduce(4, 8.0), 3, 2)).sum(1) == pytest.approx([12.0] * 4)
    assert sent(doubling.halving_doubling(4, 8.0)).sum(1).tolist() == [12.0] * 4
    assert sent(trees.binomial_scatter(4, 8.0)).tolist() == [[0, 2, 4, 0], [0] * 4, [0, 0, 0, 2], [0] * 4]
    parts = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]])
    assert (sent(GLOO.plan("all_to_all", np.arange(3), 0.0, 0, parts)) == parts * (1 - np.eye(3))).all()


def test_plans_are_literal():
    def rows(plan):
        return [list(zip(*(a.tolist() for a in vars(one).values()), strict=True)) for one in plan.steps()]

    assert rows(trees.binomial_broadcast(4, 8.0, root=3)) == [[(3, 0, 8.0)], [(3, 1, 8.0), (0, 2, 8.0)]]
    assert rows(trees.binomial_reduce(3, 8.0)) == [[(2, 0, 8.0)], [(1, 0, 8.0)]]
    assert rows(plans.direct_scatter(3, 9.0, root=1)) == [[(1, 0, 3.0), (1, 2, 3.0)]]
    assert rows(doubling.halving_doubling(2, 8.0)) == [[(0, 1, 4.0), (1, 0, 4.0)]] * 2


@pytest.mark.parametrize(
    ("payload_bytes", "num_hosts", "steps", "depth", "setup_s", "efficiency"),
    [
        (500.0, 4, 4, 1, 1e-6, 0.5),  # double tree, LL: two levels up and down
        (5e4, 4, 6, 1, 2e-6, 0.9375),  # ring, LL128, one slice
        (4e6, 4, 12, 2, 3e-6, 1.0),  # ring, Simple, two slices of 0.5 MB
        (4e6, 2, 4, 1, 3e-6, 1.0),  # two hosts of two, in two levels
        (4e7, 2, 6 * 10, 8, 3e-6, 1.0),  # the same, around two rings, of 5 MB each in slices
    ],
)
def test_nccl_chooses_by_size_and_hosts(payload_bytes, num_hosts, steps, depth, setup_s, efficiency):
    plan = NCCL.plan("all_reduce", np.arange(4) * num_hosts // 4, payload_bytes, 0, None)
    assert len(list(plan.steps())) == steps
    assert (plan.depth, plan.setup_s, plan.efficiency) == (depth, setup_s, efficiency)


def test_nccl_has_less_overhead_inside_a_host():
    def steps_s(hosts):
        plan = NCCL.plan("all_reduce", np.array(hosts), 4e6, 0, None)
        return duration_s(plan, Switch({}, {}, 0.0, 1e30)) - plan.setup_s

    assert duration_s(NCCL.plan("message", np.array([0, 0]), 1e6, 0, None), Switch({}, {}, 0.0, 1e30)) == pytest.approx(
        6e-6
    )
    # inside two hosts, between them and inside again: a reduce-scatter, a ring of two and an all-gather
    assert steps_s([0, 0, 1, 1]) == pytest.approx(3e-6 + 2 * 3e-5 + 3e-6, rel=1e-9)


def test_gloo_cuts_its_ring_into_segments():
    plan = GLOO.plan("all_reduce", np.arange(4), 40 * 2**20, 0, None)
    assert (len(list(plan.steps())), plan.depth) == (6 * 10, 2)
    assert len(list(GLOO.plan("all_reduce", np.arange(4), 40.0, 0, None).steps())) == 6 * 2


@pytest.mark.parametrize(
    ("algorithms", "words"),
    [
        ({"all_reduce": "star"}, r"algorithms.all_reduce must be one of \['ring', .*, got 'star'"),
        ({"allreduce": "ring"}, r"algorithms must name kinds of \['all_reduce', .*, got 'allreduce'"),
    ],
)
def test_unknown_algorithms_are_refused(algorithms, words):
    with pytest.raises(UserError, match=words):
        Gloo(algorithms, 2**20, 2, 2, 0.0, 0.0, 1.0)


def test_every_knob_moves_the_answer():
    def run_s(**changes):
        protocol = Gloo(**{**vars(GLOO), **changes})
        return duration_s(protocol.plan("all_reduce", np.arange(4), 8e4, 0, None))

    changes = {
        "algorithms": {"all_reduce": "ring"},
        "segment_bytes": 1e3,
        "segments": 9,
        "in_flight": 1,
        "setup_s": 1e-3,
        "overhead_s": 1e-3,
        "efficiency": 0.5,
    }
    for name, value in changes.items():
        assert run_s(**{name: value}) != run_s(), name


def test_a_plan_without_ranks_that_send_is_empty():
    assert isinstance(hierarchy.hierarchical_all_reduce(np.zeros(1, int), PAYLOAD), Plan)


@pytest.mark.parametrize("name", ["direct", "pairwise"])
def test_equal_parts_cost_the_same_given_by_size(name):
    protocol = Gloo(**{**vars(GLOO), "algorithms": {"all_to_all": name}})
    equal = protocol.plan("all_to_all", np.arange(4), PAYLOAD, 0, None)
    given = protocol.plan("all_to_all", np.arange(4), PAYLOAD, 0, np.full((4, 4), PAYLOAD / 4))
    assert duration_s(given) == pytest.approx(duration_s(equal), rel=1e-12)
