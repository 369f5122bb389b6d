"""Which samples a worker sees, and in which order.

The order is a function of (seed, epoch), never of arrival. A *position* counts samples over the whole run: position
`epoch * num_samples + i` is the i-th sample of that epoch's permutation.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch


@dataclass(frozen=True)
class DataPolicy(ABC):
    """How samples are dealt to workers.

    Args:
        shuffle: a fresh permutation every epoch; false keeps the storage order.
    """

    shuffle: bool

    @abstractmethod
    def order(self, num_samples: int, length: int, seed: int, rank: int) -> torch.Tensor:
        """The sample at every position of the run, as worker `rank` sees it.

        Args:
            num_samples: size of the data set.
            length: positions needed.

        Returns:
            int32 tensor of shape (length,), values in [0, num_samples). Read only: it may be shared.
        """

    @abstractmethod
    def position(self, global_position: int, own_position: int) -> int:
        """Where in `order` the next batch starts, given both counts of samples dealt before it."""


@dataclass(frozen=True)
class Partitioned(DataPolicy):
    """One global order; every worker takes the next part, so that each epoch is dealt exactly once."""

    def order(self, num_samples: int, length: int, seed: int, rank: int) -> torch.Tensor:
        """One order for all ranks, shape (length,)."""
        return _order(num_samples, length, (seed,), self.shuffle)

    def position(self, global_position: int, own_position: int) -> int:
        """The global position."""
        return global_position


@dataclass(frozen=True)
class Replicated(DataPolicy):
    """Every worker draws from the whole data set in an order of its own."""

    def order(self, num_samples: int, length: int, seed: int, rank: int) -> torch.Tensor:
        """An order per rank, shape (length,)."""
        return _order(num_samples, length, (seed, rank), self.shuffle)

    def position(self, global_position: int, own_position: int) -> int:
        """The worker's own position."""
        return own_position


@lru_cache(maxsize=8)  # threads and simulated ranks of one run share one copy
def _order(num_samples: int, length: int, key: tuple[int, ...], shuffle: bool) -> torch.Tensor:
    epochs = -(-length // num_samples)
    order = np.empty((epochs, num_samples), dtype=np.int32)
    for epoch in range(epochs):
        order[epoch] = (
            np.random.default_rng([*key, epoch]).permutation(num_samples) if shuffle else np.arange(num_samples)
        )
    return torch.from_numpy(order.reshape(-1)[:length])
