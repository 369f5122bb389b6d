"""Deals the samples of a run to one worker: how many, which, and on which rows."""

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from harness.data import Share
from harness.errors import UserError
from harness.kernels.base import Kernel
from harness.program import Program
from harness.rows import PermutedRows, StoredRows, within_epochs

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
        self._replayed = iter(program.replay[place.rank].claims) if program.replay else None
        self._synchronous, self._budget = program.algorithm.synchronous, program.budget_samples
        self._sequences: dict[int, torch.Tensor] = {}
        self._fake = program.problem.is_fake

    def sequence(self, num_samples: int) -> torch.Tensor:
        """The row at every position of the worker's order, from the first one of its share, int32, on its device."""
        if num_samples not in self._sequences:
            share = self._share(num_samples, self._index)
            rounds = -(-self._budget // self._num_workers) * share.workers
            length = (rounds if self._synchronous else share.budget) + self._num_workers  # budgets are rounded up
            self._sequences[num_samples] = self._rows(share, length).to(self._place.device)
        return self._sequences[num_samples]

    def _rows(self, share: Share, length: int) -> torch.Tensor:
        """The rows of a share's order; of a problem without values, as many without them."""
        if self._fake:
            return torch.empty(length, dtype=torch.int32)
        return self._data.sequence(share, length, self._seed)

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
            sequence = self._data.sequence(share, self._epochs(num_samples) * share.rows, self._seed)
            return PermutedRows(place, kernel, shares, share, sequence)
        placed = place.rows("rows", kernel, shares, share, sequential=self._data.order == "storage")
        return StoredRows(placed, self.sequence(num_samples), share.rows)

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
        if self._replayed is not None:
            return next(self._replayed, share.budget)
        start = self._place.add(counter(share.pool), batch_size)
        if start < share.budget:
            self._place.interleaving.claims.append(start)
        return start
