"""Linear models on sparse rows, with two classes: the data, the model and the evaluation that all losses share."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import ClassVar

import torch
from torch import nn
from torch.nn.functional import embedding_bag

from harness import datasets
from harness.batch import Layout, Samples
from harness.errors import UserError, require
from harness.kernels.sparse_linear import SparseLinearKernel
from harness.kernels.sparse_rows import SparseRows
from harness.problems.base import Problem
from harness.problems.synthetic import POPULARITIES, sparse_rows


class LinearModel(nn.Module):
    """x -> x . w, from zero: one parameter `weight`, shape (features, 1)."""

    def __init__(self, num_features: int, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_features, 1, dtype=dtype, device=device))

    def forward(self, indices: torch.Tensor, values: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        """Margins of a batch of rows as `SparseRows.gather` gives them, shape (batch,)."""
        return embedding_bag(indices, self.weight, offsets, mode="sum", per_sample_weights=values).squeeze(1)


@dataclass(frozen=True)
class SparseLinear(Problem):
    """A linear model on sparse rows: f(w) = 1/n sum_i l(x_i . w, y_i) + l2/2 |w|^2, y_i = -1 or +1.

    Args:
        path: training set, LIBSVM text (see `harness.datasets`); None for synthetic rows.
        test_path: test set; None to hold out the last rows of the training set.
        test_fraction: share of rows held out where there is no `test_path`, in [0, 1).
        download: fetch what is not on this computer.
        normalize: divide each row by its Euclidean norm (synthetic rows have norm 1).
        l2: factor of |w|^2 / 2 in the objective, >= 0.
        synthetic_samples: rows generated where there is no `path`, held-out ones included, >= 2.
        synthetic_features: length of the model then, >= 2.
        synthetic_nonzeros_per_sample: mean over rows then, in [1, synthetic_features / 2].
        synthetic_popularity: of features then, zipf (as in text) or uniform.
        synthetic_label_noise: probability that a label is flipped then, in [0, 0.5].
        seed: of the synthetic rows, >= 0.
    """

    loss_reads: ClassVar[tuple[str, ...]] = ("rows", "labels")

    path: str | None
    test_path: str | None
    test_fraction: float
    download: bool
    normalize: bool
    l2: float
    synthetic_samples: int
    synthetic_features: int
    synthetic_nonzeros_per_sample: float
    synthetic_popularity: str
    synthetic_label_noise: float
    seed: int

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.test_fraction < 1, "problem.test_fraction", "must be in [0, 1)", self.test_fraction)
        require(self.l2 >= 0, "problem.l2", "must be >= 0", self.l2)
        if self.path is None:
            require(self.test_path is None, "problem.test_path", "needs problem.path", self.test_path)
        synthetic = "problem.synthetic_"
        samples, features = self.synthetic_samples, self.synthetic_features
        nonzeros, noise = self.synthetic_nonzeros_per_sample, self.synthetic_label_noise
        require(samples >= 2, synthetic + "samples", "must be >= 2", samples)
        require(features >= 2, synthetic + "features", "must be >= 2", features)
        rule = f"must be in [1, synthetic_features / 2 = {features / 2:g}]"
        require(1 <= nonzeros <= features / 2, synthetic + "nonzeros_per_sample", rule, nonzeros)
        rule = f"must be one of {', '.join(POPULARITIES)}"
        known = self.synthetic_popularity
        require(known in POPULARITIES, synthetic + "popularity", rule, known)
        require(0 <= noise <= 0.5, synthetic + "label_noise", "must be in [0, 0.5]", noise)
        require(self.seed >= 0, "problem.seed", "must be >= 0", self.seed)

    @property
    @abstractmethod
    def loss_code(self) -> int:
        """Of the native kernel."""

    @abstractmethod
    def pointwise(self, margins: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """l(m, y) of each sample, shape (batch,), differentiable."""

    @cached_property
    def rows(self) -> SparseRows:
        """The training set."""
        return self._sets[0][0]

    @cached_property
    def labels(self) -> torch.Tensor:
        """-1 or +1, of `dtype`, shape (samples,)."""
        return self._sets[0][1]

    @cached_property
    def kernel(self) -> SparseLinearKernel:
        """Native per-sample SGD."""
        return SparseLinearKernel(self.rows, self.labels, self.loss_code, self.l2)

    @property
    def num_samples(self) -> int:
        """Size of the training set."""
        return len(self.rows)

    def build_model(self, device: torch.device, seed: int) -> LinearModel:
        """Zeros, whatever the seed."""
        return LinearModel(self.rows.num_features, self.rows.values.dtype, device)

    def gather(self, samples: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Rows, as `SparseRows.gather` gives them, and labels."""
        return *self.rows.gather(samples), self.labels[samples]

    def layout(self, samples: torch.Tensor) -> Layout:
        """By the lengths of the rows; computed by numpy, which no meter sees."""
        indptr, numbers = self.rows.indptr.numpy(force=True), samples.numpy(force=True)
        nonzeros = int((indptr[numbers + 1] - indptr[numbers]).sum())
        indices, values, offsets, labels = (row.dtype for row in self._first_row)
        size = len(samples)
        return [((nonzeros,), indices), ((nonzeros,), values), ((size,), offsets), ((size,), labels)]

    def part(self, rows: tuple[torch.Tensor, ...], start: int, stop: int) -> tuple[torch.Tensor, ...]:
        """Offsets of what is left begin at 0."""
        indices, values, offsets, labels = rows
        begin = int(offsets[start])
        end = int(offsets[stop]) if stop < len(offsets) else len(indices)
        return indices[begin:end], values[begin:end], offsets[start:stop] - begin, labels[start:stop]

    def loss(self, model: nn.Module, samples: Samples) -> torch.Tensor:
        """Mean of l over the batch, and the regulariser."""
        *rows, labels = self.rows_of(samples)
        mean = self.pointwise(model(*rows), labels).mean()
        return mean + 0.5 * self.l2 * next(model.parameters()).square().sum() if self.l2 else mean

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """The objective over the training set; mean of l, and accuracy, on the test set if there is one."""
        return self.evaluate_ensemble([model])

    def together(self, margins: torch.Tensor) -> torch.Tensor:
        """The margins of the mean prediction, shape (batch,), of those of several models, shape (models, batch)."""
        return margins.mean(0)

    @torch.no_grad()
    def evaluate_ensemble(self, models: Sequence[nn.Module]) -> dict[str, float]:
        """Of the mean of their predictions."""
        each = [next(model.parameters()).detach().cpu().view(-1) for model in models]
        (rows, labels), *tests = self._sets
        penalty = 0.5 * self.l2 * fmean(float(weights.double().square().sum()) for weights in each)
        metrics = {"train/loss": self._mean_loss(self._margins(rows, each), labels) + penalty}
        for test_rows, test_labels in tests:
            margins = self._margins(test_rows, each)
            metrics["eval/loss"] = self._mean_loss(margins, test_labels)
            metrics["eval/accuracy"] = float(((margins >= 0) == (test_labels > 0)).double().mean())
        return metrics

    def _margins(self, rows: SparseRows, each: Sequence[torch.Tensor]) -> torch.Tensor:
        margins = [rows.margins(weights) for weights in each]
        return margins[0] if len(margins) == 1 else self.together(torch.stack(margins).double())

    def _mean_loss(self, margins: torch.Tensor, labels: torch.Tensor) -> float:
        return float(self.pointwise(margins.double(), labels.double()).mean())

    def data_version(self) -> str:
        """Size and time of change of every file."""
        stats = [path.stat() for path in self._paths]
        return " ".join(f"{stat.st_size} {stat.st_mtime_ns}" for stat in stats)

    @cached_property
    def _sets(self) -> list[tuple[SparseRows, torch.Tensor]]:
        """The training set, and the test set if there is one: rows and labels."""
        dtype = getattr(torch, self.dtype)
        return [(rows.to(dtype), labels.to(dtype)) for rows, labels in self._read() if len(rows)]

    def _read(self) -> list[tuple[SparseRows, torch.Tensor]]:
        if self.path is None:
            return self._split(*self._generate())
        sets = [
            (rows, datasets.signs(labels, path))
            for (rows, labels), path in zip(datasets.read(self._paths), self._paths, strict=True)
        ]
        if self.normalize:
            sets = [(rows.normalized(), labels) for rows, labels in sets]
        return sets if len(sets) == 2 else self._split(*sets[0])

    @cached_property
    def _paths(self) -> list[Path]:
        given = [("problem.path", self.path), ("problem.test_path", self.test_path)]
        return [datasets.find(path, self.download, field) for field, path in given if path is not None]

    def _generate(self) -> tuple[SparseRows, torch.Tensor]:
        return sparse_rows(
            self.synthetic_samples,
            self.synthetic_features,
            self.synthetic_nonzeros_per_sample,
            self.synthetic_label_noise,
            self.seed,
            self.synthetic_popularity,
        )

    def _split(self, rows: SparseRows, labels: torch.Tensor) -> list[tuple[SparseRows, torch.Tensor]]:
        held_out = round(self.test_fraction * len(rows))
        train = len(rows) - held_out
        if not train:
            raise UserError(f"problem.test_fraction={self.test_fraction} leaves nothing of {len(rows)} rows: lower it")
        return [(rows.part(0, train), labels[:train]), (rows.part(train, len(rows)), labels[train:])]
