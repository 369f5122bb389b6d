"""Synthetic data: sparse rows, ratings, and text.

Sparse rows have the shape of RCV1 (Lewis, Yang, Rose, Li, JMLR 2004): text, as term weights.

Feature popularity follows a log-uniform law, P(k) = log(1 + 1/k) / log(d + 1) for rank k = 1 .. d, the integer form of
Zipf's, or is the same for all; values are a lognormal term frequency times log(1 + 1/q), q being the probability of
the feature in a row; rows have norm 1. Ranks are scattered over feature numbers, so that hot features do not share
cache lines. Labels are signs of a planted model, some of them flipped; its weights are normal with variance q at one
feature in ten, zero elsewhere.

Ratings are entries of a planted matrix L R' whose entries have variance 1, plus noise. Users and items are drawn from
power laws, P(k) ~ k^-exponent for rank k, independently, until as many pairs as wanted are distinct; ranks are
scattered over their numbers, so that the most popular do not share cache lines.

Text is a Markov chain of made-up words, each of which a few others may follow, with equal chances: per word, and the
space behind it, there are log2(successors) bits that no model can know before.
"""

import numpy as np
import torch

from harness.kernels.sparse_rows import SparseRows
from harness.ratings import Ratings

POPULARITIES = ("zipf", "uniform")
_PLANTED = 0.1  # share of features that matter
_SPREAD = 0.5  # of the logarithm of the term frequency


def sparse_rows(
    num_samples: int,
    num_features: int,
    nonzeros_per_sample: float,
    label_noise: float,
    seed: int,
    popularity: str = "zipf",
) -> tuple[SparseRows, torch.Tensor]:
    """Rows and labels, equal for equal arguments.

    Args:
        nonzeros_per_sample: mean over rows.
        label_noise: probability that a label is flipped.
        popularity: of features, one of `POPULARITIES`.

    Returns:
        rows with float64 values, and labels -1 or +1, float64, shape (num_samples,).
    """
    random = np.random.default_rng(seed)
    chances = np.full(num_features, 1 / num_features)  # of each feature in a draw
    if popularity == "zipf":
        chances = np.log1p(1 / np.arange(1, num_features + 1)) / np.log(num_features + 1)
        random.shuffle(chances)
    draws = _draws(chances, nonzeros_per_sample)
    presence = -np.expm1(draws * np.log1p(-chances))  # q, (features,)
    row, feature = _distinct(random, num_samples, chances, draws, popularity)
    values = np.log1p(1 / presence)[feature] * np.exp(_SPREAD * random.standard_normal(len(feature)))
    indptr = np.concatenate([[0], np.bincount(row, minlength=num_samples).cumsum()])
    rows = SparseRows(
        torch.from_numpy(indptr), torch.from_numpy(feature), torch.from_numpy(values), num_features
    ).normalized()
    return rows, _labels(random, rows, presence, label_noise)


def low_rank_ratings(
    users: int,
    items: int,
    num_ratings: int,
    rank: int,
    noise: float,
    user_exponent: float,
    item_exponent: float,
    seed: int,
) -> Ratings:
    """Ratings, equal for equal arguments, in random order; a user or an item may have none.

    Args:
        num_ratings: <= users * items / 2, so that pairs are soon distinct.
        rank: of the planted matrix.
        noise: standard deviation of what is added to it.
        user_exponent: of the power law of users.
    """
    random = np.random.default_rng(seed)
    laws = [_power_law(random, users, user_exponent), _power_law(random, items, item_exponent)]
    pairs = np.empty(0, np.int64)
    while len(pairs) < num_ratings:
        user, item = (random.choice(len(law), num_ratings, p=law) for law in laws)
        pairs = np.sort(np.concatenate([pairs, user * items + item]))
        pairs = pairs[np.diff(pairs, prepend=-1) > 0]
    user, item = np.divmod(random.permutation(pairs)[:num_ratings], items)
    left, right = (random.standard_normal((count, rank)) for count in (users, items))
    values = np.einsum("nk,nk->n", left[user], right[item]) / np.sqrt(rank)
    return Ratings(user, item, values + noise * random.standard_normal(num_ratings))


def markov_text(num_characters: int, num_words: int, successors: int, seed: int) -> str:
    """Words of 2 to 8 letters with spaces between them; equal for equal arguments.

    Args:
        num_words: distinct words, of which not all need occur.
        successors: of each word, <= num_words.
    """
    random = np.random.default_rng(seed)
    lexicon: dict[str, None] = {}
    while len(lexicon) < num_words:
        letters = random.integers(ord("a"), ord("z") + 1, random.integers(2, 9))
        lexicon[bytes(letters.astype(np.uint8)).decode()] = None
    words, follow = list(lexicon), [random.permutation(num_words)[:successors].tolist() for _ in range(num_words)]
    word, length, text = 0, 0, []
    for choice in random.integers(successors, size=num_characters).tolist():
        word = follow[word][choice]
        text.append(words[word])
        length += len(words[word]) + 1
        if length > num_characters:
            break
    return " ".join(text)[:num_characters]


def _power_law(random: np.random.Generator, count: int, exponent: float) -> np.ndarray:
    weights = np.arange(1, count + 1) ** -float(exponent)
    random.shuffle(weights)
    return weights / weights.sum()


def _draws(chances: np.ndarray, nonzeros: float) -> int:
    """Draws with replacement whose expected number of distinct features, sum 1 - (1 - p)^draws, is `nonzeros`."""
    log_miss = np.log1p(-chances)
    low, high = 0, 1
    while -np.expm1(high * log_miss).sum() < nonzeros:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if -np.expm1(middle * log_miss).sum() < nonzeros else (low, middle)
    return high


def _distinct(
    random: np.random.Generator, num_samples: int, chances: np.ndarray, draws: int, popularity: str
) -> list[np.ndarray]:
    """Draw features row by row and drop repeats: row and feature of each nonzero, sorted, shape (nonzeros,) each."""
    num_features = len(chances)
    by_rank = np.argsort(-chances).astype(np.int32)
    uniform = random.random((num_samples, draws))
    if popularity == "zipf":
        rank = np.exp(uniform * np.log(num_features + 1)).astype(np.int32) - 1  # from 0
    else:
        rank = (uniform * num_features).astype(np.int32)
    feature = by_rank[np.minimum(rank, num_features - 1)]  # (samples, draws)
    feature.sort(axis=1)
    new = np.ones(feature.shape, dtype=bool)
    new[:, 1:] = feature[:, 1:] != feature[:, :-1]
    return [np.nonzero(new)[0], feature[new]]


def _labels(random: np.random.Generator, rows: SparseRows, presence: np.ndarray, noise: float) -> torch.Tensor:
    matters = random.random(len(presence)) < _PLANTED
    planted = matters * np.sqrt(presence) * random.standard_normal(len(presence))
    margins = rows.margins(torch.from_numpy(planted)).numpy()
    flip = np.where(random.random(len(rows)) < noise, -1.0, 1.0)
    return torch.from_numpy(np.where(margins >= 0, flip, -flip))
