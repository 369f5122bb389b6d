"""Which samples a worker sees, in which order, and in whose memory their rows lie.

The order is a function of (seed, epoch), never of arrival. A *position* counts samples over the whole run: position
`epoch * rows + i` is the i-th sample of that epoch's permutation.

    partitioned          one order of all rows; every worker takes the next part of it
    replicated           every worker has an order of its own of all rows
    sharded_per_node     every node has rows and an order of its own; its workers take the next part of it
    replicated_per_node  as partitioned, over a copy of the rows in each node's memory
                         (the last two: DimmWitted, Zhang and Re, VLDB 2014, section 3.4: Sharding, FullReplication)

Others: `local_data.py`, where every worker has samples of its own; `streaming.py`, where servers send them rows.
"""

import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch

from harness.errors import require

if TYPE_CHECKING:
    from harness.problems.base import Problem

ORDERS = ("index", "storage", "permuted")


@dataclass(frozen=True)
class Share:
    """What of the training set one worker is dealt, and with whom.

    Args:
        first: the first row.
        stop: one beyond the last row.
        workers: how many take turns in one order of these rows.
        index: the worker's number among them.
        pool: number of the counter from which asynchronous workers take samples.
        budget: samples that are taken from it, over the run.
        stream: what tells the order from those of others.
        node: in whose memory the rows lie; None leaves that to the hardware's settings.
        own: the rows that are visited, int32, ascending, counted from the first; None for all of them.
    """

    first: int
    stop: int
    workers: int
    index: int
    pool: int
    budget: int
    stream: tuple[int, ...] = ()
    node: int | None = None
    own: np.ndarray | None = field(default=None, compare=False)

    @property
    def rows(self) -> int:
        """How many are visited, each once before any is again."""
        return self.extent if self.own is None else len(self.own)

    @property
    def extent(self) -> int:
        """How many samples its pool deals in an epoch."""
        return self.stop - self.first


@dataclass(frozen=True)
class DataPolicy(ABC):
    """How samples are dealt to workers.

    Args:
        order: in which rows are visited. index: by a fresh permutation every epoch, rows stay where they are; storage:
            as they are stored; permuted: the order of index, in which native kernels find the rows stored, because
            workers copy them so at the beginning of every epoch, on the clock.
    """

    per_node: ClassVar[bool] = False  # whether rows lie in the memory of the node that visits them

    order: str

    def __post_init__(self) -> None:
        require(self.order in ORDERS, "data.order", f"must be one of {', '.join(ORDERS)}", self.order)

    @property
    def moves_rows(self) -> bool:
        """Whether rows are not visited where and as they are stored."""
        return self.per_node or self.order == "permuted"

    def servers(self) -> int:
        """Ranks beyond the workers and the algorithm's servers: those that send rows to workers."""
        return 0

    def at_hand(self) -> "DataPolicy":
        """The policy that deals the same samples to workers that have them."""
        return self

    def parts(self, problem: "Problem", num_workers: int, seed: int) -> list[np.ndarray] | None:
        """The samples of every worker, int32, ascending; None where no worker has samples of its own."""
        return None

    @abstractmethod
    def share(self, num_samples: int, budget: int, rank: int, nodes: Sequence[int]) -> Share:
        """What a worker is dealt, but for what `parts` says.

        Args:
            num_samples: size of the data set.
            budget: global samples.
            nodes: of every rank.
        """

    def sequence(self, share: Share, length: int, seed: int, epoch: int = 0) -> torch.Tensor:
        """The row at every position of a share's order from an epoch on, counted from its first row.

        Returns:
            int32 tensor of shape (length,), values in [0, share.extent). Read only: it may be shared.
        """
        with _looking:  # two threads who look at once shall find the same
            sequence = _sequence(share.rows, length, (seed, *share.stream), self.order != "storage", epoch)
        visits = sequence.visits()
        return visits if share.own is None else torch.from_numpy(share.own[visits.numpy()])  # which no meter sees


