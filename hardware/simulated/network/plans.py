"""Collectives as plans: who sends how many bytes to whom at each step. Pure; executed elsewhere.

    p ranks, n bytes, alpha latency_s, beta = 1 / bandwidth         time on an idle switch
    ring all-reduce                                                 2(p-1) alpha + 2n(p-1)/p beta
    ring all-gather, ring reduce-scatter, pairwise all-to-all       (p-1) alpha + n(p-1)/p beta
    binomial broadcast and reduce                                   ceil(lg p) (alpha + n beta)
    direct gather and scatter                                       alpha + n(p-1)/p beta
    dissemination barrier                                           ceil(lg p) alpha

(Thakur, Rabenseifner, Gropp, IJHPCA 2005, sections 4 and 5; barrier: Hensgen, Finkel, Manber, IJPP 1988.)
Chunks are of n/p bytes, fractions of a byte included, so that the closed forms hold for every p. One rank sends
nothing.

The rule by which a plan is carried out: a rank takes its steps in order. What it sends at step t begins when what it
sent at step t - 1 has left (its last byte is on the wire), and all that it sent or received at steps <= t - depth has
arrived. With depth 1 that is a step-synchronous program; a greater depth pipelines.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np


@dataclass(frozen=True, eq=False)
class Step:
    """Transfers that belong together: `payload_bytes[i]` from rank `sources[i]` to rank `destinations[i]`."""

    sources: np.ndarray  # (transfers,) int64
    destinations: np.ndarray  # (transfers,) int64
    payload_bytes: np.ndarray  # (transfers,) float64


@dataclass(frozen=True, eq=False)
class Plan:
    """What the ranks of a group do together.

    Args:
        num_ranks: of the group.
        rounds: steps, each with how often it is repeated.
        depth: steps that a rank may have under way together, >= 1.
        setup_s: seconds before the first step.
        overhead_s: seconds that every transfer takes beyond the latency of its route.
        efficiency: payload over bytes on the wire, in (0, 1].
    """

    num_ranks: int
    rounds: tuple[tuple[Step, int], ...]
    depth: int = 1
    setup_s: float = 0.0
    overhead_s: float = 0.0
    efficiency: float = 1.0

    def steps(self) -> Iterator[Step]:
        """All steps in order."""
        for step, times in self.rounds:
            for _ in range(times):
                yield step


def ring_all_reduce(num_ranks: int, payload_bytes: float) -> Plan:
    """Reduce-scatter, then all-gather, each once around the ring.

    >>> plan = ring_all_reduce(3, 6.0)
    >>> len(list(plan.steps())), plan.rounds[0][0].payload_bytes
    (4, array([2., 2., 2.]))
    """
    return _around_the_ring(num_ranks, payload_bytes, 2 * (num_ranks - 1))


def ring_all_gather(num_ranks: int, payload_bytes: float) -> Plan:
    """Every rank's part of `payload_bytes` travels once around the ring; a reduce-scatter is the same with sums."""
    return _around_the_ring(num_ranks, payload_bytes, num_ranks - 1)


def pairwise_all_to_all(num_ranks: int, payload_bytes: float) -> Plan:
    """At step k rank i sends its part for rank i + k; `payload_bytes` is what one rank holds."""
    part = payload_bytes / num_ranks
    steps = [step((i, (i + k) % num_ranks, part) for i in range(num_ranks)) for k in range(1, num_ranks)]
    return Plan(num_ranks, tuple((one, 1) for one in steps))


def binomial_broadcast(num_ranks: int, payload_bytes: float, root: int = 0) -> Plan:
    """Every rank that has the payload passes it on: 1, 2, 4, ... ranks have it."""
    return Plan(num_ranks, tuple((one, 1) for one in _binomial(num_ranks, payload_bytes, root)))


def binomial_reduce(num_ranks: int, payload_bytes: float, root: int = 0) -> Plan:
    """The broadcast backwards."""
    steps = [backwards(one) for one in reversed(list(_binomial(num_ranks, payload_bytes, root)))]
    return Plan(num_ranks, tuple((one, 1) for one in steps))


def dissemination_barrier(num_ranks: int) -> Plan:
    """Rank i tells rank i + 2^k at step k."""
    reaches = [2**k for k in range((num_ranks - 1).bit_length())]
    steps = [step((i, (i + reach) % num_ranks, 0.0) for i in range(num_ranks)) for reach in reaches]
    return Plan(num_ranks, tuple((one, 1) for one in steps))


def direct_gather(num_ranks: int, payload_bytes: float, root: int = 0) -> Plan:
    """All send their part of `payload_bytes` to the root at once."""
    part = payload_bytes / num_ranks
    return Plan(num_ranks, ((step((i, root, part) for i in range(num_ranks) if i != root), 1),))


def direct_scatter(num_ranks: int, payload_bytes: float, root: int = 0) -> Plan:
    """The root sends every rank its part of `payload_bytes` at once."""
    ((one, _),) = direct_gather(num_ranks, payload_bytes, root).rounds
    return Plan(num_ranks, ((backwards(one), 1),))


@lru_cache(maxsize=1024)
def message(payload_bytes: float) -> Plan:
    """Rank 0 sends to rank 1."""
    return Plan(2, ((step([(0, 1, payload_bytes)]), 1),))


def step(transfers: Iterable[tuple[int, int, float]]) -> Step:
    """A step of (source, destination, payload bytes)."""
    rows = list(transfers)
    table = np.array(rows, np.float64).reshape(len(rows), 3)
    return Step(table[:, 0].astype(np.int64), table[:, 1].astype(np.int64), table[:, 2].copy())


def backwards(one: Step) -> Step:
    """The same transfers the other way."""
    return Step(one.destinations, one.sources, one.payload_bytes)


def _around_the_ring(num_ranks: int, payload_bytes: float, num_steps: int) -> Plan:
    ranks = np.arange(num_ranks)
    once = Step(ranks, (ranks + 1) % num_ranks, np.full(num_ranks, payload_bytes / num_ranks))
    return Plan(num_ranks, ((once, num_steps),) if num_steps else ())


def _binomial(num_ranks: int, payload_bytes: float, root: int) -> Iterator[Step]:
    reach = 1
    while reach < num_ranks:
        pairs = [(i, i + reach) for i in range(min(reach, num_ranks - reach))]
        yield step(((a + root) % num_ranks, (b + root) % num_ranks, payload_bytes) for a, b in pairs)
        reach *= 2
