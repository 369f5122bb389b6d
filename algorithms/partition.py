"""Who has which samples: how the training set is split over clients; the rules are those of `harness.splits`."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from harness import splits
from harness.errors import require
from harness.problems.base import Problem


@dataclass(frozen=True)
class Partition(ABC):
    """A rule that gives every sample to one client."""

    @abstractmethod
    def split(self, problem: Problem, num_clients: int, seed: int) -> list[np.ndarray]:
        """The samples of every client, int32, together all of them; a client may have none.

        Raises:
            UserError: where the problem has no labels, and they are asked for.
        """


@dataclass(frozen=True)
class IID(Partition):
    """Equal parts of a permutation."""

    def split(self, problem: Problem, num_clients: int, seed: int) -> list[np.ndarray]:
        """Their sizes differ by one at most."""
        return splits.iid(problem.num_samples, num_clients, seed)


@dataclass(frozen=True)
class ByLabel(Partition):
    """Samples sorted by label, in shards.

    Args:
        shards: per client, >= 1.
    """

    shards: int

    def __post_init__(self) -> None:
        require(self.shards >= 1, "algorithm.partition.shards", "must be >= 1", self.shards)

    def split(self, problem: Problem, num_clients: int, seed: int) -> list[np.ndarray]:
        """Shards of equal size, dealt at random."""
        return splits.by_label(_labels(problem, "by_label"), num_clients, self.shards, seed)


@dataclass(frozen=True)
class Dirichlet(Partition):
    """Shares of every label drawn at random.

    Args:
        alpha: concentration, > 0; large for equal shares.
    """

    alpha: float

    def __post_init__(self) -> None:
        require(self.alpha > 0, "algorithm.partition.alpha", "must be > 0", self.alpha)

    def split(self, problem: Problem, num_clients: int, seed: int) -> list[np.ndarray]:
        """Clients have different numbers of samples, some perhaps none."""
        return splits.dirichlet(_labels(problem, "dirichlet"), num_clients, self.alpha, seed)


def _labels(problem: Problem, option: str) -> np.ndarray:
    return splits.labels_of(problem, f"algorithm/partition={option}", "iid")
