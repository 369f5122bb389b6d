"""Rows that native kernels visit: where they lie, and copies of them in the order of their visits."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from harness.data import Share
from harness.kernels.base import Kernel
from harness.order import Order

if TYPE_CHECKING:
    from harness.place import Place


@dataclass(frozen=True)
class Rows:
    """A share of the rows, as a kernel has them.

    Args:
        first: the number of the share's first row, in the kernel.
    """

    kernel: Kernel
    first: int

    def numbered(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows of the share in the kernel's numbers, int32; computed by numpy, which no meter sees."""
        return torch.from_numpy(rows.numpy() + np.int32(self.first)) if self.first else rows


def copied(
    name: str,
    kernel: Kernel,
    shares: Mapping[int | None, Share],
    share: Share,
    shared: Callable[[str, torch.Tensor, int | None], torch.Tensor],
) -> Rows:
    """A kernel over copies of its rows, in the memory of the nodes that `shares` says; see `Place.rows`.

    Args:
        shared: makes a tensor that all workers see, from its name, content and node.
    """
    data, kernels = kernel.row_data, {}
    assert data is not None
    for node, part in shares.items():
        title = name if node is None else f"{name} of node {node}"

        def common(array: str, tensor: torch.Tensor, title: str = title, node: int | None = node) -> torch.Tensor:
            return shared(f"{title}: {array}", tensor, node)

        kernels[node] = kernel.over(data.part(part.first, part.stop).apply(common))
    return Rows(kernels[share.node], 0)


class StoredRows:
    """Rows that are visited where they are.

    Args:
        order: of a share, in the kernel's numbers.
        epoch_rows: rows of an epoch.
    """

    def __init__(self, kernel: Kernel, order: Order, epoch_rows: int) -> None:
        self.kernel = kernel
        self._order, self._epoch_rows = order, epoch_rows

    def turn(self, epoch: int) -> bool:
        """Make ready for an epoch: nothing to do."""
        return False

    def samples(self, epoch: int, start: int, stop: int) -> torch.Tensor:
        """Positions start .. stop - 1 of an epoch in the kernel's numbers, int32."""
        before = epoch * self._epoch_rows
        return self._order.rows(before + start, before + stop)


class PermutedRows:
    """Two copies of a share's rows that take turns: one is visited, the other gets the order of the next epoch.

    Whoever turns to the next epoch has done with the one before last, as have all others: they have met since.

    Args:
        shares: the rows in each node's memory; see `Place.rows`.
        share: of these, the worker's.
        order: makes that of the share, whole epochs, in the numbers of rows.
    """

    def __init__(
        self,
        place: "Place",
        kernel: Kernel,
        shares: Mapping[int | None, Share],
        share: Share,
        order: Callable[[Rows], Order],
    ) -> None:
        names = "permuted rows of even epochs", "permuted rows of odd epochs"
        self._source = place.rows("rows", kernel, shares, share)
        self._targets = [place.rows(name, kernel, shares, share, fresh=True, sequential=True) for name in names]
        self._order, self._epoch_rows = order(self._source), share.rows
        self._place, self._epoch = place, -1
        self._begin, self._end = _own_part(share.rows, place.nodes, share.node, place.rank)
        self._numbers = self._targets[0].numbered(torch.from_numpy(np.arange(share.rows, dtype=np.int32)))
        self._compile()

    @property
    def kernel(self) -> Kernel:
        """Over the rows in the order of this epoch."""
        return self._targets[self._epoch % 2].kernel

    def turn(self, epoch: int) -> bool:
        """Make ready for an epoch, this one or the next: copy this worker's part of its rows.

        Returns:
            whether all must meet before anybody visits them.
        """
        if epoch == self._epoch:
            return False
        self._epoch = epoch
        rows = self._rows(epoch)
        self._place.gather(self._source, self._targets[epoch % 2], rows, self._begin, self._end)
        return True

    def samples(self, epoch: int, start: int, stop: int) -> torch.Tensor:
        """Positions start .. stop - 1 of an epoch in the kernel's numbers, int32."""
        return self._numbers[start:stop]

    def _compile(self) -> None:
        """Copy no rows, so that no clock sees the compiler."""
        data, target = self._source.kernel.row_data, self._targets[0].kernel.row_data
        assert data is not None and target is not None
        data.gather_into(target, self._rows(0), 0, 0, self._source.first)

    def _rows(self, epoch: int) -> torch.Tensor:
        return self._order.rows(epoch * self._epoch_rows, (epoch + 1) * self._epoch_rows)


def within_epochs(positions: Iterator[tuple[int, int]], rows: int, epochs: int) -> Iterator[tuple[int, int, int]]:
    """Batches cut where an epoch ends. Every epoch occurs, if need be with an empty batch.

    Args:
        positions: where a batch starts, and its size.
        rows: of an epoch.

    Yields:
        the epoch, and where in it a batch starts and stops.

    >>> list(within_epochs(iter([(0, 3), (3, 4)]), rows=5, epochs=3))
    [(0, 0, 3), (0, 3, 5), (1, 0, 2), (2, 0, 0)]
    """
    reached = 0
    for position, size in positions:
        stop = position + size
        while position < stop:
            epoch, start = divmod(position, rows)
            yield from ((passed, 0, 0) for passed in range(reached, epoch))
            end = min(stop, (epoch + 1) * rows)
            yield epoch, start, end - epoch * rows
            reached, position = epoch + 1, end
    yield from ((passed, 0, 0) for passed in range(reached, epochs))


def _own_part(rows: int, nodes: Sequence[int], node: int | None, rank: int) -> tuple[int, int]:
    """Which positions a worker copies, of those that share the memory of a node, or everybody."""
    sharers = [other for other, at in enumerate(nodes) if node in (None, at)]
    index = sharers.index(rank)
    return rows * index // len(sharers), rows * (index + 1) // len(sharers)
