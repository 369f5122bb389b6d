"""Data servers: ranks that hold the training set and stream minibatches to workers, which prefetch.

    worker r:      asks its server for its next batches, as many as `prefetch` ahead of the one it works on
    data server:   loop: receive a request from whoever comes first; gather its rows; send them

A request is credit for one answer, so a server never runs ahead of a worker that does not come along. It names
positions in the one order of samples of `data=partitioned`, which all ranks know; rows travel as bytes, in one message
per batch. Workers know how long each row is, as from the index file of a sharded data set, so that they can receive
ahead. Worker r's server is the (r mod S)-th of S. These messages have a process group of their own: an algorithm's
collectives go on as if there were no data servers.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from harness.batch import Batch, Layout, message_bytes, packed, unpacked
from harness.data import DataPolicy, Partitioned, Share, shared_by_all
from harness.errors import require
from harness.order import Order
from harness.problems.base import Problem

REQUEST, ROWS = 1, 2  # tags


@dataclass(frozen=True)
class Streamed(DataPolicy):
    """One global order, dealt as `Partitioned` does, to workers that get the rows by message.

    Args:
        num_servers: ranks beyond the workers and the algorithm's own servers, each with the whole training set, >= 1.
        prefetch: batches that a worker has asked for while it works on one, >= 0; 0 to ask when it needs one.
    """

    num_servers: int
    prefetch: int

    def __post_init__(self) -> None:
        super().__post_init__()
        rule = "must be index or storage with data=streamed: a server gathers the rows of every batch anyway"
        require(self.order != "permuted", "data.order", rule, self.order)
        require(self.num_servers >= 1, "data.num_servers", "must be >= 1", self.num_servers)
        require(self.prefetch >= 0, "data.prefetch", "must be >= 0", self.prefetch)

    @property
    def credits(self) -> int:
        """Batches that a worker may have asked for at a time."""
        return max(self.prefetch, 1)

    def servers(self) -> int:
        """The data servers."""
        return self.num_servers

    def server_of(self, rank: int, num_ranks: int) -> int:
        """The data server of a worker: these are the last ranks of all.

        >>> [Streamed("index", num_servers=2, prefetch=1).server_of(rank, 7) for rank in range(3)]
        [5, 6, 5]
        """
        return num_ranks - self.num_servers + rank % self.num_servers

    def at_hand(self) -> Partitioned:
        """The same order of the same samples."""
        return Partitioned(self.order)

    def share(self, num_samples: int, budget: int, rank: int, nodes: Sequence[int]) -> Share:
        """All rows, with all workers."""
        return shared_by_all(num_samples, budget, rank, len(nodes))


class Stream:
    """A worker's end: batches that come from its server.

    Args:
        group: of all ranks.
    """

    def __init__(self, data: Streamed, group: dist.ProcessGroup) -> None:
        self._data, self._group, self._server = data, group, data.server_of(group.rank(), group.size())
        self._coming: deque[_Coming] = deque()

    def batches(
        self, problem: Problem, order: Order, positions: Iterator[tuple[float, int, int]]
    ) -> Iterator[tuple[float, Batch]]:
        """Ask for batches, and hand them out as they are needed; what an earlier call asked for in vain is dropped.

        Args:
            order: of the samples, on the device where rows are wanted.
            positions: of each batch the epochs dealt before it, its place in the order and its size.

        Yields:
            the epochs dealt before, and the batch.
        """
        self._take_all()
        while True:
            self._ask(problem, order, positions, self._data.credits)
            if not self._coming:
                return
            received = self._coming.popleft().received()
            self._ask(problem, order, positions, self._data.prefetch)
            yield received

    def close(self) -> None:
        """Take what is still under way, and say goodbye, once for every credit."""
        self._take_all()
        for work in [self._send(0, 0) for _ in range(self._data.credits)]:
            work.wait()

    def _take_all(self) -> None:
        while self._coming:
            self._coming.popleft().received()

    def _ask(self, problem: Problem, order: Order, positions: Iterator[tuple[float, int, int]], most: int) -> None:
        """Ask for batches until so many are under way."""
        while len(self._coming) < most and (following := next(positions, None)) is not None:
            elapsed, position, size = following
            request = self._send(position, size)
            layout = problem.layout(order.rows(position, position + size))
            message = torch.empty(message_bytes(layout), dtype=torch.uint8)
            answer = self._group.recv([message], self._server, ROWS)
            self._coming.append(_Coming(problem, order.device, elapsed, size, layout, message, request, answer))

    def _send(self, position: int, size: int) -> dist.Work:
        """A request, or goodbye."""
        return self._group.send([torch.tensor([position, size])], self._server, REQUEST)


@dataclass(frozen=True)
class _Coming:
    """A batch that has been asked for."""

    problem: Problem
    device: torch.device
    elapsed_epochs: float
    size: int
    layout: Layout
    message: torch.Tensor
    request: dist.Work
    answer: dist.Work

    def received(self) -> tuple[float, Batch]:
        """Wait for it."""
        self.request.wait()
        self.answer.wait()
        rows = tuple(row.to(self.device) for row in unpacked(self.message, self.layout))
        return self.elapsed_epochs, Batch(self.problem, rows, self.size)


def serve(data: Streamed, group: dist.ProcessGroup, problem: Problem, order: Order, num_workers: int) -> None:
    """Be a data server until all its workers have said goodbye.

    A receive is posted for every credit, and meets either the next request or the goodbye.

    Args:
        group: of all ranks.
        order: of the samples.
        num_workers: of the run.
    """
    workers = [rank for rank in range(num_workers) if data.server_of(rank, group.size()) == group.rank()]
    posted = deque(_Request(group) for _ in range(len(workers) * data.credits))
    sent: dict[int, deque[dist.Work]] = {}
    while posted:
        source, position, size = posted.popleft().received()
        if size == 0:
            continue
        posted.append(_Request(group))
        works = sent.setdefault(source, deque())
        while len(works) >= data.credits:
            works.popleft().wait()
        works.append(group.send([packed(problem.gather(order.rows(position, position + size)))], source, ROWS))
    for works in sent.values():
        for work in works:
            work.wait()


class _Request:
    """What a worker will ask for."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._message = torch.empty(2, dtype=torch.int64)
        self._work = group.recv_anysource([self._message], REQUEST)

    def received(self) -> tuple[int, int, int]:
        """Wait for it. Returns who asks, the first position and how many samples; 0 to say goodbye."""
        self._work.wait()
        position, size = (int(number) for number in self._message)
        return self._work._source_rank(), position, size
