"""The Problem: what is minimised, on which data.

A toy problem, whole:

    @dataclass(frozen=True)
    class Mean(Problem):
        '''Find the mean of some numbers: f(w) = 1/2n sum (w - x_i)^2.'''

        numbers: list[float]

        @property
        def num_samples(self):
            return len(self.numbers)

        def build_model(self, device, seed):
            return nn.Linear(1, 1, bias=False, device=device)

        def loss(self, model, samples):
            x = torch.tensor(self.numbers, device=samples.device)[samples]
            return 0.5 * ((model.weight[0, 0] - x) ** 2).mean()

        def evaluate(self, model):
            return {"train/loss": float(self.loss(model, torch.arange(self.num_samples)))}
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Self

import torch
from torch import nn

from harness.batch import Batch, Layout, Samples
from harness.errors import require
from harness.kernels.base import Kernel


@dataclass(frozen=True)
class Problem(ABC):
    """What is minimised, on which data.

    Fields are the settings and decide identity (baselines are found by them). Data are loaded on first use and cached
    on the object, in torch tensors, so that they reach other processes through shared memory.

    Args:
        dtype: of model and data, one of `dtypes`.
        learning_rate: a good constant step of sequential SGD, > 0; the default of `algorithm.learning_rate`.
        minibatch_size: samples of a good minibatch, >= 1; the default of `algorithm.batch_size` of batched algorithms.
        minibatch_learning_rate: a good constant step of sequential SGD with such minibatches, > 0.
        target_loss: the default of `target.loss`.
    """

    loss_reads: ClassVar[tuple[str, ...]] = ()  # cached data of tensors, which `to` moves to a device
    dtypes: ClassVar[tuple[str, ...]] = ("float32", "float64")

    dtype: str
    learning_rate: float
    minibatch_size: int
    minibatch_learning_rate: float
    target_loss: float

    def __post_init__(self) -> None:
        rule = f"must be {', '.join(self.dtypes[:-1])} or {self.dtypes[-1]}"
        require(self.dtype in self.dtypes, "problem.dtype", rule, self.dtype)
        require(self.learning_rate > 0, "problem.learning_rate", "must be > 0", self.learning_rate)
        require(self.minibatch_size >= 1, "problem.minibatch_size", "must be >= 1", self.minibatch_size)
        field, step = "problem.minibatch_learning_rate", self.minibatch_learning_rate
        require(step > 0, field, "must be > 0", step)

    def to(self, device: torch.device) -> Self:
        """The same problem with the data that `loss` reads on a device, where its models live too."""
        if self.has_rows:
            self._first_row  # noqa: B018 - which is then known wherever the data are
        moved = copy.copy(self)
        moved.__dict__.update({name: _moved(getattr(self, name), device) for name in self.loss_reads})
        return moved

    @property
    @abstractmethod
    def num_samples(self) -> int:
        """Size of the training set; one epoch."""

    @property
    def is_fake(self) -> bool:
        """Whether its model has shapes and no values (torch's fake tensors), because no memory would hold them."""
        return False

    @property
    def tokens_per_sample(self) -> int | None:
        """Tokens that a sample's loss is the mean of, where there are any."""
        return None

    @property
    def flops_per_sample(self) -> float | None:
        """Floating-point operations of a forward and backward pass that the model asks for, where it says so."""
        return None

    def data_version(self) -> str:
        """What identifies the data beyond the settings, such as the time stamps of files; baselines depend on it."""
        return ""

    @abstractmethod
    def build_model(self, device: torch.device, seed: int) -> nn.Module:
        """The initial model; equal for equal seeds, on every worker."""

    @abstractmethod
    def loss(self, model: nn.Module, samples: Samples) -> torch.Tensor:
        """Mean loss over a batch.

        Args:
            samples: int32 or int64 indices into the training set, shape (batch,); or, if there is a method `gather`,
                rows that came by message: `rows_of` makes one of both, on the model's device.

        Returns:
            scalar, differentiable with respect to the model's parameters.
        """

    @abstractmethod
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """`train/loss`, the objective over all training data; `eval/*` where there is test data."""

    def evaluate_ensemble(self, models: Sequence[nn.Module]) -> dict[str, float]:
        """As `evaluate`, of the mean of what several models predict, each with an equal weight.

        Probabilities of classes where there are any (Lakshminarayanan et al., NIPS 2017, section 2.4), numbers
        otherwise; a regulariser counts as its mean.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say what the mean of several predictions is")

    def gather(self, samples: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The rows of a batch: all of the data that `loss` needs, samples along the first dimension of each tensor.

        What data servers send. Where the length of a row differs, `layout` and `part` must say so.
        """
        raise NotImplementedError(f"{type(self).__name__} has no method `gather`")

    @property
    def has_rows(self) -> bool:
        """Whether there is a method `gather`."""
        return type(self).gather is not Problem.gather

    def rows_of(self, samples: Samples) -> tuple[torch.Tensor, ...]:
        """The rows of a batch, gathered here or received."""
        return samples.rows if isinstance(samples, Batch) else self.gather(samples)

    def layout(self, samples: torch.Tensor) -> Layout:
        """Shapes and dtypes of `gather(samples)`, known without looking at these rows."""
        return [((len(samples), *row.shape[1:]), row.dtype) for row in self._first_row]

    def part(self, rows: tuple[torch.Tensor, ...], start: int, stop: int) -> tuple[torch.Tensor, ...]:
        """Of the rows of a batch those of samples start .. stop - 1 of it."""
        return tuple(row[start:stop] for row in rows)

    @cached_property
    def _first_row(self) -> tuple[torch.Tensor, ...]:
        return self.gather(torch.zeros(1, dtype=torch.int32))

    @cached_property
    def labels(self) -> torch.Tensor | None:
        """Of every training sample, shape (samples,), by which workers or federated clients may differ; or None."""
        return None

    @cached_property
    def kernel(self) -> Kernel | None:
        """The native per-sample SGD kernel on the flat model, or None where the problem has none."""
        return None


def _moved(value: Any, device: torch.device) -> Any:
    """A tensor, or those in a tuple or of a dataclass, on a device."""
    if isinstance(value, tuple):
        return tuple(_moved(each, device) for each in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{each.name: _moved(getattr(value, each.name), device) for each in fields(value)})
    return value.to(device) if isinstance(value, torch.Tensor) else value
