"""An all-reduce that crosses between hosts as little as it can."""

import numpy as np

from hardware.simulated.network import plans
from hardware.simulated.network.plans import Plan, Step, step


def hierarchical_all_reduce(hosts: np.ndarray, payload_bytes: float) -> Plan:
    """Reduce-scatter inside every host, all-reduce of each part between hosts, all-gather inside.

    Where hosts have different numbers of ranks, the first rank of each speaks for all of them instead.

    Args:
        hosts: of each rank, shape (ranks,).
    """
    groups = [np.flatnonzero(hosts == host) for host in dict.fromkeys(hosts.tolist())]
    sizes = {len(group) for group in groups}
    if len(sizes) > 1:
        return _through_the_first(len(hosts), groups, payload_bytes)
    (size,) = sizes
    inside = _rings(len(hosts), groups, payload_bytes / size, size - 1)
    rails = [np.array([group[i] for group in groups]) for i in range(size)]
    between = _rings(len(hosts), rails, payload_bytes / size / len(groups), 2 * (len(groups) - 1))
    return plans.one_by_one(len(hosts), inside, between, inside)


def _rings(num_ranks: int, groups: list[np.ndarray], chunk_bytes: float, num_steps: int) -> Plan:
    """Rings side by side."""
    if num_steps == 0:
        return Plan(num_ranks, ())
    sources = np.concatenate(groups)
    destinations = np.concatenate([np.roll(group, -1) for group in groups])
    return Plan(num_ranks, ((Step(sources, destinations, np.full(len(sources), chunk_bytes)), num_steps),))


def _through_the_first(num_ranks: int, groups: list[np.ndarray], payload_bytes: float) -> Plan:
    inward = step((int(i), int(group[0]), payload_bytes) for group in groups for i in group[1:])
    first = [np.array([group[0] for group in groups])]
    between = _rings(num_ranks, first, payload_bytes / len(groups), 2 * (len(groups) - 1))
    outward = plans.backwards(inward)
    return plans.one_by_one(num_ranks, Plan(num_ranks, ((inward, 1),)), between, Plan(num_ranks, ((outward, 1),)))
