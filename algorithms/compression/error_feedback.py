"""Error feedback: what compression left out of a vector is added to the next one.

    x_t  <-  g_t + e_t;   send Q(x_t);   e_{t+1}  <-  x_t - Q(x_t)

(Stich, Cordonnier and Jaggi, NeurIPS 2018, Algorithm 1; Karimireddy et al., ICML 2019, Algorithm 2.) It telescopes:
what was sent, and e, sum to what was to be sent, so that nothing is lost, only late. In the papers g is a gradient
times the step; where it is the gradient itself, as here in `all_reduce`, that is the same while the step is constant.
Q must be a contraction: the errors of an unbiased Q of large variance would grow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from harness.errors import require

if TYPE_CHECKING:
    from algorithms.compression.compressor import Compressor


class ErrorFeedback:
    """What one sender still owes its listeners.

    Attributes:
        residual: e, like the vectors; zero at first.

    >>> feedback = ErrorFeedback()
    >>> owed = feedback.corrected(torch.tensor([1.0, 4.0]))
    >>> feedback.said(owed, torch.tensor([0.0, 4.0]))
    >>> feedback.corrected(torch.tensor([1.0, 1.0]))
    tensor([2., 1.])
    """

    def __init__(self) -> None:
        self.residual: torch.Tensor | None = None

    def corrected(self, vector: torch.Tensor) -> torch.Tensor:
        """The vector and what is owed: what is to be sent now."""
        return vector.clone() if self.residual is None else vector + self.residual

    def said(self, corrected: torch.Tensor, heard: torch.Tensor) -> None:
        """Owe from now on what was to be sent and is not in what was heard."""
        self.residual = corrected - heard


class Sender:
    """Makes messages of one rank's vectors, one after the other, for the same listeners.

    Args:
        generator: of this rank's random numbers.
        error_feedback: whether what a message leaves out is added to the next vector.
    """

    def __init__(self, compressor: Compressor, generator: torch.Generator, error_feedback: bool) -> None:
        self._compressor, self._generator = compressor, generator
        self.feedback = ErrorFeedback() if error_feedback else None

    def encode(self, vector: torch.Tensor) -> torch.Tensor:
        """The next message, uint8; the vector stays as it is."""
        if self.feedback is None:
            return self._compressor.encode(vector, self._generator)
        corrected = self.feedback.corrected(vector)
        message = self._compressor.encode(corrected, self._generator)
        self.feedback.said(corrected, self._compressor.decode(message, corrected))
        return message


def require_contraction(unbiased: bool, error_feedback: bool) -> None:
    """Refuse feedback of errors that would grow.

    Raises:
        UserError: naming the field.
    """
    rule = (
        "must be false where errors are fed back, which would add up: set algorithm.compression.unbiased=false, or, "
        "but in choco_sgd, elastic_averaging and stochastic_gradient_push, algorithm.compression.error_feedback=false"
    )
    require(not (unbiased and error_feedback), "algorithm.compression.unbiased", rule, unbiased)
