"""Matrix completion: find L and R so that L_u . R_v is Z_uv where it is known, and predict where it is not.

    f(L, R) = 1/n sum over known (u, v) of (L_u . R_v - Z_uv)^2 / 2  +  l2/2 (|L|^2 + |R|^2)

The second problem of Hogwild! (Niu, Recht, Re, Wright, NIPS 2011, section 2, equation 5), divided by 2n: its mu is
2 n l2. As there, the regulariser is split over the known entries, so that each touches no more than L_u and R_v: entry
(u, v) has the share l2/2 (r_u |L_u|^2 + r_v |R_v|^2) with r_u = n / entries of user u. Jellyfish (Recht, Re,
Mathematical Programming Computation 2013) solves the same problem without conflicts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import ClassVar

import numpy as np
import torch
from torch import nn
from torch.nn.functional import embedding

from harness import datasets, ratings
from harness.batch import Samples
from harness.errors import UserError, require
from harness.kernels.factorization import FactorizationKernel, predictions
from harness.problems.base import Problem
from harness.problems.synthetic import low_rank_ratings
from harness.ratings import Ratings

_START = 0.1  # standard deviation of the initial L_u . R_v: small, but not so small that learning takes long to begin


class FactorModel(nn.Module):
    """L and R, normal and small: parameters `users`, shape (users, rank), and `items`, shape (items, rank)."""

    def __init__(
        self, num_users: int, num_items: int, rank: int, dtype: torch.dtype, device: torch.device, seed: int
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        scale = (_START / rank**0.5) ** 0.5
        both = scale * torch.randn(num_users + num_items, rank, generator=generator, dtype=dtype)
        self.users = nn.Parameter(both[:num_users].to(device, copy=True))
        self.items = nn.Parameter(both[num_users:].to(device, copy=True))

    def forward(self, users: torch.Tensor, items: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """L_u and R_v of a batch, shape (batch, rank) each."""
        return embedding(users, self.users), embedding(items, self.items)


@dataclass(frozen=True)
class MatrixCompletion(Problem):
    """Low-rank factors of a matrix of ratings.

    Users and items are numbered by the training set; held-out ratings of those it lacks are left out, since nothing is
    known about them.

    Args:
        path: ratings (see `harness.ratings`); None for synthetic ones.
        download: fetch what is not on this computer.
        center: subtract the mean of the training ratings from all ratings of a file (synthetic ones have mean 0).
        test_fraction: share of ratings held out, in [0, 1).
        rank: columns of L and R, >= 1.
        l2: factor of (|L|^2 + |R|^2) / 2 in the objective, >= 0.
        synthetic_users: rows of the planted matrix where there is no `path`, >= 2.
        synthetic_items: its columns then, >= 2.
        synthetic_ratings: entries known then, held-out ones included, in [2, users x items / 2].
        synthetic_rank: of the planted matrix then, >= 1.
        synthetic_noise: standard deviation of the noise then, >= 0; that of the planted entries is 1.
        synthetic_user_exponent: the user who rates the k-th most does so in proportion to k^-exponent, >= 0.
        synthetic_item_exponent: the same of items.
        seed: of the synthetic ratings, and of what is held out, >= 0.
    """

    loss_reads: ClassVar[tuple[str, ...]] = ("_sets", "rarity")

    path: str | None
    download: bool
    center: bool
    test_fraction: float
    rank: int
    l2: float
    synthetic_users: int
    synthetic_items: int
    synthetic_ratings: int
    synthetic_rank: int
    synthetic_noise: float
    synthetic_user_exponent: float
    synthetic_item_exponent: float
    seed: int

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.test_fraction < 1, "problem.test_fraction", "must be in [0, 1)", self.test_fraction)
        require(self.l2 >= 0, "problem.l2", "must be >= 0", self.l2)
        least = {"rank": 1, "synthetic_users": 2, "synthetic_items": 2, "synthetic_rank": 1, "synthetic_noise": 0}
        least |= {"synthetic_user_exponent": 0, "synthetic_item_exponent": 0, "seed": 0}
        for name, bound in least.items():
            require(getattr(self, name) >= bound, f"problem.{name}", f"must be >= {bound}", getattr(self, name))
        most = self.synthetic_users * self.synthetic_items // 2
        rule = f"must be in [2, synthetic_users x synthetic_items / 2 = {most}]"
        known = self.synthetic_ratings
        require(2 <= known <= most, "problem.synthetic_ratings", rule, known)

    @property
    def num_samples(self) -> int:
        """Ratings of the training set."""
        return len(self.values)

    @property
    def num_users(self) -> int:
        """Rows of L."""
        return self._sets[0]

    @property
    def num_items(self) -> int:
        """Rows of R."""
        return self._sets[1]

    @property
    def rows(self) -> torch.Tensor:
        """Rows of [L; R] that each training rating is of: u and num_users + v, int32, shape (samples, 2)."""
        return self._sets[2][0]

    @property
    def values(self) -> torch.Tensor:
        """Z of each training rating, of `dtype`, shape (samples,)."""
        return self._sets[2][1]

    @cached_property
    def rarity(self) -> torch.Tensor:
        """What the kernel takes a row's part of the regulariser by, shape (users + items,)."""
        return self.kernel.rarity

    @cached_property
    def kernel(self) -> FactorizationKernel:
        """Native per-sample SGD."""
        return FactorizationKernel(self.rows, self.values, self.num_users + self.num_items, self.rank, self.l2)

    def build_model(self, device: torch.device, seed: int) -> FactorModel:
        """Random factors, from the seed, on the CPU: equal on every device."""
        return FactorModel(self.num_users, self.num_items, self.rank, self.values.dtype, device, seed)

    def gather(self, samples: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Rows of [L; R] and ratings; where there is a regulariser, the rarity of these rows."""
        rows = self.rows[samples]  # (batch, 2)
        return rows, self.values[samples], *([self.rarity[rows]] if self.l2 else [])

    def loss(self, model: nn.Module, samples: Samples) -> torch.Tensor:
        """Half the mean squared error over the batch, and its share of the regulariser."""
        rows, values, *shares = self.rows_of(samples)
        left, right = model(rows[:, 0], rows[:, 1] - self.num_users)  # (batch, rank) each
        errors = (left * right).sum(1) - values  # (batch,)
        mean = 0.5 * errors.square().mean()
        if not shares:
            return mean
        return mean + 0.5 * self.l2 * (shares[0] * torch.stack([left, right], 1).square().sum(2)).sum(1).mean()

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """The objective; half the mean squared error, and its root, of held-out ratings if there are any."""
        return self.evaluate_ensemble([model])

    @torch.no_grad()
    def evaluate_ensemble(self, models: Sequence[nn.Module]) -> dict[str, float]:
        """Of the mean of the ratings that they predict."""
        each = [torch.cat([part.detach().cpu().reshape(-1) for part in model.parameters()]) for model in models]
        train, test = self._sets[2:]
        penalty = 0.5 * self.l2 * fmean(float(weights.double().square().sum()) for weights in each)
        metrics = {"train/loss": 0.5 * self._mean_square(each, *train) + penalty}
        if len(test[1]):
            square = self._mean_square(each, *test)
            metrics |= {"eval/loss": 0.5 * square, "eval/rmse": square**0.5}
        return metrics

    def data_version(self) -> str:
        """Size and time of change of the file."""
        if self.path is None:
            return ""
        stat = self._file.stat()
        return f"{stat.st_size} {stat.st_mtime_ns}"

    def _mean_square(self, each: Sequence[torch.Tensor], rows: torch.Tensor, values: torch.Tensor) -> float:
        predicted = torch.stack([predictions(rows, weights, self.rank).double() for weights in each])
        errors = predicted.mean(0) - values.double()
        return float(errors.square().mean())

    @cached_property
    def _file(self) -> Path:
        assert self.path is not None
        return datasets.find(self.path, self.download)

    @cached_property
    def _sets(self) -> tuple[int, int, tuple[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
        """Users, items, and the training and held-out ratings: rows of [L; R], and values."""
        train, test = self._split(self._generate() if self.path is None else ratings.read(self._file))
        mean = train.values.mean() if self.center and self.path is not None else 0.0
        users, items = (ratings.numbered(ids)[0] for ids in (train.users, train.items))
        test = test[np.isin(test.users, users) & np.isin(test.items, items)]
        train_set, test_set = (self._numbered(part, users, items, mean) for part in (train, test))
        return len(users), len(items), train_set, test_set

    def _split(self, known: Ratings) -> tuple[Ratings, Ratings]:
        held_out = round(self.test_fraction * len(known))
        if held_out == len(known):
            raise UserError(
                f"problem.test_fraction={self.test_fraction} leaves nothing of {len(known)} ratings: lower it"
            )
        chosen = np.zeros(len(known), bool)
        chosen[np.random.default_rng(self.seed).permutation(len(known))[:held_out]] = True
        return known[~chosen], known[chosen]

    def _numbered(
        self, part: Ratings, users: np.ndarray, items: np.ndarray, mean: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        columns = [np.searchsorted(users, part.users), len(users) + np.searchsorted(items, part.items)]
        rows = torch.from_numpy(np.stack(columns, axis=1).astype(np.int32))
        return rows, torch.from_numpy(part.values - mean).to(getattr(torch, self.dtype))

    def _generate(self) -> Ratings:
        return low_rank_ratings(
            self.synthetic_users,
            self.synthetic_items,
            self.synthetic_ratings,
            self.synthetic_rank,
            self.synthetic_noise,
            self.synthetic_user_exponent,
            self.synthetic_item_exponent,
            self.seed,
        )
