"""A parameter server: what it does with pushes, by its policy, and when it answers (`parameter_server.py`)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from algorithms.compression import messages
from algorithms.optimizers import Descent
from harness.worker import Worker

if TYPE_CHECKING:
    from algorithms.parameter_server import ParameterServer


class Server:
    """One server's part of the weights.

    Args:
        weights: initial, shape (parameters of this part,).
    """

    def __init__(self, algorithm: ParameterServer, worker: Worker, weights: torch.Tensor) -> None:
        self._algorithm, self._worker, self._weights = algorithm, worker, weights
        self._compressor = messages(algorithm.compression, "parameter_server")
        self._gradient = torch.zeros_like(weights)
        self._descent = Descent(algorithm.optimizer, weights, self._gradient, algorithm.learning_rate)
        self._push = self._inbox()  # the last one
        self._present = set(range(worker.num_workers))
        self._version = 0  # steps taken
        self._pulled = dict.fromkeys(self._present, 0)  # version of the weights that each worker has
        self._pushes = dict.fromkeys(self._present, 0)
        self._waiting: dict[int, None] = {}  # for an answer, in the order in which they came
        self._round = 0  # pushes that count in this round

    def run(self) -> None:
        """Serve until nobody is left.

        A receive is begun for everyone: latencies of a round of messages pass together.
        """
        by_rounds = self._algorithm.consistency in ("synchronous", "backup_workers")
        coming = deque(self._listen() for _ in self._present)
        while coming:
            self._push, heard = coming.popleft()
            source = heard()
            if self._push[: self._weights.element_size()].view(self._weights.dtype)[0] == 0:
                self._present.remove(source)
            else:
                coming.append(self._listen())
                self._waiting[source] = None
                (self._collect if by_rounds else self._apply)(source)
            if by_rounds:
                self._end_round()
            for work in [self._answer(rank) for rank in list(self._answerable(by_rounds))]:
                assert work is not None  # only a rank outside the group gets none
                work.wait()

    def _inbox(self) -> torch.Tensor:
        """Room for a push."""
        size = self._weights.element_size() + self._compressor.num_bytes(self._weights)
        return self._weights.new_empty(size, dtype=torch.uint8)

    def _listen(self) -> tuple[torch.Tensor, Callable[[], int]]:
        """Begin to receive a push: where it will be, and what waits for it."""
        inbox = self._inbox()
        return inbox, self._worker.begin_receive(inbox)

    def _said(self) -> torch.Tensor:
        """The gradient of the last push."""
        return self._compressor.decode(self._push[self._weights.element_size() :], self._weights)

    def _apply(self, source: int) -> None:
        """A step along one push."""
        staleness = self._version - self._pulled[source]
        self._worker.measure("async/staleness", staleness)
        self._pushes[source] += 1
        self._gradient.copy_(self._said())
        divisor = max(1, staleness) if self._algorithm.staleness_aware else 1
        self._step(self._algorithm.learning_rate / divisor)

    def _collect(self, source: int) -> None:
        """Add a push to its round, or drop one that comes too late."""
        late = self._pulled[source] < self._version
        if self._algorithm.consistency == "backup_workers":
            self._worker.measure("async/dropped", int(late))
        if not late:
            self._gradient += self._said()
            self._round += 1

    def _end_round(self) -> None:
        """A step along the average of the round, once enough have pushed."""
        backups = self._algorithm.backups if self._algorithm.consistency == "backup_workers" else 0
        enough = min(self._worker.num_workers - backups, len(self._present))
        if self._round and self._round >= enough:
            self._gradient /= self._round
            self._round = 0
            self._step(self._algorithm.learning_rate)

    def _step(self, learning_rate: float) -> None:
        self._descent.step(learning_rate)
        self._gradient.zero_()
        self._version += 1
        if self._worker.rank == self._worker.num_workers:  # the first server counts for all
            self._worker.observe(self._weights, samples=0)

    def _answerable(self, by_rounds: bool) -> Iterator[int]:
        """Those of the waiting who may go on."""
        slowest = min((self._pushes[rank] for rank in self._present), default=0)
        bounded = self._algorithm.consistency == "bounded_staleness"
        for rank in self._waiting:
            behind = self._pulled[rank] < self._version
            ahead = self._pushes[rank] - slowest > self._algorithm.staleness
            if behind if by_rounds else not (bounded and ahead):
                yield rank

    def _answer(self, rank: int) -> dist.Work | None:
        """Begin to give the worker the weights as they are."""
        del self._waiting[rank]
        self._pulled[rank] = self._version
        return dist.isend(self._weights, rank)
