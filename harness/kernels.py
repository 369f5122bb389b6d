"""Native kernels: a loop of per-sample updates on a flat model, compiled, without the interpreter's lock."""

from abc import ABC, abstractmethod

import torch


class Kernel(ABC):
    """Per-sample SGD on a flat model.

    Real hardware calls it once per chunk of samples; the simulator interleaves its updates in virtual time.
    """

    @abstractmethod
    def __call__(self, model: torch.Tensor, samples: torch.Tensor, learning_rate: float) -> None:
        """Apply one update per sample, in order, to `model` in place. Releases the interpreter's lock.

        Args:
            model: shape (parameters,), contiguous, possibly written by others meanwhile.
            samples: int32 indices, shape (n,).
        """

    @abstractmethod
    def warm_up(self) -> None:
        """Compile, so that no clock sees it."""
