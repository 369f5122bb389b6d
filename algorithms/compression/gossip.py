"""Averages with neighbours who hear compressed differences: CHOCO-Gossip and quantized push-sum, one worker's part.

    q_i  <-  Q(x_i - u_i);   send q_i to the neighbours, receive theirs
    u_i  <-  u_i + q_i                                 what all neighbours know of x_i
    h_i  <-  h_i + sum over neighbours j of W[i, j] q_j        = sum of W[i, j] u_j, kept without keeping the u_j
    x_i  <-  x_i + gamma * (W[i, i] u_i + h_i - u_i)

(Koloskova, Stich and Jaggi, ICML 2019, Algorithm 1.) What is added to the x_i sums to 0 where the columns of W sum to
1, whatever Q does, so that the average is kept. With weights that are averaged alike, and sent whole, this is push-sum:
Taheri, Mokhtari, Hassani and Pedarsani, ICML 2020, Algorithm 1, has gamma = 1, which a fine Q bears; a smaller gamma
bears any contraction (Toghani and Uribe, arXiv:2204.08160). Nobody forgets, so W must be the same at every step.
"""

from typing import Self

import torch

from algorithms.common.bits import joined
from algorithms.compression.compressor import Compressor
from algorithms.compression.differences import KnownByDifferences
from algorithms.mixing.matrices import Row, begin_messages


class CompressedAveraging:
    """One worker's vector, and its averages with those of its neighbours.

    Args:
        vector: of this worker, written in place, shape (n,); equal on all workers now.
        row: its row of W.
        step: gamma.
        generator: of this worker's random numbers.
        whole: numbers that are averaged alike, in place, and sent as they are, shape (m,); None for none.

    Attributes:
        known: u_i, what all neighbours know of the vector.
    """

    def __init__(
        self,
        vector: torch.Tensor,
        row: Row,
        compressor: Compressor,
        step: float,
        generator: torch.Generator,
        whole: torch.Tensor | None = None,
    ) -> None:
        self._vector, self._whole, self._row, self._step = vector, whole, row, step
        self._compressor, self._generator = compressor, generator
        self._known = KnownByDifferences(compressor, vector)
        self._heard = vector * sum(row.receives.values())  # h_i
        self._whole_bytes = 0 if whole is None else whole.nbytes

    @property
    def known(self) -> torch.Tensor:
        """What all neighbours know of the vector."""
        return self._known.vector

    def begin(self) -> Self:
        """Begin to average once; the vector may change until that is finished."""
        message = self._known.say(self._vector, self._generator)
        message = message if self._whole is None else joined(self._whole, message)
        self._boxes = {rank: torch.empty_like(message) for rank in self._row.receives}
        self._works = begin_messages(dict.fromkeys(self._row.sends, message), self._boxes)
        return self

    def finish(self) -> None:
        """Wait, and move the vector."""
        for work in self._works:
            work.wait()
        if self._whole is not None:
            self._average_whole(self._whole)
        for rank, box in self._boxes.items():
            said = self._compressor.decode(box[self._whole_bytes :], self._vector)
            self._heard.add_(said, alpha=self._row.receives[rank])
        self._vector.add_(torch.add(self._heard, self.known, alpha=self._row.own - 1), alpha=self._step)

    def _average_whole(self, whole: torch.Tensor) -> None:
        change = whole * (self._row.own - 1)
        for rank, box in self._boxes.items():
            change.add_(box[: self._whole_bytes].view(whole.dtype), alpha=self._row.receives[rank])
        whole.add_(change, alpha=self._step)
