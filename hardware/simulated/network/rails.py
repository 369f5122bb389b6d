"""Rings over hosts of several ranks: as many at once as a host has ranks, each of which leaves it elsewhere.

Ring c goes through all ranks of a host from its rank c on, and from the last of them to rank c of the next host, by
that one's rail. So all network cards are in use, and all ranks do the same: of what a rank sends in a step, 1 of g
parts crosses, and the others stay inside. (NCCL makes such rings, its channels, where hosts have several cards.)
"""

from dataclasses import replace

import numpy as np

from hardware.simulated.network.plans import Plan, Step


def by_host(hosts: np.ndarray) -> np.ndarray | None:
    """The ranks of each host, shape (hosts, ranks); None where hosts have different numbers of them."""
    groups = [np.flatnonzero(hosts == host) for host in dict.fromkeys(hosts.tolist())]
    return np.stack(groups) if len({len(group) for group in groups}) == 1 else None


def on_rails(ring: Plan, hosts: np.ndarray) -> Plan:
    """The same ring in as many as a host has ranks; where hosts have different numbers of ranks, it is left as it is.

    Args:
        ring: every step of which is a part to everybody's next.
        hosts: of each rank, shape (ranks,).
    """
    groups = by_host(hosts)
    if groups is None or 1 in groups.shape:
        return ring
    inside, across = np.roll(groups, -1, 1), np.roll(groups, (-1, -1), (0, 1))
    sources, share = np.tile(groups.ravel(), 2), 1 / groups.shape[1]
    destinations = np.concatenate([inside.ravel(), across.ravel()])

    def side_by_side(one: Step) -> Step:
        parts = one.payload_bytes[0] * np.repeat([1 - share, share], groups.size)
        return Step(sources, destinations, parts)

    rounds = tuple((side_by_side(one), times) for one, times in ring.rounds)
    return replace(ring, rounds=rounds, rings=groups.shape[1])
