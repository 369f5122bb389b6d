"""Ratings: known entries of a matrix of users and items, and the text files they are read from.

A file has a line per rating, "user item rating", separated by tabs, spaces, commas or ::, with anything behind it and a
header or none: the formats of MovieLens (Harper and Konstan, ACM TiiS 2015): `u.data`, `ratings.dat`, `ratings.csv`.
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from harness.datasets import read_text
from harness.errors import UserError

_SEPARATORS = ("::", ",", "\t")
_WHAT = "user, item and rating as numbers, the ids whole, separated by tabs, spaces, commas or ::"


@dataclass(frozen=True)
class Ratings:
    """Known entries of a matrix.

    Args:
        users: int64, shape (ratings,).
        items: int64, shape (ratings,).
        values: float64, shape (ratings,).
    """

    users: np.ndarray
    items: np.ndarray
    values: np.ndarray

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, which: np.ndarray) -> "Ratings":
        return Ratings(self.users[which], self.items[which], self.values[which])


def read(path: Path) -> Ratings:
    """The ratings of a file, with the ids that stand there.

    Raises:
        UserError: if it cannot be read or is empty, if a line is no rating, or if a user rates an item twice; naming
            file and line.
    """
    text = read_text(path)
    first = text.split("\n", 1)[0]
    separator = next((each for each in _SEPARATORS if each in first), None)
    header = _is_header(path, first, separator)
    if not text[len(first) * header :].strip():
        raise UserError(f"{path} holds no ratings: fetch or convert it again")
    table = _table(text, separator, header)
    if table is None or not (np.isfinite(table).all() and (table[:, :2] % 1 == 0).all()):
        raise _refusal(path, text, separator, header)
    ratings = Ratings(table[:, 0].astype(np.int64), table[:, 1].astype(np.int64), table[:, 2])
    _check_pairs(path, ratings)
    return ratings


def numbered(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ids as numbers from 0 without gaps.

    Returns:
        the ids, ascending, shape (distinct,), and the number of each, int64, shape (len(ids),).

    >>> numbered(np.array([7, 3, 7]))
    (array([3, 7]), array([1, 0, 1]))
    """
    return np.unique(ids, return_inverse=True)


def _is_header(path: Path, first: str, separator: str | None) -> bool:
    if any(letter.isdigit() for letter in first) or not first.strip():
        return False
    names = first.lower().split(separator)
    if len(names) < 3 or "user" not in names[0] or "rating" not in names[2]:
        raise UserError(f"{path} line 1: must be like userId,movieId,rating where it is a header, got {first[:60]!r}")
    return True


def _table(text: str, separator: str | None, header: bool) -> np.ndarray | None:
    """The first three columns, shape (ratings, 3); None if they are not numbers."""
    if separator == "::":  # numpy reads separators of one character
        text, separator = text.replace("::", "\t"), "\t"
    lines = io.StringIO(text)
    try:
        return np.loadtxt(lines, delimiter=separator, skiprows=int(header), usecols=(0, 1, 2), comments=None, ndmin=2)
    except ValueError:
        return None


def _rating(line: str, separator: str | None) -> tuple[float, float, float] | None:
    """User, item and rating of a line; None if it is none."""
    try:
        user, item, value = (float(part) for part in line.split(separator)[:3])
    except ValueError:
        return None
    whole = np.isfinite([user, item, value]).all() and user % 1 == item % 1 == 0
    return (user, item, value) if whole else None


def _refusal(path: Path, text: str, separator: str | None, header: bool) -> UserError:
    for number, line in _lines(text, header):
        if _rating(line, separator) is None:
            return UserError(f"{path} line {number}: must be {_WHAT}, got {line[:60]!r}")
    return UserError(f"{path} cannot be read as ratings: must be {_WHAT} on every line")


def _lines(text: str, header: bool) -> Iterator[tuple[int, str]]:
    """Lines that are not blank, and their numbers from 1."""
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip() and number > header:
            yield number, line


def _check_pairs(path: Path, ratings: Ratings) -> None:
    items, item = numbered(ratings.items)
    pairs = numbered(ratings.users)[1] * len(items) + item
    distinct, first = np.unique(pairs, return_index=True)
    if len(distinct) < len(pairs):
        again = np.setdiff1d(np.arange(len(pairs)), first)[0]
        raise UserError(
            f"{path} has two ratings of item {ratings.items[again]} by user {ratings.users[again]}: keep one of them"
        )
