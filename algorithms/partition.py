"""Who has which samples: how the training set is split over clients.

iid        equal parts of a permutation
by_label   samples sorted by label and cut into shards, of which every client has a few (McMahan et al., AISTATS
           2017, section 3)
dirichlet  every label's samples are divided in proportions drawn from Dirichlet(alpha) (Yurochkin et al., ICML 2019;
           Hsu, Qi and Brown, arXiv:1909.06335): the smaller alpha, the fewer labels a client has
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from harness.errors import UserError, require
from harness.problems.base import Problem

_STREAM = 7_368_787  # tells these random numbers from others of the same seed


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
        return np.array_split(_random(seed).permutation(problem.num_samples).astype(np.int32), num_clients)


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
        by_label = np.argsort(_labels(problem, "by_label"), kind="stable").astype(np.int32)
        shards = np.array_split(by_label, num_clients * self.shards)
        dealt = _random(seed).permutation(len(shards)).reshape(num_clients, self.shards)
        return [np.concatenate([shards[shard] for shard in own]) for own in dealt]


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
        labels, random = _labels(problem, "dirichlet"), _random(seed)
        parts: list[list[np.ndarray]] = [[] for _ in range(num_clients)]
        for label in np.unique(labels):
            own = random.permutation(np.flatnonzero(labels == label).astype(np.int32))
            ends = np.cumsum(random.dirichlet([self.alpha] * num_clients))[:-1] * len(own)
            for part, samples in zip(parts, np.split(own, np.round(ends).astype(int)), strict=True):
                part.append(samples)
        return [np.concatenate(part) for part in parts]


def _random(seed: int) -> np.random.Generator:
    return np.random.default_rng([seed, _STREAM])


def _labels(problem: Problem, option: str) -> np.ndarray:
    """Of every sample of the training set.

    Raises:
        UserError: if the problem has none.
    """
    if problem.labels is None:
        name = type(problem).__name__
        raise UserError(f"algorithm/partition={option} needs a label of every sample, which {name} lacks: use iid")
    return problem.labels.numpy(force=True)
