"""Graphs of workers, for mixing: who sends to whom."""

from dataclasses import dataclass

import numpy as np

from algorithms.mixing.matrices import Mixing
from harness.errors import require


@dataclass(frozen=True)
class Ring(Mixing):
    """Everyone with the one before and the one after."""

    def receivers(self, num_workers: int, step: int) -> list[set[int]]:
        """Two each."""
        return [{(rank + hop) % num_workers for hop in (-1, 1)} - {rank} for rank in range(num_workers)]


@dataclass(frozen=True)
class Torus(Mixing):
    """Everyone with its neighbours in a grid whose ends meet, as square as the number of workers allows."""

    def notices(self, num_workers: int) -> list[str]:
        """Of a grid of one row."""
        if num_workers < 4 or _rows(num_workers) > 1:
            return []
        return [f"algorithm/mixing=torus of {num_workers} workers is one row of a grid: it is a ring"]

    def receivers(self, num_workers: int, step: int) -> list[set[int]]:
        """Four each, or fewer where the grid is narrow."""
        rows = _rows(num_workers)
        columns = num_workers // rows

        def near(rank: int) -> set[int]:
            row, column = divmod(rank, columns)
            beside = {row * columns + (column + hop) % columns for hop in (-1, 1)}
            return (beside | {(row + hop) % rows * columns + column for hop in (-1, 1)}) - {rank}

        return [near(rank) for rank in range(num_workers)]


@dataclass(frozen=True)
class Exponential(Mixing):
    """Everyone sends to those 1, 2, 4, ... further on: directed (Assran et al., ICML 2019, appendix A)."""

    def receivers(self, num_workers: int, step: int) -> list[set[int]]:
        """About log2 of the number of workers each."""
        hops = [2**power for power in range((num_workers - 1).bit_length())]
        return [{(rank + hop) % num_workers for hop in hops} for rank in range(num_workers)]


@dataclass(frozen=True)
class OnePeerExponential(Mixing):
    """Everyone sends to one other, 1, 2, 4, ... further on in turn: directed, and different at every step.

    With 2^n workers n steps average exactly (Assran et al., ICML 2019, appendix A; Ying et al., NeurIPS 2021, lemma 1).
    """

    def period(self, num_workers: int) -> int:
        """Log2 of the number of workers, rounded up."""
        return max(1, (num_workers - 1).bit_length())

    def receivers(self, num_workers: int, step: int) -> list[set[int]]:
        """One each."""
        return [{(rank + 2**step) % num_workers} - {rank} for rank in range(num_workers)]


@dataclass(frozen=True)
class Complete(Mixing):
    """Everyone with everyone."""

    def receivers(self, num_workers: int, step: int) -> list[set[int]]:
        """All others."""
        return [set(range(num_workers)) - {rank} for rank in range(num_workers)]


@dataclass(frozen=True)
class Star(Mixing):
    """Everyone with rank 0."""

    def receivers(self, num_workers: int, step: int) -> list[set[int]]:
        """Rank 0, or all others."""
        return [set(range(1, num_workers)), *({0} for _ in range(1, num_workers))]


@dataclass(frozen=True)
class RandomRegular(Mixing):
    """Everyone with equally many others, drawn by pairing ends of edges until that works (Steger and Wormald, 1999).

    Args:
        degree: neighbours of each worker, >= 2; so few workers that they have no more others are all connected.
        seed: of the draw, >= 0.
    """

    degree: int
    seed: int

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.degree >= 2, "algorithm.mixing.degree", "must be >= 2", self.degree)
        require(self.seed >= 0, "algorithm.mixing.seed", "must be >= 0", self.seed)

    def receivers(self, num_workers: int, step: int) -> list[set[int]]:
        """As many as `degree` says.

        Raises:
            UserError: if degree and number of workers are both odd: there is no such graph.
        """
        if num_workers <= self.degree + 1:
            return Complete(self.weighting).receivers(num_workers, step)
        rule = f"must be even with an odd number of workers ({num_workers})"
        require(num_workers * self.degree % 2 == 0, "algorithm.mixing.degree", rule, self.degree)
        random = np.random.default_rng((self.seed, num_workers, self.degree))
        while True:
            graph = _pair(num_workers, self.degree, random)
            if graph is not None and _is_connected(graph):
                return graph


def _rows(num_workers: int) -> int:
    """Of the grid that is as square as can be."""
    return max(rows for rows in range(1, num_workers + 1) if rows**2 <= num_workers and num_workers % rows == 0)


def _pair(num_workers: int, degree: int, random: np.random.Generator) -> list[set[int]] | None:
    """Pair the ends of edges at random, those that cannot be paired again and again; None where that is a dead end."""
    graph: list[set[int]] = [set() for _ in range(num_workers)]
    ends = np.repeat(np.arange(num_workers), degree)
    while len(ends):
        left = []
        for one, other in random.permutation(ends).reshape(-1, 2).tolist():
            if one == other or other in graph[one]:
                left += [one, other]
            else:
                graph[one].add(other)
                graph[other].add(one)
        if len(left) == len(ends):
            return None
        ends = np.array(left, dtype=int)
    return graph


def _is_connected(graph: list[set[int]]) -> bool:
    seen, reached = set(), {0}
    while reached:
        seen |= reached
        reached = {neighbour for rank in reached for neighbour in graph[rank]} - seen
    return len(seen) == len(graph)