@dataclass(frozen=True)
class Partitioned(DataPolicy):
    """One global order; every worker takes the next part, so that each epoch is dealt exactly once."""

    def share(self, num_samples: int, budget: int, rank: int, nodes: Sequence[int]) -> Share:
        """All rows, with all workers."""
        return shared_by_all(num_samples, budget, rank, len(nodes))


@dataclass(frozen=True)
class Replicated(DataPolicy):
    """Every worker draws from the whole data set in an order of its own."""

    def __post_init__(self) -> None:
        super().__post_init__()
        rule = "must be index or storage with data=replicated: permuting would take a copy of all rows per worker"
        require(self.order != "permuted", "data.order", rule, self.order)

    def share(self, num_samples: int, budget: int, rank: int, nodes: Sequence[int]) -> Share:
        """All rows, alone; the budget is everybody's."""
        return Share(0, num_samples, workers=1, index=0, pool=0, budget=budget, stream=(rank,))


@dataclass(frozen=True)
class ShardedPerNode(DataPolicy):
    """Every node's memory holds rows of its own, in proportion to its workers, who visit only those.

    A node deals each of its rows exactly once per epoch; its share of the budget ends when it has dealt it, whatever
    other nodes have done by then.
    """

    per_node: ClassVar[bool] = True

    def share(self, num_samples: int, budget: int, rank: int, nodes: Sequence[int]) -> Share:
        """The rows of the worker's node, with the workers of that node.

        Raises:
            UserError: with fewer rows than workers.
        """
        workers, node = len(nodes), nodes[rank]
        rule = f"must leave a row to each of {workers} workers with data=sharded_per_node"
        require(num_samples >= workers, "the training set", rule, num_samples)
        before, own = sum(other < node for other in nodes), nodes.count(node)

        def part(amount: int) -> tuple[int, int]:
            return amount * before // workers, amount * (before + own) // workers

        (first, stop), (taken, end) = part(num_samples), part(budget % num_samples)
        return Share(
            first,
            stop,
            workers=own,
            index=nodes[:rank].count(node),
            pool=node,
            budget=budget // num_samples * (stop - first) + end - taken,
            stream=(node,) if own < workers else (),
            node=node,
        )


@dataclass(frozen=True)
class ReplicatedPerNode(Partitioned):
    """One global order, dealt as `Partitioned` does, over a copy of all rows in each node's memory."""

    per_node: ClassVar[bool] = True

    def share(self, num_samples: int, budget: int, rank: int, nodes: Sequence[int]) -> Share:
        """All rows, with all workers, in the memory of the worker's node."""
        return replace(super().share(num_samples, budget, rank, nodes), node=nodes[rank])


def shared_by_all(num_samples: int, budget: int, rank: int, num_workers: int) -> Share:
    """All rows in one order, of which every worker takes the next part."""
    return Share(0, num_samples, workers=num_workers, index=rank, pool=0, budget=budget)


class _Sequence:
    """Some epochs of an order, drawn by who asks first; others wait for it."""

    def __init__(self, rows: int, length: int, key: tuple[int, ...], shuffled: bool, epoch: int) -> None:
        self._rows, self._length, self._key, self._shuffled, self._epoch = rows, length, key, shuffled, epoch
        self._drawing = threading.Lock()
        self._visits: torch.Tensor | None = None

    def visits(self) -> torch.Tensor:
        """The row at every position."""
        with self._drawing:
            if self._visits is None:
                self._visits = self._drawn()
            return self._visits

    def _drawn(self) -> torch.Tensor:
        rows, epochs = self._rows, -(-self._length // self._rows)
        visits = np.empty((epochs, rows), dtype=np.int32)
        for epoch in range(epochs):
            random = np.random.default_rng([*self._key, self._epoch + epoch]) if self._shuffled else None
            visits[epoch] = np.arange(rows) if random is None else random.permutation(rows)
        return torch.from_numpy(visits.reshape(-1)[: self._length])


_sequence = lru_cache(maxsize=8)(_Sequence)  # threads and simulated ranks of one run share one copy
_looking = threading.Lock()
