"""Who has which samples: rules that give every sample of the training set to one of several parts.

iid        equal parts of a permutation
by_label   samples sorted by label and cut into shards, of which every part has a few (McMahan et al., AISTATS 2017,
           section 3)
dirichlet  every label's samples are divided in proportions drawn from Dirichlet(alpha) (Yurochkin et al., ICML 2019;
           Hsu, Qi and Brown, arXiv:1909.06335): the smaller alpha, the fewer labels a part has

Each returns the samples of every part, int32, together all of them.
"""

import numpy as np

from harness.errors import UserError
from harness.problems.base import Problem

_STREAM = 7_368_787  # tells these random numbers from others of the same seed


def iid(num_samples: int, num_parts: int, seed: int) -> list[np.ndarray]:
    """Sizes differ by one at most."""
    return np.array_split(_random(seed).permutation(num_samples).astype(np.int32), num_parts)


def by_label(labels: np.ndarray, num_parts: int, shards: int, seed: int) -> list[np.ndarray]:
    """Shards of equal size, dealt at random.

    Args:
        labels: of every sample.
        shards: per part, >= 1.
    """
    cut = np.array_split(np.argsort(labels, kind="stable").astype(np.int32), num_parts * shards)
    dealt = _random(seed).permutation(len(cut)).reshape(num_parts, shards)
    return [np.concatenate([cut[shard] for shard in own]) for own in dealt]


def dirichlet(labels: np.ndarray, num_parts: int, alpha: float, seed: int) -> list[np.ndarray]:
    """Parts of different sizes, some perhaps empty.

    Args:
        labels: of every sample.
        alpha: concentration, > 0; large for equal shares of every label.
    """
    random = _random(seed)
    parts: list[list[np.ndarray]] = [[] for _ in range(num_parts)]
    for label in np.unique(labels):
        own = random.permutation(np.flatnonzero(labels == label).astype(np.int32))
        ends = np.cumsum(random.dirichlet([alpha] * num_parts))[:-1] * len(own)
        for part, samples in zip(parts, np.split(own, np.round(ends).astype(int)), strict=True):
            part.append(samples)
    return [np.concatenate(part) for part in parts]


def labels_of(problem: Problem, option: str, instead: str) -> np.ndarray:
    """Of every sample of the training set.

    Args:
        option: as the user typed it, which needs them.
        instead: what would do without.

    Raises:
        UserError: if the problem has none.
    """
    if problem.labels is None:
        name = type(problem).__name__
        raise UserError(f"{option} needs a label of every sample, which {name} lacks: use {instead}")
    return problem.labels.numpy(force=True)


def _random(seed: int) -> np.random.Generator:
    return np.random.default_rng([seed, _STREAM])
