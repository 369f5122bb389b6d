"""Step schedules: by which factor the learning rate is multiplied, as training goes on.

    e: epochs that all workers have been dealt so far, with fraction; E: epochs of the whole run

    factor = ramp(e) * shape(e, E)

    ramp         grows linearly from warmup_start to 1 in the first warmup_epochs (Goyal et al., arXiv:1706.02677, 2.2)
    constant     1
    step_decay   decay^floor(e / every) (Goyal et al., section 5.1: 0.1 every 30 epochs)
    cosine       f + (1 - f) (1 + cos(pi e / E)) / 2 (Loshchilov and Hutter, ICLR 2017, equation 5, without restarts)

An algorithm asks at every step, and native kernels at every chunk of samples: `learning_rate * schedule.at(worker)`.
Workers in lockstep are given equal answers.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.errors import require

if TYPE_CHECKING:
    from harness.worker import Worker


@dataclass(frozen=True)
class Schedule(ABC):
    """A factor of the learning rate.

    Args:
        warmup_epochs: in which it grows linearly, >= 0.
        warmup_start: what it grows from, in (0, 1].
    """

    warmup_epochs: float
    warmup_start: float

    def __post_init__(self) -> None:
        require(self.warmup_epochs >= 0, "schedule.warmup_epochs", "must be >= 0", self.warmup_epochs)
        require(0 < self.warmup_start <= 1, "schedule.warmup_start", "must be in (0, 1]", self.warmup_start)

    @abstractmethod
    def shape(self, epochs: float, total_epochs: float) -> float:
        """The factor without warm-up."""

    def factor(self, epochs: float, total_epochs: float) -> float:
        """The factor after so many epochs of so many.

        >>> [StepDecay(2.0, 0.5, decay=0.1, every=3.0).factor(epochs, 6.0) for epochs in (0, 1, 2, 3)]
        [0.5, 0.75, 1.0, 0.1]
        """
        ramp = 1.0
        if epochs < self.warmup_epochs:
            ramp = self.warmup_start + (1 - self.warmup_start) * epochs / self.warmup_epochs
        return ramp * self.shape(epochs, total_epochs)

    def at(self, worker: "Worker") -> float:
        """The factor for the batch that the worker was dealt last."""
        return self.factor(worker.elapsed_epochs, worker.total_epochs)


@dataclass(frozen=True)
class Constant(Schedule):
    """The same step all the time."""

    def shape(self, epochs: float, total_epochs: float) -> float:
        """1."""
        return 1.0


@dataclass(frozen=True)
class StepDecay(Schedule):
    """Smaller by a factor every now and then.

    Args:
        decay: the factor, in (0, 1].
        every: epochs between, > 0.
    """

    decay: float
    every: float

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.decay <= 1, "schedule.decay", "must be in (0, 1]", self.decay)
        require(self.every > 0, "schedule.every", "must be > 0", self.every)

    def shape(self, epochs: float, total_epochs: float) -> float:
        """decay^floor(e / every)."""
        return self.decay ** math.floor(epochs / self.every)


@dataclass(frozen=True)
class Cosine(Schedule):
    """Half a wave, down to a share of the step at the end of the run.

    Args:
        final: that share, in [0, 1].
    """

    final: float

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.final <= 1, "schedule.final", "must be in [0, 1]", self.final)

    def shape(self, epochs: float, total_epochs: float) -> float:
        """f + (1 - f) (1 + cos(pi e / E)) / 2."""
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * min(epochs / total_epochs, 1.0))) / 2
