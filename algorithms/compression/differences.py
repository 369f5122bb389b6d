"""Compressed differences: listeners know of a vector what has been said of it, and are told how it differs from that.

    sender of x:   q  <-  Q(x - u);   send q;   u  <-  u + q
    listener:      receive q;   u  <-  u + q

What Q leaves out of one difference is in the next one: the messages sum to what u has gained, and u follows x
(Koloskova, Stich and Jaggi, ICML 2019, Algorithm 1; EF21 of Richtarik, Sokolov and Fatkhullin, NeurIPS 2021, does so
with gradients). It needs no other error feedback. Q must be a contraction: errors of large variance would grow.
"""

from abc import ABC, abstractmethod

import torch

from algorithms.compression.compressor import Compression, Compressor, messages
from harness.errors import require


class Known(ABC):
    """What is known of one rank's vector; it and all its listeners have one, and all are equal.

    Attributes:
        vector: u, shape (n,).
    """

    vector: torch.Tensor

    @abstractmethod
    def say(self, vector: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """The message that tells listeners of the vector, which is known here too from now on."""

    @abstractmethod
    def hear(self, message: torch.Tensor) -> torch.Tensor:
        """Know what a message says. Returns that."""

    @abstractmethod
    def pulled(self, pull: torch.Tensor) -> None:
        """Take note that the sender takes from its vector what listeners know, shape (n,)."""


class KnownByDifferences(Known):
    """Of a vector that is compressed.

    Args:
        vector: as all know it at first.
    """

    def __init__(self, compressor: Compressor, vector: torch.Tensor) -> None:
        self._compressor, self.vector = compressor, vector.clone()

    def say(self, vector: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Of the difference."""
        message = self._compressor.encode(vector - self.vector, generator)
        self.hear(message)
        return message

    def hear(self, message: torch.Tensor) -> torch.Tensor:
        """Add it."""
        said = self._compressor.decode(message, self.vector)
        self.vector += said
        return said

    def pulled(self, pull: torch.Tensor) -> None:
        """Take it from what is known: differences stay as they are."""
        self.vector -= pull


class KnownWhole(Known):
    """Of a vector that is sent as it is, so that nobody has to remember it.

    Args:
        vector: which is not kept.
    """

    def __init__(self, compressor: Compressor, vector: torch.Tensor) -> None:
        self._compressor, self.vector = compressor, vector

    def say(self, vector: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Itself."""
        return self._compressor.encode(vector, generator)

    def hear(self, message: torch.Tensor) -> torch.Tensor:
        """All, and nothing of what was known; perhaps a view of the message."""
        self.vector = self._compressor.decode(message, self.vector)
        return self.vector

    def pulled(self, pull: torch.Tensor) -> None:
        """The next message will say so."""


def known(compressor: Compressor, vector: torch.Tensor) -> Known:
    """What is known of a vector at first, and how that goes on."""
    return (KnownWhole if compressor.is_exact else KnownByDifferences)(compressor, vector)


def of_differences(compression: Compression, algorithm: str) -> Compressor:
    """A compression for an algorithm that tells listeners how a vector differs from what they know.

    Raises:
        UserError: for one that can only average, and for one whose errors would grow.
    """
    compressor = messages(compression, algorithm)
    rule = f"must be false in {algorithm}, whose errors would add up: set algorithm.compression.unbiased=false"
    require(compressor.is_contraction, "algorithm.compression.unbiased", rule, True)
    return compressor
