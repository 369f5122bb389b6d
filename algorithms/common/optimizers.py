"""What turns a gradient into a step: torch's optimisers, over the model as one flat vector.

    sgd       w <- w - eta * g                                        (Robbins and Monro 1951)
    momentum  v <- mu * v + g;  w <- w - eta * v, or with Nesterov's correction w <- w - eta * (g + mu * v)
              (Polyak 1964; Nesterov 1983, as Sutskever et al., ICML 2013, section 2)
    adam      Kingma and Ba, ICLR 2015, Algorithm 1; decoupled weight decay makes it AdamW (Loshchilov and Hutter, ICLR
              2019, Algorithm 2)

An algorithm applies one wherever its paper takes a step: on every worker, at a server, or on the average of workers.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from harness.errors import require


@dataclass(frozen=True)
class Optimizer(ABC):
    """A rule for steps.

    Args:
        weight_decay: adds this times w to the gradient, >= 0.
    """

    weight_decay: float

    def __post_init__(self) -> None:
        require(self.weight_decay >= 0, "optimizer.weight_decay", "must be >= 0", self.weight_decay)

    @property
    def is_plain(self) -> bool:
        """Whether a step is w <- w - eta * g and nothing more, as native kernels take it."""
        return False

    @property
    def is_stateless(self) -> bool:
        """Whether it keeps nothing from step to step."""
        return False

    @abstractmethod
    def over(self, parameters: Sequence[nn.Parameter], learning_rate: float) -> torch.optim.Optimizer:
        """Torch's optimiser of these parameters."""


@dataclass(frozen=True)
class PlainSGD(Optimizer):
    """w <- w - eta * g."""

    @property
    def is_plain(self) -> bool:
        """Without weight decay."""
        return self.weight_decay == 0

    @property
    def is_stateless(self) -> bool:
        """With weight decay too."""
        return True

    def over(self, parameters: Sequence[nn.Parameter], learning_rate: float) -> torch.optim.Optimizer:
        """Torch's SGD."""
        return torch.optim.SGD(parameters, learning_rate, weight_decay=self.weight_decay)


@dataclass(frozen=True)
class Momentum(Optimizer):
    """A step along a decaying sum of gradients.

    Args:
        momentum: decay of the sum, mu, in [0, 1).
        nesterov: look ahead along it.
    """

    momentum: float
    nesterov: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.momentum < 1, "optimizer.momentum", "must be in [0, 1)", self.momentum)
        rule = "must be > 0 with optimizer.nesterov=true"
        require(self.momentum > 0 or not self.nesterov, "optimizer.momentum", rule, self.momentum)

    def over(self, parameters: Sequence[nn.Parameter], learning_rate: float) -> torch.optim.Optimizer:
        """Torch's SGD with momentum."""
        return torch.optim.SGD(
            parameters, learning_rate, self.momentum, weight_decay=self.weight_decay, nesterov=self.nesterov
        )


@dataclass(frozen=True)
class Adam(Optimizer):
    """Steps scaled by running moments of the gradient.

    Args:
        beta1: decay of the first moment, in [0, 1).
        beta2: decay of the second moment, in [0, 1).
        epsilon: added to the root of the second moment, > 0.
        decoupled: whether weight decay acts on w itself (AdamW), not on the gradient.
    """

    beta1: float
    beta2: float
    epsilon: float
    decoupled: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("beta1", "beta2"):
            require(0 <= getattr(self, name) < 1, f"optimizer.{name}", "must be in [0, 1)", getattr(self, name))
        require(self.epsilon > 0, "optimizer.epsilon", "must be > 0", self.epsilon)

    def over(self, parameters: Sequence[nn.Parameter], learning_rate: float) -> torch.optim.Optimizer:
        """Torch's Adam or AdamW."""
        kind = torch.optim.AdamW if self.decoupled else torch.optim.Adam
        betas = (self.beta1, self.beta2)
        return kind(parameters, learning_rate, betas=betas, eps=self.epsilon, weight_decay=self.weight_decay)


class Descent:
    """Steps of one optimiser on flat weights.

    A plain step is taken here: the one operation of torch's SGD, without what it does around that for any number of
    parameters, which takes as long as half the backward pass of a small model.

    Args:
        weights: shape (parameters,), written in place.
        gradient: shape (parameters,), read at every step; the caller sets it to zero.
        learning_rate: of the first step.
    """

    def __init__(
        self, optimizer: Optimizer, weights: torch.Tensor, gradient: torch.Tensor, learning_rate: float
    ) -> None:
        self._weights, self._gradient, self._learning_rate = weights, gradient, learning_rate
        self._torch = None if optimizer.is_plain else optimizer.over([_parameter(weights, gradient)], learning_rate)

    @property
    def state(self) -> Mapping[Any, Any]:
        """What is kept from step to step, as torch's optimisers do."""
        return {} if self._torch is None else self._torch.state

    def step(self, learning_rate: float | None = None) -> None:
        """Take one.

        Args:
            learning_rate: from this step on; None for that of the step before.
        """
        if learning_rate is not None:
            self._learning_rate = learning_rate
        if self._torch is None:
            self._weights.add_(self._gradient, alpha=-self._learning_rate)
            return
        self._torch.param_groups[0]["lr"] = self._learning_rate
        self._torch.step()


def _parameter(weights: torch.Tensor, gradient: torch.Tensor) -> nn.Parameter:
    """Both as torch's optimisers take them."""
    parameter = nn.Parameter(weights)
    parameter.grad = gradient
    return parameter
