"""Plans: which rank sends how many bytes to which, in which order.

Closed forms on a quiet network (p ranks, n bytes, alpha s latency, beta s/byte, lg the logarithm to base 2):

    ring all-reduce                                                 2(p-1) alpha + 2n(p-1)/p beta
    ring all-gather, ring reduce-scatter, pairwise all-to-all       (p-1) alpha + n(p-1)/p beta
    pipelined rings: N steps of tau = n/(pk) beta, d in flight      N tau + alpha if d tau >= tau + alpha, else
                                                                    step q d + r begins at q (tau + alpha) + r tau
    recursive doubling (doubling.py), m = 2^floor(lg p)             lg m (alpha + n beta), + 2(alpha + n beta) if m < p
    halving and doubling (doubling.py)                              2 lg m alpha + 2n(m-1)/m beta, + the same
    binomial broadcast and reduce (trees.py)                        ceil(lg p) (alpha + n beta)
    binomial scatter and gather (trees.py)                          ceil(lg p) alpha + n(p-1)/p beta
    scatter, then ring all-gather (trees.py)                        (ceil(lg p) + p - 1) alpha + 2n(p-1)/p beta
    double binary tree (trees.py), c >= k - 1 chunks, p >= 3,       2(c+k-1)(alpha + n/c beta), less n/c beta where
        k = floor(lg p)                                             p < 3/2 2^k: the deepest leaf has no sibling then
    rings on rails (rails.py), h hosts of g, one segment            their steps, of (alpha + (g-1) alpha')/g
                                                                    + n/p max(beta/g, beta')
    hierarchical (hierarchy.py), h hosts of g                       2(g-1)(alpha' + n/g beta')
                                                                    + 2(h-1)(alpha + n/(gh) beta)
    direct gather, scatter and all-to-all                           alpha + n(p-1)/p beta
    dissemination barrier                                           ceil(lg p) alpha

(Thakur, Rabenseifner, Gropp, IJHPCA 2005, sections 4 and 5; barrier: Hensgen, Finkel, Manber, IJPP 1988; double tree:
Sanders, Speck, Traeff, Parallel Computing 2009.) Chunks are of n/p bytes, fractions of a byte included, so that the
closed forms hold for every p. One rank sends nothing.

The rule by which a plan is carried out: a rank takes its steps in order. What it sends at step t begins when what it
sent at step t - 1 has left (its last byte is on the wire), and when all that it and those it sends to have sent or
received at steps <= t - depth has arrived: a receiver has room for `depth` steps. With depth 1 that is a
step-synchronous program of matching sends and receives; a greater depth pipelines.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
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
        inside_overhead_s: the same between two ranks of one host.
        hosts: of each rank, shape (ranks,); None where no two ranks share one, or both overheads are equal.
        efficiency: payload over bytes on the wire, in (0, 1].
        rings: that go on by themselves (`rails.py`), >= 1. No ring waits for another's latency, and each passes all
            hops in the end: where there are several, all transfers of a step take the mean latency, by payload.
    """

    num_ranks: int
    rounds: tuple[tuple[Step, int], ...]
    depth: int = 1
    setup_s: float = 0.0
    overhead_s: float = 0.0
    inside_overhead_s: float = 0.0
    hosts: np.ndarray | None = None
    efficiency: float = 1.0
    rings: int = 1

    def latencies_s(self, step: "Step", routed_s: np.ndarray) -> np.ndarray:
        """Of each transfer of a step, with what the library adds.

        Args:
            routed_s: of each route, shape (..., transfers), as what is returned.
        """
        added_s = np.full(len(step.sources), self.overhead_s)
        if self.hosts is not None:
            added_s[self.hosts[step.sources] == self.hosts[step.destinations]] = self.inside_overhead_s
        latency_s = routed_s + added_s
        if self.rings == 1:
            return latency_s
        weights = step.payload_bytes if step.payload_bytes.any() else None
        mean_s = np.average(latency_s, axis=-1, weights=weights)
        return np.broadcast_to(np.expand_dims(mean_s, -1), latency_s.shape)

    @property
    def least_s(self) -> float:
        """Seconds that the library takes at least, whatever the network, if no steps are under way together."""
        steps = ((self.latencies_s(step, np.zeros(len(step.sources))), times) for step, times in self.rounds)
        return self.setup_s + sum(times * float(added_s.max(initial=0.0)) for added_s, times in steps)

    @property
    def nbytes(self) -> int:
        """Of memory, nearly."""
        return 500 + sum(500 + 3 * step.sources.nbytes for step, _ in self.rounds)

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


