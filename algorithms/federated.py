"""Federated learning: a few of many clients train at a time, each on its own data (McMahan et al., AISTATS 2017).

    round t:  S <- a random subset of the clients
              client k of S:  y_k <- x
                              E epochs over its samples:  y_k <- y_k - eta_l (g_k(y_k) + mu (y_k - x) + c - c_k)
              x <- server's step along the mean over S, by samples, of (x - y_k)

    FedAvg    mu = 0, c = 0, plain server steps of learning rate 1 (McMahan et al., Algorithm 1)
    FedProx   mu > 0 (Li et al., MLSys 2020, Algorithm 2)
    FedAdam   Adam at the server (Reddi et al., ICLR 2021, Algorithm 2), and other optimisers likewise
    SCAFFOLD  c_k <- c_k - c + (x - y_k) / (K eta_l) after K steps, c their mean (Karimireddy et al., ICML 2020,
              Algorithm 1, option II)

There is no server: client k is played by worker k mod P, means are all-reduced, and every worker takes the server's
step. So what is sent is less than between real clients and their server; the weights do not depend on P. Means are
weighted by samples, in SCAFFOLD too, whose clients are alike in the paper. The last round is cut where the budget ends.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import ClassVar

import numpy as np
import torch
import torch.distributed as dist

from algorithms.base import Algorithm
from algorithms.flat import flatten_
from algorithms.optimizers import Descent, Optimizer
from algorithms.partition import Partition
from harness.errors import require
from harness.problems.base import Problem
from harness.worker import Worker

_SAMPLING, _ORDER = 4_230_119, 9_107_483  # tell their random numbers from others of the same seed


@dataclass(frozen=True)
class Federated(Algorithm):
    """Rounds of local training by a sample of the clients.

    Args:
        num_clients: with parts of the training set, >= 1.
        participation: share of the clients that a round samples, at least one, in (0, 1].
        dropout: probability that a sampled client does not take part after all, in [0, 1).
        local_epochs: passes of a client over its samples in a round, E, >= 1.
        proximal: mu of FedProx, >= 0.
        control_variates: whether clients correct their drift, as in SCAFFOLD; needs a plain `optimizer`.
        partition: who has which samples.
        optimizer: of a client, new in every round.
        server: optimiser of the server.
        server_learning_rate: of its step, > 0.
    """

    synchronous: ClassVar[bool] = False  # rounds are, but clients have more or fewer samples
    is_sgd: ClassVar[bool] = False
    deals_samples: ClassVar[bool] = True

    num_clients: int
    participation: float
    dropout: float
    local_epochs: int
    proximal: float
    control_variates: bool
    partition: Partition
    optimizer: Optimizer
    server: Optimizer
    server_learning_rate: float

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.num_clients >= 1, "algorithm.num_clients", "must be >= 1", self.num_clients)
        require(0 < self.participation <= 1, "algorithm.participation", "must be in (0, 1]", self.participation)
        require(0 <= self.dropout < 1, "algorithm.dropout", "must be in [0, 1)", self.dropout)
        require(self.local_epochs >= 1, "algorithm.local_epochs", "must be >= 1", self.local_epochs)
        require(self.proximal >= 0, "algorithm.proximal", "must be >= 0", self.proximal)
        rate = self.server_learning_rate
        require(rate > 0, "algorithm.server_learning_rate", "must be > 0", rate)
        rule = "must be false unless algorithm/optimizer=sgd, without weight decay"
        plain = self.optimizer.is_plain or not self.control_variates
        require(plain, "algorithm.control_variates", rule, self.control_variates)

    def check(self, problem: Problem) -> None:
        """Every client needs samples, and the partition perhaps labels."""
        rule = f"must be at most the {problem.num_samples} samples of the training set"
        require(self.num_clients <= problem.num_samples, "algorithm.num_clients", rule, self.num_clients)
        self.partition.split(problem, self.num_clients, seed=0)

    def rounds(self, seed: int) -> Iterator[list[int]]:
        """The clients that take part in each round; somebody always does."""
        sampled = max(1, round(self.participation * self.num_clients))
        for number in count():
            random = np.random.default_rng([seed, _SAMPLING, number])
            clients = random.choice(self.num_clients, sampled, replace=False)
            stay = random.random(sampled) >= self.dropout
            yield sorted(clients[stay if stay.any() else slice(1)].tolist())

    def bytes_per_update(self, weights: torch.Tensor, num_workers: int) -> float:
        """Every worker hands in its sum of changes, and of corrections, once a round."""
        return weights.nbytes * (1 + self.control_variates) * num_workers if num_workers > 1 else 0

    def train(self, worker: Worker, problem: Problem) -> None:
        """Play this worker's clients, round by round."""
        parts = self.partition.split(problem, self.num_clients, worker.seed)
        players = Players(self, worker, problem, parts)
        left = worker.budget
        for number, sampled in enumerate(self.rounds(worker.seed)):
            work: dict[int, int] = {}
            for client in sampled:
                if samples := min(left, len(parts[client]) * self.local_epochs):
                    work[client] = samples
                    left -= samples
            if work:
                players.round(number, work)
            if not left:
                return


