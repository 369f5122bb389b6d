"""Problems whose model is a chain of layers, so that it can be split between and inside of them."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import nn

from harness.batch import Samples
from harness.problems.base import Problem
from harness.problems.outline import Outline, shapes_of


class FeatureSplit(Protocol):
    """A split of the last dimension of outputs among several workers, each of which has as many of them.

    Attributes:
        first: the first feature that is here.
    """

    first: int

    def sum(self, parts: torch.Tensor) -> torch.Tensor:
        """Over all workers, on each; differentiable, and `parts` may be written."""

    def largest(self, values: torch.Tensor) -> torch.Tensor:
        """Over all workers, on each; of no derivative."""


@dataclass(frozen=True)
class Layered(Problem):
    """A problem whose model is an `nn.Sequential`: each layer takes what the one before it gives.

    What a layer is, is the problem's to say: a pipeline cuts between layers, FSDP gathers one at a time. `gather` gives
    two tensors: what the first layer takes, and what the outputs of the last one are compared with.
    """

    @abstractmethod
    def build_model(self, device: torch.device, seed: int) -> nn.Sequential:
        """The initial layers; equal for equal seeds, on every worker."""

    @cached_property
    def outlines(self) -> dict[int, list[Outline]]:
        """What is known of the layers, by samples that go through: filled in once for all who share this object."""
        return {}

    @cached_property
    def shares_parameters(self) -> bool:
        """Whether some parameter is of two layers."""
        owned = [id(parameter) for layer in shapes_of(self) for parameter in layer.parameters()]
        return len(set(owned)) < len(owned)

    @abstractmethod
    def objective(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Mean loss over a batch.

        Args:
            outputs: of the last layer, samples along the first dimension.
            targets: of the same samples.

        Returns:
            scalar, differentiable.
        """

    def objective_of_part(self, outputs: torch.Tensor, targets: torch.Tensor, split: FeatureSplit) -> torch.Tensor:
        """The objective where each worker has a part of the features of the outputs; the same on all.

        Without this method they are gathered first.
        """
        raise NotImplementedError(f"{type(self).__name__} has no method `objective_of_part`")

    @property
    def has_objective_of_part(self) -> bool:
        """Whether there is that method."""
        return type(self).objective_of_part is not Layered.objective_of_part

    def loss(self, model: nn.Module, samples: Samples) -> torch.Tensor:
        """Mean loss over a batch."""
        inputs, targets = self.rows_of(samples)
        return self.objective(model(inputs), targets)

    def deepened(self, layers: int) -> str:
        """The setting, as it is typed, with which the model has so many layers with parameters; "" where none does."""
        return ""

    def tensor_plan(self) -> Mapping[str, str]:
        """How each weight is split among the workers that share a layer (Shoeybi et al., arXiv:1909.08053, section 3).

        Returns:
            by name of a module of the model, such as "1.attention.query": "column" (outputs are split), "row" (inputs
            are, and what comes out is summed), or "sequence" (kept whole; what it works on may be split by position).
            Modules that are not named are kept whole; empty where layers cannot be split.
        """
        return {}

    def tensor_divisors(self, sequence_parallel: bool) -> Mapping[str, int]:
        """What the number of workers that share a layer must divide, by name of the setting.

        Args:
            sequence_parallel: whether what modules of "sequence" work on is split too.
        """
        return {}
