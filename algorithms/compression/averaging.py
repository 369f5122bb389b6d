"""Means over all workers of what they say of their vectors: in place, and the same on every worker to the last bit.

What is linear is summed on the way, by all-reduce; other messages are gathered, and every worker decodes all of them.
So the payload of P workers is P messages either way, but on the links that of gathered ones grows with P.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from algorithms.compression.error_feedback import Sender

if TYPE_CHECKING:
    from algorithms.compression.compressor import Compressor


class Averaging(ABC):
    """One worker's part in the means of a sequence of vectors."""

    @abstractmethod
    def average_(self, vector: torch.Tensor) -> None:
        """Replace the vector by the mean of what all workers say of theirs; all call it.

        Args:
            vector: shape (parameters,).
        """


class WholeMean(Averaging):
    """Of the vectors themselves.

    Args:
        group: of workers; None for all.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self._group = group

    def average_(self, vector: torch.Tensor) -> None:
        """Sum and divide."""
        dist.all_reduce(vector, group=self._group)
        vector /= dist.get_world_size(self._group)


class MeanInHalf(Averaging):
    """Of vectors rounded to half precision, in which they are summed too.

    Args:
        dtype: of the messages and their sum.
    """

    def __init__(self, sender: Sender, dtype: torch.dtype) -> None:
        self._sender, self._dtype = sender, dtype

    def average_(self, vector: torch.Tensor) -> None:
        """Sum, and divide where small numbers have room."""
        total = self._sender.encode(vector).view(self._dtype)
        dist.all_reduce(total)
        vector.copy_(total)
        vector /= dist.get_world_size()


class MeanOfMessages(Averaging):
    """Of what everybody's message says."""

    def __init__(self, compressor: Compressor, sender: Sender) -> None:
        self._compressor, self._sender = compressor, sender

    def average_(self, vector: torch.Tensor) -> None:
        """Gather, decode and sum in the order of ranks."""
        message = self._sender.encode(vector)
        messages = [torch.empty_like(message) for _ in range(dist.get_world_size())]
        dist.all_gather(messages, message)
        vector.zero_()
        for each in messages:
            vector += self._compressor.decode(each, vector)
        vector /= len(messages)