class Players:
    """One worker's share of the clients, and its copy of the server.

    Args:
        parts: samples of every client, int32.
    """

    def __init__(self, algorithm: Federated, worker: Worker, problem: Problem, parts: list[np.ndarray]) -> None:
        self._algorithm, self._worker, self._problem, self._parts = algorithm, worker, problem, parts
        self._model = problem.build_model(worker.device, worker.seed)
        self._weights, self._gradient = flatten_(self._model)  # y, and g_k(y)
        self._common = self._weights.clone()  # x
        self._sums = self._common.new_zeros(
            1 + algorithm.control_variates, len(self._common)
        )  # of changes; of corrections
        self._server = Descent(algorithm.server, self._common, self._sums[0], algorithm.server_learning_rate)
        self._control = torch.zeros_like(self._common)  # c
        self._controls: dict[int, torch.Tensor] = {}  # c_k of own clients that have taken part

    def round(self, number: int, work: dict[int, int]) -> None:
        """One round of all clients and the server.

        Args:
            work: samples to process, by client.
        """
        own = [client for client in work if client % self._worker.num_workers == self._worker.rank]
        total = sum(len(self._parts[client]) for client in work)
        self._sums.zero_()
        for client in own:
            steps, share = self._descend(number, client, work[client]), len(self._parts[client])
            change = self._common - self._weights
            self._sums[0].add_(change, alpha=share / total)
            if self._algorithm.control_variates:
                correction = change / (steps * self._algorithm.learning_rate) - self._control
                self._controls[client] = self._controls.get(client, 0) + correction
                self._sums[1].add_(correction, alpha=share / self._problem.num_samples)
        dist.all_reduce(self._sums)
        self._server.step()
        if self._algorithm.control_variates:
            self._control += self._sums[1]
        self._worker.observe(self._common, sum(work[client] for client in own), updates=int(self._worker.rank == 0))

    def _descend(self, number: int, client: int, num_samples: int) -> int:
        """Train a client from the common model; returns its steps."""
        algorithm, steps = self._algorithm, 0
        self._weights.copy_(self._common)
        descent = Descent(algorithm.optimizer, self._weights, self._gradient, algorithm.learning_rate)
        drift = self._control - self._controls.get(client, torch.zeros_like(self._control))
        for batch in self._batches(number, client, num_samples):
            self._problem.loss(self._model, batch).backward()
            if algorithm.proximal:
                self._gradient.add_(self._weights - self._common, alpha=algorithm.proximal)
            if algorithm.control_variates:
                self._gradient += drift
            descent.step()
            self._gradient.zero_()
            steps += 1
        return steps

    def _batches(self, number: int, client: int, num_samples: int) -> Iterator[torch.Tensor]:
        """Of a client's samples, in a new order in every epoch."""
        random = np.random.default_rng([self._worker.seed, _ORDER, number, client])
        while num_samples:
            order = random.permutation(self._parts[client])[:num_samples]
            yield from self._worker.batches_of(torch.from_numpy(order), self._algorithm.batch_size)
            num_samples -= len(order)
