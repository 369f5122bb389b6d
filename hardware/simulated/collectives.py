"""Collectives as plans: who sends how many bytes to whom at each step. Pure; executed elsewhere.

    p ranks, n bytes, alpha latency_s, beta = 1 / bandwidth         time on an idle switch
    ring all-reduce                                                 2(p-1) alpha + 2n(p-1)/p beta
    ring all-gather, ring reduce-scatter, pairwise all-to-all       (p-1) alpha + n(p-1)/p beta
    binomial broadcast and reduce                                   ceil(lg p) (alpha + n beta)
    direct gather and scatter                                       alpha + n(p-1)/p beta
    dissemination barrier                                           ceil(lg p) alpha

(Thakur, Rabenseifner, Gropp, IJHPCA 2005, sections 4 and 5; barrier: Hensgen, Finkel, Manber, IJPP 1988.)
Steps are synchronous: a step begins when the one before it has ended everywhere. Chunks are of n/p bytes, fractions of
a byte included, so that the closed forms hold for every p. One rank sends nothing.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import repeat
from typing import NamedTuple

import numpy as np


class Transfer(NamedTuple):
    """`payload_bytes` from rank `source` to rank `destination`."""

    source: int
    destination: int
    payload_bytes: float


@dataclass(frozen=True)
class Step:
    """Transfers that begin together."""

    transfers: tuple[Transfer, ...]

    @cached_property
    def sent(self) -> tuple[np.ndarray, np.ndarray]:
        """Ranks that send, and the bytes each of them sends; shapes (senders,)."""
        return _sum_by_rank((t.source, t.payload_bytes) for t in self.transfers)

    @cached_property
    def received(self) -> tuple[np.ndarray, np.ndarray]:
        """Ranks that receive, and the bytes each of them receives; shapes (receivers,)."""
        return _sum_by_rank((t.destination, t.payload_bytes) for t in self.transfers)


Plan = Callable[[int, float, int], Iterator[Step]]  # (ranks, bytes, root) -> steps


def ring_all_reduce(num_ranks: int, payload_bytes: float, root: int = 0) -> Iterator[Step]:
    """Reduce-scatter, then all-gather, each once around the ring.

    >>> len(list(ring_all_reduce(3, 6.0))), next(ring_all_reduce(2, 6.0)).transfers[0]
    (4, Transfer(source=0, destination=1, payload_bytes=3.0))
    """
    return _around_the_ring(num_ranks, payload_bytes, 2 * (num_ranks - 1))


def ring_all_gather(num_ranks: int, payload_bytes: float, root: int = 0) -> Iterator[Step]:
    """Every rank's part of `payload_bytes` travels once around the ring."""
    return _around_the_ring(num_ranks, payload_bytes, num_ranks - 1)


def ring_reduce_scatter(num_ranks: int, payload_bytes: float, root: int = 0) -> Iterator[Step]:
    """Partial sums travel once around the ring."""
    return _around_the_ring(num_ranks, payload_bytes, num_ranks - 1)


def pairwise_all_to_all(num_ranks: int, payload_bytes: float, root: int = 0) -> Iterator[Step]:
    """At step k rank i sends its part for rank i + k; `payload_bytes` is what one rank holds."""
    for k in range(1, num_ranks):
        yield Step(tuple(Transfer(i, (i + k) % num_ranks, payload_bytes / num_ranks) for i in range(num_ranks)))


def binomial_broadcast(num_ranks: int, payload_bytes: float, root: int = 0) -> Iterator[Step]:
    """Every rank that has the payload passes it on: 1, 2, 4, ... ranks have it."""
    reach = 1
    while reach < num_ranks:
        pairs = [(i, i + reach) for i in range(min(reach, num_ranks - reach))]
        yield Step(tuple(_seen_from(root, num_ranks, source, target, payload_bytes) for source, target in pairs))
        reach *= 2


def binomial_reduce(num_ranks: int, payload_bytes: float, root: int = 0) -> Iterator[Step]:
    """The broadcast backwards."""
    for step in reversed(list(binomial_broadcast(num_ranks, payload_bytes, root))):
        yield Step(tuple(Transfer(t.destination, t.source, t.payload_bytes) for t in step.transfers))


def dissemination_barrier(num_ranks: int, payload_bytes: float = 0.0, root: int = 0) -> Iterator[Step]:
    """Rank i tells rank i + 2^k at step k."""
    reach = 1
    while reach < num_ranks:
        yield Step(tuple(Transfer(i, (i + reach) % num_ranks, 0.0) for i in range(num_ranks)))
        reach *= 2


def direct_gather(num_ranks: int, payload_bytes: float, root: int = 0) -> Iterator[Step]:
    """All send their part of `payload_bytes` to the root at once."""
    if num_ranks > 1:
        part = payload_bytes / num_ranks
        yield Step(tuple(Transfer(i, root, part) for i in range(num_ranks) if i != root))


def direct_scatter(num_ranks: int, payload_bytes: float, root: int = 0) -> Iterator[Step]:
    """The root sends every rank its part of `payload_bytes` at once."""
    for step in direct_gather(num_ranks, payload_bytes, root):
        yield Step(tuple(Transfer(t.destination, t.source, t.payload_bytes) for t in step.transfers))


def _around_the_ring(num_ranks: int, payload_bytes: float, num_steps: int) -> Iterator[Step]:
    chunk = payload_bytes / num_ranks
    step = Step(tuple(Transfer(i, (i + 1) % num_ranks, chunk) for i in range(num_ranks)))
    return repeat(step, num_steps)


def _seen_from(root: int, num_ranks: int, source: int, target: int, payload_bytes: float) -> Transfer:
    return Transfer((source + root) % num_ranks, (target + root) % num_ranks, payload_bytes)


def _sum_by_rank(amounts: Iterator[tuple[int, float]]) -> tuple[np.ndarray, np.ndarray]:
    total: dict[int, float] = {}
    for rank, payload_bytes in amounts:
        total[rank] = total.get(rank, 0.0) + payload_bytes
    return np.fromiter(total, np.int64), np.fromiter(total.values(), np.float64)
