"""All-reduces by exchanges between ever nearer or farther ranks; the ranks beyond a power of two are folded in."""

from collections.abc import Iterator

from hardware.simulated.network.plans import Plan, Step, step


def recursive_doubling(num_ranks: int, payload_bytes: float) -> Plan:
    """Exchange everything with the rank at distance 1, 2, 4, ...

    >>> [one.payload_bytes.tolist() for one in recursive_doubling(3, 8.0).steps()]
    [[8.0], [8.0, 8.0], [8.0]]
    """
    return _folded(num_ranks, payload_bytes, [(2**k, payload_bytes) for k in range(_inner(num_ranks).bit_length() - 1)])


def halving_doubling(num_ranks: int, payload_bytes: float) -> Plan:
    """Reduce-scatter by halving the vector and the distance, then all-gather by doubling both (Rabenseifner)."""
    inner = _inner(num_ranks)
    halving = [(inner >> k, payload_bytes / 2**k) for k in range(1, inner.bit_length())]
    return _folded(num_ranks, payload_bytes, halving + halving[::-1])


def _inner(num_ranks: int) -> int:
    """The largest power of two of ranks."""
    return 1 << (num_ranks.bit_length() - 1)


def _folded(num_ranks: int, payload_bytes: float, exchanges: list[tuple[int, float]]) -> Plan:
    """Exchanges (distance, bytes) among the inner ranks; each other one joins before and after."""
    inner = _inner(num_ranks)

    def steps() -> Iterator[Step]:
        if inner < num_ranks:
            yield step((i, i - inner, payload_bytes) for i in range(inner, num_ranks))
        for distance, size in exchanges:
            yield step((i, i ^ distance, size) for i in range(inner))
        if inner < num_ranks:
            yield step((i - inner, i, payload_bytes) for i in range(inner, num_ranks))

    return Plan(num_ranks, tuple((one, 1) for one in steps()))