def pipelined(ring: Plan, segments: int, in_flight: int) -> Plan:
    """Every step of a ring in so many segments, one after the other, so many of them under way together.

    Raises:
        ValueError: if more are under way than a step has, so that a rank would pass on what it has not got.
    """
    if not 1 <= in_flight <= segments:
        raise ValueError(f"in_flight must be in [1, {segments}], got {in_flight}")
    rounds = tuple(
        (Step(one.sources, one.destinations, one.payload_bytes / segments), times * segments)
        for one, times in ring.rounds
    )
    return replace(ring, rounds=rounds, depth=in_flight)


def pairwise_all_to_all(num_ranks: int, payload_bytes: float) -> Plan:
    """At step k rank i sends its part for rank i + k; `payload_bytes` is what one rank holds."""
    part = payload_bytes / num_ranks
    steps = [step((i, (i + k) % num_ranks, part) for i in range(num_ranks)) for k in range(1, num_ranks)]
    return Plan(num_ranks, tuple((one, 1) for one in steps))


def unequal_all_to_all(parts: np.ndarray) -> Plan:
    """The same with `parts[i, j]` bytes from rank i to rank j."""
    ranks = np.arange(len(parts))
    steps = []
    for k in range(1, len(parts)):
        targets = (ranks + k) % len(parts)
        steps.append(Step(ranks, targets, parts[ranks, targets].astype(np.float64)))
    return Plan(len(parts), tuple((one, 1) for one in steps))


def at_once(plan: Plan) -> Plan:
    """All its transfers in one step."""
    steps = list(plan.steps())
    if not steps:
        return plan
    columns = zip(*((one.sources, one.destinations, one.payload_bytes) for one in steps), strict=True)
    return Plan(plan.num_ranks, ((Step(*map(np.concatenate, columns)), 1),))


def direct_all_to_all(num_ranks: int, payload_bytes: float) -> Plan:
    """Every rank sends all parts at once."""
    part = payload_bytes / num_ranks
    pairs = ((i, j, part) for i in range(num_ranks) for j in range(num_ranks) if i != j)
    return Plan(num_ranks, ((step(pairs), 1),) if num_ranks > 1 else ())


def direct_all_gather(num_ranks: int, payload_bytes: float) -> Plan:
    """Every rank sends its part of `payload_bytes` to all others at once."""
    return direct_all_to_all(num_ranks, payload_bytes)


def dissemination_barrier(num_ranks: int) -> Plan:
    """Rank i tells rank i + 2^k at step k."""
    reaches = [2**k for k in range((num_ranks - 1).bit_length())]
    steps = [step((i, (i + reach) % num_ranks, 0.0) for i in range(num_ranks)) for reach in reaches]
    return Plan(num_ranks, tuple((one, 1) for one in steps))


def direct_gather(num_ranks: int, payload_bytes: float, root: int = 0) -> Plan:
    """All send their part of `payload_bytes` to the root at once."""
    part = payload_bytes / num_ranks
    once = step((i, root, part) for i in range(num_ranks) if i != root)
    return Plan(num_ranks, ((once, 1),) if num_ranks > 1 else ())


def direct_scatter(num_ranks: int, payload_bytes: float, root: int = 0) -> Plan:
    """The root sends every rank its part of `payload_bytes` at once."""
    return reverse(direct_gather(num_ranks, payload_bytes, root))


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


def reverse(plan: Plan) -> Plan:
    """All transfers the other way, the last first."""
    return replace(plan, rounds=tuple((backwards(one), times) for one, times in reversed(plan.rounds)))


def one_by_one(num_ranks: int, *parts: Plan) -> Plan:
    """Plans of the same ranks, one after the other."""
    return Plan(num_ranks, tuple(row for plan in parts for row in plan.rounds))


def _around_the_ring(num_ranks: int, payload_bytes: float, num_steps: int) -> Plan:
    ranks = np.arange(num_ranks)
    once = Step(ranks, (ranks + 1) % num_ranks, np.full(num_ranks, payload_bytes / num_ranks))
    return Plan(num_ranks, ((once, num_steps),) if num_steps else ())
