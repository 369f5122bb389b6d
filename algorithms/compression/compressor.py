"""What is sent in place of a vector, in fewer bytes: a group of settings, of any algorithm that sends vectors.

    none       x
    half       x, in float16 or bfloat16                                       algorithms/compression/quantization.py
    sign, qsgd x, in one bit or a few per entry
    top_k, random_k  a few entries of x                                        algorithms/compression/sparsification.py
    power_sgd  factors of low rank of the mean of all x                        algorithms/compression/power_sgd.py

Whoever averages vectors over all workers asks for an `Averaging`, which any compression has; whoever sends one to
somebody needs a message, which a `Compressor` makes, and if it sends many a `Sender`, which feeds errors back, or
`Known`, of a vector that changes.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from algorithms.compression.averaging import Averaging, MeanOfMessages, WholeMean
from algorithms.compression.error_feedback import Sender
from harness.errors import UserError
from harness.problems.base import Problem
from harness.worker import Worker


@dataclass(frozen=True)
class Compression(ABC):
    """A way to send vectors in fewer bytes."""

    is_exact: ClassVar[bool] = False  # nothing is left out

    @abstractmethod
    def averaging(self, model: nn.Module, worker: Worker) -> Averaging:
        """What averages vectors such as the model's gradient over all workers.

        Args:
            model: whose parameters, one after the other, the vectors are like.
        """

    @property
    def remembers(self) -> bool:
        """Whether what a sender says depends on what it has said before."""
        return False

    @abstractmethod
    def bytes_of_mean(self, problem: Problem, vector: torch.Tensor, num_workers: int) -> int:
        """What all workers together hand in for one average of vectors like the parameters of a problem's model."""


@dataclass(frozen=True)
class Compressor(Compression):
    """One that makes a message of a vector, whoever it is for: one tensor of bytes, as small as it says."""

    @property
    def is_contraction(self) -> bool:
        """Whether E |Q(x) - x|^2 <= (1 - delta) |x|^2, as whoever feeds errors back needs."""
        return True

    @abstractmethod
    def num_bytes(self, vector: torch.Tensor) -> int:
        """Of the message that a vector like this one becomes."""

    @abstractmethod
    def encode(self, vector: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """The message, uint8, shape (num_bytes,); perhaps a view of the vector.

        Args:
            vector: float32 or float64, shape (n,).
            generator: of the sender's random numbers.
        """

    @abstractmethod
    def decode(self, message: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """What the message says, a vector like `like`, on every rank that decodes it; perhaps a view of the message."""

    def sender(self, generator: torch.Generator) -> Sender:
        """What encodes one vector after the other for the same listeners.

        Args:
            generator: of the sender's random numbers.
        """
        return Sender(self, generator, error_feedback=False)

    def averaging(self, model: nn.Module, worker: Worker) -> Averaging:
        """Everybody hears everybody's message."""
        return MeanOfMessages(self, self.sender(worker.generator))

    def bytes_of_mean(self, problem: Problem, vector: torch.Tensor, num_workers: int) -> int:
        """A message of each."""
        return self.num_bytes(vector) * num_workers if num_workers > 1 else 0


@dataclass(frozen=True)
class Uncompressed(Compressor):
    """The vector itself."""

    is_exact: ClassVar[bool] = True

    def num_bytes(self, vector: torch.Tensor) -> int:
        """All."""
        return vector.nbytes

    def encode(self, vector: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Its bytes."""
        return vector.view(torch.uint8)

    def decode(self, message: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """The vector."""
        return message.view(like.dtype)

    def averaging(self, model: nn.Module, worker: Worker) -> Averaging:
        """One all-reduce, in place."""
        return WholeMean()


@dataclass(frozen=True)
class LossyCompressor(Compressor):
    """One that leaves something out.

    Args:
        error_feedback: add it to the vector that is sent next. Who sends differences (`differences.py`), as CHOCO does,
            has a feedback of its own, whatever this says.
    """

    error_feedback: bool

    @property
    def remembers(self) -> bool:
        """With feedback."""
        return self.error_feedback

    def sender(self, generator: torch.Generator) -> Sender:
        """One that feeds errors back, if it shall."""
        return Sender(self, generator, self.error_feedback)


def messages(compression: Compression, algorithm: str) -> Compressor:
    """A compression for an algorithm in which one rank sends to another.

    Raises:
        UserError: for one that can only average.
    """
    if isinstance(compression, Compressor):
        return compression
    name = type(compression).__name__
    raise UserError(
        f"algorithm/compression must make messages of one worker alone with algorithm={algorithm}, got {name}, which "
        "averages those of all: use none, half, sign, qsgd, top_k or random_k"
    )
