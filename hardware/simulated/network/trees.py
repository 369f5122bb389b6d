"""Plans along trees."""

from collections.abc import Iterator

from hardware.simulated.network import plans
from hardware.simulated.network.plans import Plan, step


def binomial_broadcast(num_ranks: int, payload_bytes: float, root: int = 0) -> Plan:
    """Every rank that has the payload passes it on: 1, 2, 4, ... ranks have it."""
    rounds = []
    for reach in _reaches(num_ranks):
        pairs = [(i, i + reach) for i in range(min(reach, num_ranks - reach))]
        rounds.append((step(((a + root) % num_ranks, (b + root) % num_ranks, payload_bytes) for a, b in pairs), 1))
    return Plan(num_ranks, tuple(rounds))


def binomial_reduce(num_ranks: int, payload_bytes: float, root: int = 0) -> Plan:
    """The broadcast backwards."""
    return plans.reverse(binomial_broadcast(num_ranks, payload_bytes, root))


def binomial_scatter(num_ranks: int, payload_bytes: float, root: int = 0) -> Plan:
    """Every rank that has parts passes the farther half of them on."""
    part, rounds = payload_bytes / num_ranks, []
    for reach in reversed(_reaches(num_ranks)):
        rows = [
            ((i + root) % num_ranks, (i + reach + root) % num_ranks, part * min(reach, num_ranks - i - reach))
            for i in range(0, num_ranks - reach, 2 * reach)
        ]
        rounds.append((step(rows), 1))
    return Plan(num_ranks, tuple(rounds))


def binomial_gather(num_ranks: int, payload_bytes: float, root: int = 0) -> Plan:
    """The scatter backwards."""
    return plans.reverse(binomial_scatter(num_ranks, payload_bytes, root))


def scatter_all_gather(num_ranks: int, payload_bytes: float, root: int = 0) -> Plan:
    """A broadcast: binomial scatter, then ring all-gather (van de Geijn)."""
    scatter = binomial_scatter(num_ranks, payload_bytes, root)
    return plans.one_by_one(num_ranks, scatter, plans.ring_all_gather(num_ranks, payload_bytes))


def binomial_all_reduce(num_ranks: int, payload_bytes: float) -> Plan:
    """Reduce to rank 0, then broadcast."""
    reduce = binomial_reduce(num_ranks, payload_bytes)
    return plans.one_by_one(num_ranks, reduce, plans.reverse(reduce))


def double_tree(num_ranks: int, payload_bytes: float, num_chunks: int) -> Plan:
    """Half of the payload up and down each of two binary trees, in chunks; a rank is inner in at most one of them.

    At step t the ranks of height h (0 is a leaf) send chunk t - h of their half to their parent, then all backwards.
    """
    size = payload_bytes / 2 / num_chunks
    first = {node: parent for node, parent in _parents(0, num_ranks, None) if parent is not None}
    second = {_mirrored(node, num_ranks): _mirrored(parent, num_ranks) for node, parent in first.items()}
    sends = []
    for parents in (first, second):
        heights = _heights(parents)
        sends += [(heights[node], node, parent) for node, parent in parents.items()]
    if not sends:
        return Plan(num_ranks, ())
    rounds = []
    for time in range(num_chunks + max(height for height, _, _ in sends)):
        rows = [(node, parent, size) for height, node, parent in sends if 0 <= time - height < num_chunks]
        rounds.append((step(rows), 1))
    up = Plan(num_ranks, tuple(rounds))
    return plans.one_by_one(num_ranks, up, plans.reverse(up))


def _reaches(num_ranks: int) -> list[int]:
    return [2**k for k in range((num_ranks - 1).bit_length())]


def _parents(begin: int, end: int, parent: int | None) -> Iterator[tuple[int, int | None]]:
    """The in-order binary tree of the ranks from `begin` to `end`: its inner ranks are odd if `begin` is even."""
    if begin < end:
        root = begin + (1 << ((end - begin).bit_length() - 1)) - 1
        yield root, parent
        yield from _parents(begin, root, root)
        yield from _parents(root + 1, end, root)


def _mirrored(rank: int, num_ranks: int) -> int:
    """The rank that has this one's place in the second tree: of other parity, but for one rank if they are odd."""
    return num_ranks - 1 - rank if num_ranks % 2 == 0 else (rank + 1) % num_ranks


def _heights(parents: dict[int, int]) -> dict[int, int]:
    heights: dict[int, int] = dict.fromkeys({*parents, *parents.values()}, 0)
    for node in parents:
        height, at = 0, node
        while at in parents:
            height, at = height + 1, parents[at]
            heights[at] = max(heights[at], height)
    return heights
