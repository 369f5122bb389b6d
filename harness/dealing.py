"""Deals the samples of a run to one worker: how many, which, and on which rows."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import torch

from harness.data import Share
from harness.errors import UserError
from harness.interleaving import Decisions
from harness.kernels.base import Kernel
from harness.order import PART, Order
from harness.program import Program
from harness.rows import PermutedRows, Rows, StoredRows, within_epochs

if TYPE_CHECKING:
    from harness.place import Place


def counter(pool: int) -> str:
    """Of the samples that a pool of workers has been handed out; that of the first is one of `place.COUNTERS`."""
    return f"dealt by {pool}" if pool else "dealt"


class Dealer:
    """What the data policy of a program deals to the worker at a place.

    Synchronous algorithms take equal batches (the budget is rounded up to a multiple of the number of workers);
    asynchronous ones take the next batch of their pool as soon as they ask.
    """

    def __init__(self, place: "Place", program: Program) -> None:
        self._place, self._data, self._seed = place, program.data, program.seed
        self._index, self._num_workers = program.share(place)
        self._parts = program.parts(self._num_workers)
        self._starts = Decisions("claims", "claims a batch", place.rank, place.interleaving, program.replay)
        self._synchronous, self._budget = program.algorithm.synchronous, program.budget_samples
        self._orders: dict[int, Order] = {}
        self._fake = program.problem.is_fake

    def order(self, num_samples: int) -> Order:
        """The worker's order of the rows of its share, counted from the first one."""
        if num_samples not in self._orders:
            self._orders[num_samples] = self._order(self._share(num_samples, self._index))
        return self._orders[num_samples]

    def _order(self, share: Share, placed: Rows | None = None, epochs: int | None = None) -> Order:
        """Of the rows of a share, in the numbers of where they are placed; whole epochs, or as far as it can be needed.

        Who has an order of its own goes through as much of it as it is fast: more than its equal part is unusual.
        """
        equal = -(-self._budget // self._num_workers) * share.workers + self._num_workers  # budgets are rounded up
        length = equal if self._synchronous else share.budget + self._num_workers
        usual = length if share.workers > 1 else equal
        if epochs is not None:
            length = usual = epochs * share.rows

        def draw(epoch: int, length: int) -> torch.Tensor:
            if self._fake:
                return torch.empty(length, dtype=torch.int32)
            visits = self._data.sequence(share, length, self._seed, epoch)
            return visits if placed is None else placed.numbered(visits)

        place, part = self._place, length if self._fake else PART * share.workers // self._num_workers
        return Order(draw, share.rows, length, usual, part, place.device, lambda: place.clock.paused())

    def positions(self, num_samples: int, batch_size: int) -> Iterator[tuple[float, int, int]]:
        """Each batch of this worker: epochs dealt to all before it, where in its order it starts, and its size."""
        share = self._share(num_samples, self._index)
        if self._synchronous:
            return self._rounds(share, num_samples, batch_size)
        return self._claims(share, batch_size)

    def epochs(self, num_samples: int, batch_size: int) -> Iterator[tuple[int, int, int, int]]:
        """Batches that a worker claims, none of which reaches into the next epoch of all workers.

        Yields:
            the epoch, where in it the batch starts, where in the worker's own order, and its size; every epoch occurs,
            if need be with an empty batch.
        """
        reached = 0
        for start, own, size in self._claimed(self._share(num_samples, self._index), batch_size):
            self._place.dealt(size)
            while size:
                epoch, first = divmod(start, num_samples)
                yield from ((passed, 0, 0, 0) for passed in range(reached, epoch))
                part = min(size, num_samples - first)
                yield epoch, first, own, part
                reached, start, own, size = epoch + 1, start + part, own + part, size - part
        yield from ((passed, 0, 0, 0) for passed in range(reached, self._epochs(num_samples)))

    def check_unmoved(self) -> None:
        """Refuse a policy that moves rows.

        Raises:
            UserError: naming it.
        """
        if self._data.moves_rows:
            raise UserError(
                f"data={self._data} moves rows, and this algorithm asks only for their numbers (worker.batches), not "
                "for the rows (worker.visits): use data=partitioned and data.order=index"
            )

    def check_at_hand(self) -> None:
        """Refuse a policy that sends rows.

        Raises:
            UserError: naming it.
        """
        if self._data.servers():
            raise UserError(
                f"data={self._data} sends rows batch by batch (worker.batches), and this algorithm takes them "
                "otherwise: use data=partitioned"
            )

    def check_everywhere(self) -> None:
        """Refuse a policy that gives workers samples of their own.

        Raises:
            UserError: naming it.
        """
        if self._parts is not None:
            raise UserError(
                f"data={self._data} gives each worker samples of its own, and this algorithm says itself who has which "
                "(worker.batches_of): use data=partitioned"
            )

    def rows(self, kernel: Kernel, num_samples: int) -> StoredRows | PermutedRows:
        """The rows of this worker, where the policy wants them. All workers call it alike.

        Raises:
            UserError: where the policy moves rows, and the kernel's cannot be moved.
        """
        if self._data.moves_rows and kernel.row_data is None:
            raise UserError(
                f"data={self._data} moves rows, and those of the kernel {kernel.name} stay where they are "
                "(Kernel.row_data): use data=partitioned and data.order=index"
            )
        place, share, shares = self._place, self._share(num_samples, self._index), self._shares(num_samples)
        if self._data.order == "permuted":
            order = partial(self._order, share, epochs=self._epochs(num_samples))
            return PermutedRows(place, kernel, shares, share, order)
        placed = place.rows("rows", kernel, shares, share, sequential=self._data.order == "storage")
        stored = self._order(share, placed) if placed.first else self.order(num_samples)
        return StoredRows(placed.kernel, stored, share.rows)

    def within_epochs(self, positions: Iterator[tuple[int, int]], num_samples: int) -> Iterator[tuple[int, int, int]]:
        """Batches cut where an epoch of the worker's share ends; see `rows.within_epochs`."""
        return within_epochs(positions, self._share(num_samples, self._index).rows, self._epochs(num_samples))

    def _share(self, num_samples: int, index: int) -> Share:
        share = self._data.share(num_samples, self._budget, index, self._place.nodes[: self._num_workers])
        return share if self._parts is None else replace(share, own=self._parts[index])

    def _shares(self, num_samples: int) -> dict[int | None, Share]:
        """By the node in whose memory their rows lie."""
        shares = [self._share(num_samples, index) for index in range(self._num_workers)]
        return {share.node: share for share in shares}

    def _epochs(self, num_samples: int) -> int:
        """That at least one pool goes through."""
        return max(-(-share.budget // share.extent) for share in self._shares(num_samples).values())

    def _rounds(self, share: Share, num_samples: int, batch_size: int) -> Iterator[tuple[float, int, int]]:
        num_workers = self._num_workers
        for start in range(0, self._budget, batch_size * num_workers):
            size = min(batch_size, -(-(self._budget - start) // num_workers))
            position = start // num_workers * share.workers + share.index * size
            yield start / num_samples, position, size

    def _claims(self, share: Share, batch_size: int) -> Iterator[tuple[float, int, int]]:
        for start, position, size in self._claimed(share, batch_size):
            yield start / share.extent, position, size

    def _claimed(self, share: Share, batch_size: int) -> Iterator[tuple[int, int, int]]:
        """Where each batch starts in the order of the pool, and in the worker's own, and its size."""
        own = 0
        while (start := self._claim(share, batch_size)) < share.budget:
            size = min(batch_size, share.budget - start)
            yield start, own if share.workers == 1 else start, size
            own += size

    def _claim(self, share: Share, batch_size: int) -> int:
        """Where the next batch begins: that of the run which is repeated, or the first that nobody has."""
        if self._starts.exhausted:
            return share.budget
        start = self._starts.take()
        start = self._place.add(counter(share.pool), batch_size) if start is None else start
        if start < share.budget:
            self._starts.note(start)
        return start
