"""Who has which samples: rules that give every sample of the training set to one of several parts.

IID        equal parts of a permutation
ByLabel    samples sorted by label and cut into shards, of which every part has a few (McMahan et al., AISTATS 2017,
           section 3)
Dirichlet  every label's samples are divided in proportions drawn from Dirichlet(alpha) (Yurochkin et al., ICML 2019;
           Hsu, Qi and Brown, arXiv:1909.06335): the smaller alpha, the fewer labels a part has

Parts are federated clients (`algorithm/partition`) or workers with data of their own (`local_data.py`).
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from harness.errors import UserError, require
from harness.problems.base import Problem

_STREAM = 7_368_787  # tells these random numbers from others of the same seed


@dataclass(frozen=True)
class Split(ABC):
    """A rule that gives every sample to one part."""

    option: ClassVar[str]  # as the user types it

    def check(self, group: str) -> None:  # noqa: B027 - some have no settings
        """Refuse settings.

        Args:
            group: whose settings they are, "data".

        Raises:
            UserError: naming the field.
        """

    def check_labels(self, problem: Problem, group: str, instead: str) -> None:  # noqa: B027 - some need none
        """Refuse a problem that lacks the labels which are needed.

        Args:
            group: in which the rule was chosen, "data".
            instead: the option that would do without.

        Raises:
            UserError: naming the option.
        """

    @abstractmethod
    def split(self, problem: Problem, num_parts: int, seed: int) -> list[np.ndarray]:
        """The samples of every part, int32, together all of them."""


@dataclass(frozen=True)
class IID(Split):
    """Equal parts of a permutation."""

    option: ClassVar[str] = "iid"

    def split(self, problem: Problem, num_parts: int, seed: int) -> list[np.ndarray]:
        """Their sizes differ by one at most."""
        return np.array_split(_random(seed).permutation(problem.num_samples).astype(np.int32), num_parts)


@dataclass(frozen=True)
class Labelled(Split, ABC):
    """A rule that goes by labels."""

    def check_labels(self, problem: Problem, group: str, instead: str) -> None:
        """There must be some."""
        if problem.labels is None:
            who = f"{group}={self.option}"
            raise UserError(f"{who} needs a label of every sample, which this problem lacks: use {instead}")

    def _labels(self, problem: Problem) -> np.ndarray:
        assert problem.labels is not None
        return problem.labels.numpy(force=True)


@dataclass(frozen=True)
class ByLabel(Labelled):
    """Samples sorted by label, in shards of equal size, dealt at random.

    Args:
        shards: per part, >= 1.
    """

    option: ClassVar[str] = "by_label"

    shards: int

    def check(self, group: str) -> None:
        """At least one shard."""
        require(self.shards >= 1, f"{group}.shards", "must be >= 1", self.shards)

    def split(self, problem: Problem, num_parts: int, seed: int) -> list[np.ndarray]:
        """Their sizes differ by a sample per shard at most."""
        order = np.argsort(self._labels(problem), kind="stable").astype(np.int32)
        cut = np.array_split(order, num_parts * self.shards)
        dealt = _random(seed).permutation(len(cut)).reshape(num_parts, self.shards)
        return [np.concatenate([cut[shard] for shard in own]) for own in dealt]


@dataclass(frozen=True)
class Dirichlet(Labelled):
    """Shares of every label drawn at random.

    Args:
        alpha: concentration, > 0; large for equal shares.
    """

    option: ClassVar[str] = "dirichlet"

    alpha: float

    def check(self, group: str) -> None:
        """A distribution."""
        require(self.alpha > 0, f"{group}.alpha", "must be > 0", self.alpha)

    def split(self, problem: Problem, num_parts: int, seed: int) -> list[np.ndarray]:
        """Parts of different sizes, some perhaps empty."""
        labels, random = self._labels(problem), _random(seed)
        parts: list[list[np.ndarray]] = [[] for _ in range(num_parts)]
        for label in np.unique(labels):
            own = random.permutation(np.flatnonzero(labels == label).astype(np.int32))
            ends = np.cumsum(random.dirichlet([self.alpha] * num_parts))[:-1] * len(own)
            for part, samples in zip(parts, np.split(own, np.round(ends).astype(int)), strict=True):
                part.append(samples)
        return [np.concatenate(part) for part in parts]


def _random(seed: int) -> np.random.Generator:
    return np.random.default_rng([seed, _STREAM])
