"""Data policies under which every worker has samples of its own, and visits only those.

    sharded    equal parts, drawn at random: all workers see the same distribution
    by_label   a few shards of the samples sorted by label: workers know different labels
    dirichlet  every label divided at random: how differently, `alpha` says

A worker goes through its own samples again and again, in a fresh permutation every time, which is a function of (seed,
rank, time). The budget is everybody's: synchronous workers take equal batches, whatever they have; asynchronous ones
claim the next batch as soon as they ask, so that a fast worker does more of its own samples. One worker has all.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from harness import splits
from harness.data import DataPolicy, Share
from harness.errors import UserError, require
from harness.problems.base import Problem
from harness.splits import IID, Split


@dataclass(frozen=True)
class LocalData(DataPolicy):
    """Every worker has samples of its own."""

    option: ClassVar[str]  # as the user types it
    remedy: ClassVar[str] = "use fewer workers (hardware.num_workers)"  # if a worker has no samples

    def __post_init__(self) -> None:
        super().__post_init__()
        rule = f"must be index or storage with {self.option}: permuting would copy all rows, and a worker has a few"
        require(self.order != "permuted", "data.order", rule, self.order)
        self.rule.check("data")

    @property
    @abstractmethod
    def rule(self) -> Split:
        """Who has which."""

    def share(self, num_samples: int, budget: int, rank: int, nodes: Sequence[int]) -> Share:
        """Of all rows those that are the worker's, alone; the budget is everybody's."""
        stream = (rank,) if len(nodes) > 1 else ()
        return Share(0, num_samples, workers=1, index=0, pool=0, budget=budget, stream=stream)

    def parts(self, problem: Problem, num_workers: int, seed: int) -> list[np.ndarray]:
        """The samples of every worker.

        Raises:
            UserError: if a worker has none, or the problem lacks the labels that are asked for.
        """
        self.rule.check_labels(problem, "data", "data=sharded")
        parts = [np.sort(part) for part in self.rule.split(problem, num_workers, seed)]
        for rank, part in enumerate(parts):
            if not len(part):
                raise UserError(
                    f"{self.option} leaves worker {rank} of {num_workers} without a sample of "
                    f"{problem.num_samples}: {self.remedy}"
                )
        return parts


@dataclass(frozen=True)
class Sharded(LocalData):
    """Equal parts of a permutation."""

    option: ClassVar[str] = "data=sharded"

    @property
    def rule(self) -> IID:
        """Equal parts."""
        return IID()


@dataclass(frozen=True)
class ByLabel(LocalData):
    """Samples sorted by label, in shards.

    Args:
        shards: per worker, >= 1.
    """

    option: ClassVar[str] = "data=by_label"

    shards: int

    @property
    def rule(self) -> splits.ByLabel:
        """Shards."""
        return splits.ByLabel(self.shards)

    @property
    def remedy(self) -> str:  # type: ignore[override]
        """Fewer shards."""
        return f"lower data.shards={self.shards}, or use fewer workers (hardware.num_workers)"


@dataclass(frozen=True)
class Dirichlet(LocalData):
    """Shares of every label drawn at random; workers have different numbers of samples.

    Args:
        alpha: concentration, > 0; large for equal shares.
    """

    option: ClassVar[str] = "data=dirichlet"

    alpha: float

    @property
    def rule(self) -> splits.Dirichlet:
        """Shares."""
        return splits.Dirichlet(self.alpha)

    @property
    def remedy(self) -> str:  # type: ignore[override]
        """More equal shares."""
        return f"raise data.alpha={self.alpha:g}, take another seed, or use fewer workers (hardware.num_workers)"
