"""Rings over hosts of several ranks: as many at once as a host has ranks, each of which leaves it elsewhere.

Ring c goes through all ranks of a host from its rank c on, and from the last of them to rank c of the next host, by
that one's rail. So all network cards are in use, and where hosts are alike all ranks do the same: of what a rank sends
in a step, 1 of g parts crosses, and the others stay inside. (NCCL makes such rings, its channels, where hosts have
several cards.)
"""

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np

from hardware.simulated.network.plans import Plan, Step


def on_rails(ring: Plan, hosts: np.ndarray) -> Plan:
    """The same ring in as many as the host with fewest ranks has; with one such rank, or one host, as it is.

    Args:
        ring: every step of which is a part to everybody's next.
        hosts: of each rank, shape (ranks,).
    """
    groups = [np.flatnonzero(hosts == host).tolist() for host in dict.fromkeys(hosts.tolist())]
    rings = min(map(len, groups))
    if 1 in (rings, len(groups)):
        return ring
    edges = Counter[tuple[int, int]]()  # how many rings go from one rank to another
    for first in range(rings):
        for group, after in zip(groups, [*groups[1:], groups[0]], strict=True):
            edges.update(pairwise([*group[first:], *group[:first], after[first]]))
    sources, destinations = np.array(list(edges)).T
    share = np.array(list(edges.values())) / rings
    rounds = tuple((Step(sources, destinations, one.payload_bytes[0] * share), times) for one, times in ring.rounds)
    return replace(ring, rounds=rounds, rings=rings)
