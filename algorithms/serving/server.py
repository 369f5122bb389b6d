"""A parameter server: what it does with pushes, by its policy, and when it answers (`parameter_server.py`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from algorithms.common.optimizers import Descent
from algorithms.compression.compressor import messages
from algorithms.serving.correspondence import Correspondence
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
        size = weights.element_size() + self._compressor.num_bytes(weights)
        self._workers = Correspondence(worker, weights.new_empty(size, dtype=torch.uint8))
        self._parts: dict[torch.Tensor, tuple[torch.Tensor, torch.Tensor]] = {}  # of an inbox, see `_read`
        self._present = set(range(worker.num_workers))
        self._version = 0  # steps taken
        self._pulled = dict.fromkeys(self._present, 0)  # version of the weights that each worker has
        self._pushes = dict.fromkeys(self._present, 0)
        self._waiting: dict[int, None] = {}  # for an answer, in the order in which they came
        self._round = 0  # pushes that count in this round
        self._counts = worker.rank == worker.num_workers  # the first server does for all

    def run(self) -> None:
        """Serve until nobody is left."""
        by_rounds = self._algorithm.consistency in ("synchronous", "backup_workers")
        for _ in self._present:
            self._workers.expect()
        while self._workers.expected:
            source, push = self._workers.hear()
            version, (goes_on, said) = self._version, self._read(push)
            if leaves := goes_on.item() == 0:
                self._present.remove(source)
            else:
                self._waiting[source] = None
                (self._collect if by_rounds else self._apply)(source, said)
            if by_rounds:
                self._end_round()
            if ranks := list(self._answerable(by_rounds)):
                self._answer(ranks)
            if self._counts and self._version > version:  # now that nobody waits for it
                self._worker.observe(self._weights, samples=0)
            if not leaves:
                self._workers.expect()
        self._workers.close()

    def _read(self, push: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Whether its worker goes on, and what says the gradient: views, made once for every inbox."""
        if push not in self._parts:
            size = self._weights.element_size()
            self._parts[push] = push[:size].view(self._weights.dtype), push[size:]
        return self._parts[push]

    def _apply(self, source: int, said: torch.Tensor) -> None:
        """A step along one push."""
        staleness = self._version - self._pulled[source]
        self._worker.measure("async/staleness", staleness)
        self._pushes[source] += 1
        self._gradient.copy_(self._compressor.decode(said, self._weights))
        divisor = max(1, staleness) if self._algorithm.staleness_aware else 1
        self._step(self._algorithm.learning_rate / divisor)

    def _collect(self, source: int, said: torch.Tensor) -> None:
        """Add a push to its round, or drop one that comes too late."""
        staleness = self._version - self._pulled[source]
        if self._algorithm.consistency == "backup_workers":
            self._worker.measure("async/dropped", int(staleness > 0))
        if staleness == 0:
            self._worker.measure("async/staleness", staleness)
            self._gradient += self._compressor.decode(said, self._weights)
            self._round += 1

    def _end_round(self) -> None:
        """A step along the average of the round, once enough have pushed."""
        backups = self._algorithm.backups if self._algorithm.consistency == "backup_workers" else 0
        enough = min(self._worker.num_workers - backups, len(self._present))
        if self._round and self._round >= enough:
            self._gradient /= self._round
            self._round = 0
            self._step(self._algorithm.learning_rate)
            self._gradient.zero_()

    def _step(self, learning_rate: float) -> None:
        self._descent.step(learning_rate)
        self._version += 1

    def _answerable(self, by_rounds: bool) -> Iterator[int]:
        """Those of the waiting who may go on."""
        slowest = min((self._pushes[rank] for rank in self._present), default=0)
        bounded = self._algorithm.consistency == "bounded_staleness"
        for rank in self._waiting:
            behind = self._pulled[rank] < self._version
            ahead = self._pushes[rank] - slowest > self._algorithm.staleness
            if behind if by_rounds else not (bounded and ahead):
                yield rank

    def _answer(self, ranks: list[int]) -> None:
        """Begin to give workers the weights as they are now."""
        weights = self._weights.clone()
        for rank in ranks:
            del self._waiting[rank]
            self._pulled[rank] = self._version
            self._workers.send(rank, weights)
