"""The clients of federated learning: each has samples of its own, and trains from the model that it is sent.

    client k:  y <- x
               E epochs over its samples:  y <- y - eta_l (g_k(y) + mu (y - x) + drift)
               sends x - y, compressed

A worker plays clients, one at a time. A client whose device is k times as slow takes k times as long for all of this:
the worker's time is stretched, for real or in virtual time. A client's connection is its worker's with the server.
"""

from abc import ABC
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from algorithms.base import Algorithm
from algorithms.common.optimizers import Descent, Optimizer
from algorithms.common.schedules import Schedule
from algorithms.compression.compressor import Compression, Compressor, messages
from algorithms.compression.error_feedback import Sender
from algorithms.federation.availability import Availability
from algorithms.federation.devices import Devices
from algorithms.federation.tasks import Task
from algorithms.flat import flatten_
from harness.errors import require
from harness.problems.base import Problem
from harness.splits import Split
from harness.worker import Worker

_ORDER, _NOISE = 9_107_483, 2_750_159  # tell their random numbers from others of the same seed


@dataclass(frozen=True)
class WithClients(Algorithm, ABC):
    """An algorithm whose workers play clients, of one server.

    Args:
        num_clients: with parts of the training set, >= 1.
        local_epochs: passes of a client over its samples in one go, E, >= 1.
        proximal: mu of FedProx, >= 0.
        partition: who has which samples.
        devices: how slow they are.
        availability: when they can be sampled.
        compression: of what they send.
        optimizer: of a client, new whenever it is sampled.
        schedule: of its learning rate, which is the same from when it is sampled until it has trained.
        server: optimiser of the server.
        server_learning_rate: of its step, > 0.
    """

    synchronous: ClassVar[bool] = False  # clients have more or fewer samples
    is_sgd: ClassVar[bool] = False
    deals_samples: ClassVar[bool] = True

    num_clients: int
    local_epochs: int
    proximal: float
    partition: Split
    devices: Devices
    availability: Availability
    compression: Compression
    optimizer: Optimizer
    schedule: Schedule
    server: Optimizer
    server_learning_rate: float

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.num_clients >= 1, "algorithm.num_clients", "must be >= 1", self.num_clients)
        require(self.local_epochs >= 1, "algorithm.local_epochs", "must be >= 1", self.local_epochs)
        require(self.proximal >= 0, "algorithm.proximal", "must be >= 0", self.proximal)
        self.partition.check("algorithm.partition")
        rate = self.server_learning_rate
        require(rate > 0, "algorithm.server_learning_rate", "must be > 0", rate)
        assert self.compressor

    def servers(self) -> int:
        """One."""
        return 1

    @property
    def compressor(self) -> Compressor:
        """What makes a message of one client's change.

        Raises:
            UserError: for a compression that makes none.
        """
        return messages(self.compression, type(self).__name__.lower())

    def check(self, problem: Problem) -> None:
        """There must be samples for all, a timetable of them, and perhaps labels."""
        rule = f"must be at most the {problem.num_samples} samples of the training set"
        require(self.num_clients <= problem.num_samples, "algorithm.num_clients", rule, self.num_clients)
        self.partition.check_labels(problem, "algorithm/partition", "algorithm/partition=iid")
        self.availability.timetable(self.num_clients, seed=0)


class Clients:
    """All clients, as one rank knows them.

    Attributes:
        sizes: samples of each, shape (clients,).
        owners: clients that have samples, in order.
        timetable: of when they are available; None if they always are.
    """

    def __init__(self, algorithm: WithClients, worker: Worker, problem: Problem) -> None:
        self._algorithm, self._worker, self._problem = algorithm, worker, problem
        self._parts = algorithm.partition.split(problem, algorithm.num_clients, worker.seed)
        self.sizes = np.array([len(part) for part in self._parts])
        self.owners = np.flatnonzero(self.sizes)
        self.timetable = algorithm.availability.timetable(algorithm.num_clients, worker.seed)

    def work(self, client: int) -> int:
        """Samples that a client processes when it is sampled."""
        return int(self.sizes[client]) * self._algorithm.local_epochs

    def learning_rate(self, left: int) -> float:
        """Of a client that is sampled where so many samples of the budget are left."""
        epochs = (self._worker.budget - left) / self._problem.num_samples
        return self._algorithm.learning_rate * self._algorithm.schedule.factor(epochs, self._worker.total_epochs)

    def batches(self, task: Task) -> Iterator[torch.Tensor]:
        """Of a client's samples, in a new order in every epoch of every task."""
        random, left = np.random.default_rng([self._worker.seed, _ORDER, task.number, task.client]), task.samples
        while left:
            order = random.permutation(self._parts[task.client])[:left]
            yield from self._worker.batches_of(torch.from_numpy(order), self._algorithm.batch_size)
            left -= len(order)


class Player:
    """A worker in the place of one client after the other."""

    def __init__(self, algorithm: WithClients, worker: Worker, problem: Problem, clients: Clients) -> None:
        self._algorithm, self._worker, self._problem, self._clients = algorithm, worker, problem, clients
        self._model = problem.build_model(worker.device, worker.seed)
        self.weights, self._gradient = flatten_(self._model)  # y, and g_k(y)
        self._noise = torch.Generator()
        self._senders: dict[int, Sender] = {}  # of clients that it has played

    def play(self, common: torch.Tensor, task: Task, drift: torch.Tensor | None = None) -> tuple[torch.Tensor, float]:
        """Train from the common model.

        Args:
            common: x, shape (parameters,).
            drift: added to every gradient.

        Returns:
            the message that says x - y, and the sum of the steps' learning rates, K eta_l.
        """
        algorithm, seed = self._algorithm, self._worker.seed
        with self._worker.slowed(algorithm.devices.slowdown(task.client, seed)):
            self.weights.copy_(common)
            learning_rate, steps = self._clients.learning_rate(task.left), 0
            descent = Descent(algorithm.optimizer, self.weights, self._gradient, learning_rate)
            for batch in self._clients.batches(task):
                self._problem.loss(self._model, batch).backward()
                if algorithm.proximal:
                    self._gradient.add_(self.weights - common, alpha=algorithm.proximal)
                if drift is not None:
                    self._gradient += drift
                descent.step()
                self._gradient.zero_()
                steps += 1
            entropy = np.random.SeedSequence((seed, _NOISE, task.number, task.client))
            self._noise.manual_seed(int(entropy.generate_state(1)[0]))
            return self._sender(task.client).encode(common - self.weights), steps * learning_rate

    def _sender(self, client: int) -> Sender:
        if client not in self._senders:
            self._senders[client] = self._algorithm.compressor.sender(self._noise)
        return self._senders[client]
