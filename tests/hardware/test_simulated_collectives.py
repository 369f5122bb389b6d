import math

import numpy as np
import pytest
import torch
import torch.distributed as dist
from simulated_ranks import SWITCH, results

from hardware.simulated import collectives
from hardware.simulated.collectives import Step, Transfer
from hardware.simulated.engine import Engine
from hardware.simulated.fabric import Exchange, Fabric
from hardware.simulated.network import Switch
from harness.errors import UserError

ALPHA, BANDWIDTH, PAYLOAD = 50e-6, 1.25e9, 1e8
BETA = 1 / BANDWIDTH

CLOSED_FORMS = {
    collectives.ring_all_reduce: lambda p, n: 2 * (p - 1) * ALPHA + 2 * n * (p - 1) / p * BETA,
    collectives.ring_all_gather: lambda p, n: (p - 1) * ALPHA + n * (p - 1) / p * BETA,
    collectives.ring_reduce_scatter: lambda p, n: (p - 1) * ALPHA + n * (p - 1) / p * BETA,
    collectives.pairwise_all_to_all: lambda p, n: (p - 1) * ALPHA + n * (p - 1) / p * BETA,
    collectives.binomial_broadcast: lambda p, n: math.ceil(math.log2(p)) * (ALPHA + n * BETA),
    collectives.binomial_reduce: lambda p, n: math.ceil(math.log2(p)) * (ALPHA + n * BETA),
    collectives.dissemination_barrier: lambda p, n: math.ceil(math.log2(p)) * ALPHA,
    collectives.direct_gather: lambda p, n: ALPHA + n * (p - 1) / p * BETA,
    collectives.direct_scatter: lambda p, n: ALPHA + n * (p - 1) / p * BETA,
}


def duration_s(plan, num_ranks, payload_bytes, root=0, network=Switch(ALPHA, BANDWIDTH)):  # noqa: B008 - frozen
    engine = Engine()
    fabric = Fabric(engine, network, num_ranks)
    exchange = Exchange(engine.env, "test")
    fabric.carry(tuple(plan(num_ranks, payload_bytes, root)), np.arange(num_ranks), 0.0, [exchange])
    engine.env.run()
    return exchange.ended_s


@pytest.mark.parametrize("num_ranks", [2, 3, 4, 5, 7, 8, 12, 16, 31, 32, 33, 64])
@pytest.mark.parametrize("plan", CLOSED_FORMS, ids=lambda plan: plan.__name__)
def test_plan_takes_its_closed_form(plan, num_ranks):
    expected = CLOSED_FORMS[plan](num_ranks, PAYLOAD)
    assert duration_s(plan, num_ranks, PAYLOAD, root=num_ranks - 1) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("plan", CLOSED_FORMS, ids=lambda plan: plan.__name__)
def test_one_rank_sends_nothing(plan):
    assert list(plan(1, PAYLOAD, 0)) == []


@pytest.mark.parametrize(
    ("num_ranks", "payload_bytes", "seconds"),
    [
        (8, 1e8, 0.140700),
        (64, 1e8, 0.163800),
        (256, 1e8, 0.184875),
        (1024, 1e8, 0.262145),
        (8, 1e3, 0.000701),
        (64, 1e3, 0.006302),
        (256, 1e3, 0.025502),
        (1024, 1e3, 0.102302),
    ],
)
def test_ring_agrees_with_simgrid(num_ranks, payload_bytes, seconds):
    """SimGrid 4.1, model CM02 without corrections, 10 Gb/s, 50 us; it printed six decimals, the last one off by one."""
    assert duration_s(collectives.ring_all_reduce, num_ranks, payload_bytes) == pytest.approx(seconds, abs=2e-6)


def test_plans_are_literal():
    assert list(collectives.ring_all_gather(3, 6.0)) == 2 * [
        Step((Transfer(0, 1, 2.0), Transfer(1, 2, 2.0), Transfer(2, 0, 2.0)))
    ]
    assert list(collectives.binomial_broadcast(4, 8.0, root=3)) == [
        Step((Transfer(3, 0, 8.0),)),
        Step((Transfer(3, 1, 8.0), Transfer(0, 2, 8.0))),
    ]
    assert list(collectives.binomial_reduce(3, 8.0, root=0)) == [
        Step((Transfer(2, 0, 8.0),)),
        Step((Transfer(1, 0, 8.0),)),
    ]
    assert list(collectives.direct_scatter(3, 9.0, root=1)) == [Step((Transfer(1, 0, 3.0), Transfer(1, 2, 3.0)))]
    assert list(collectives.pairwise_all_to_all(2, 4.0)) == [Step((Transfer(0, 1, 2.0), Transfer(1, 0, 2.0)))]


@pytest.mark.parametrize("num_ranks", [2, 3, 5, 8, 13])
def test_broadcast_reaches_everyone_from_someone_who_has_it(num_ranks):
    have = {2 % num_ranks}
    for step in collectives.binomial_broadcast(num_ranks, 1.0, root=2 % num_ranks):
        assert {t.source for t in step.transfers} <= have
        targets = {t.destination for t in step.transfers}
        assert have.isdisjoint(targets)
        have |= targets
    assert have == set(range(num_ranks))


@pytest.mark.parametrize("num_ranks", [2, 3, 5, 8, 13])
def test_barrier_tells_everyone_of_everyone(num_ranks):
    knows = {rank: {rank} for rank in range(num_ranks)}
    for step in collectives.dissemination_barrier(num_ranks):
        before = {rank: set(known) for rank, known in knows.items()}
        for transfer in step.transfers:
            knows[transfer.destination] |= before[transfer.source]
    assert all(known == set(range(num_ranks)) for known in knows.values())


def test_incast_queues_at_the_receiver():
    """Seven senders of 1 MB into a port of 1 MB/s: the last byte is in after 7 s."""

    def body(worker):
        if worker.rank > 0:
            dist.send(torch.zeros(10**6, dtype=torch.uint8), 0)
        else:
            inbox = [torch.zeros(10**6, dtype=torch.uint8) for _ in range(7)]
            for work in [dist.irecv(box, source) for source, box in enumerate(inbox, start=1)]:
                work.wait()
        return worker.clock.now()

    assert results(body, 8, network=Switch(0.0, 1e6)) == [7.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]


def test_ports_are_full_duplex():
    def body(worker):
        there, back = torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
        works = [dist.isend(there, 1 - worker.rank), dist.irecv(back, 1 - worker.rank)]
        for work in works:
            work.wait()
        return worker.clock.now()

    assert results(body, 2, network=SWITCH) == [1.5, 1.5]


@pytest.mark.parametrize(
    ("latency_s", "rate", "field"), [(-1.0, 1.0, "latency_s"), (0.0, 0.0, "bandwidth_bytes_per_s")]
)
def test_impossible_networks_are_refused(latency_s, rate, field):
    with pytest.raises(UserError, match=f"hardware.network.{field}"):
        Switch(latency_s, rate)
