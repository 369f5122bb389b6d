"""Federated learning by rounds: a few of many clients train at a time, from one model (McMahan et al., AISTATS 2017).

    round t:  S <- a random subset of the available clients
              client k of S:  y_k <- local training from x (`federation/clients.py`), with drift c - c_k
              x <- server's step along the mean over S, by samples, of (x - y_k)

    FedAvg    mu = 0, c = 0, plain server steps of learning rate 1 (McMahan et al., Algorithm 1)
    FedProx   mu > 0 (Li et al., MLSys 2020, Algorithm 2)
    FedAdam   Adam at the server (Reddi et al., ICLR 2021, Algorithm 2), and other optimisers likewise. Deviation: it is
              torch's, which corrects the bias of its moments, where theirs begin at 0 and tau^2; tau is epsilon
    SCAFFOLD  c_k <- c_k - c + (x - y_k) / (K eta_l) after K steps, c their mean (Karimireddy et al., ICML 2020,
              Algorithm 1, option II)

There is no server: a round's clients are dealt to the workers in turn (those of SCAFFOLD, who have a memory, are always
the same worker's), means are all-reduced, and every worker takes the server's step. So a round takes as long as its
busiest worker, and what is sent in it is one all-reduce, whatever the number of clients; what these would have sent is
measured apart. The weights do not depend on the number of workers. Means are weighted by samples, in SCAFFOLD too,
whose clients are alike in the paper. Compressed are changes; the corrections of SCAFFOLD, which a client sends too, are
those of what it did, not of what it said. The last round is cut where the budget ends.
"""

from dataclasses import dataclass
from itertools import count

import numpy as np
import torch
import torch.distributed as dist

from algorithms.common.optimizers import Descent
from algorithms.federation.clients import Clients, Player, WithClients
from harness.errors import require
from harness.problems.base import Problem
from harness.worker import Worker

_SAMPLING = 4_230_119  # tells these random numbers from others of the same seed


@dataclass(frozen=True)
class Federated(WithClients):
    """Rounds of local training by a sample of the clients.

    Args:
        participation: share of the clients that a round samples, at least one, in (0, 1].
        dropout: probability that a sampled client does not take part after all, in [0, 1).
        control_variates: whether clients correct their drift, as in SCAFFOLD; needs a plain `optimizer`.
    """

    participation: float
    dropout: float
    control_variates: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.participation <= 1, "algorithm.participation", "must be in (0, 1]", self.participation)
        require(0 <= self.dropout < 1, "algorithm.dropout", "must be in [0, 1)", self.dropout)
        rule = "must be false unless algorithm/optimizer=sgd, without weight decay"
        plain = self.optimizer.is_plain or not self.control_variates
        require(plain, "algorithm.control_variates", rule, self.control_variates)

    def sample(self, available: np.ndarray, number: int, seed: int) -> list[int]:
        """The clients that take part in a round; somebody always does.

        Args:
            available: those who could, at least one, in order.
            number: of the round.
        """
        random = np.random.default_rng([seed, _SAMPLING, number])
        sampled = min(len(available), max(1, round(self.participation * self.num_clients)))
        clients = random.choice(available, sampled, replace=False)
        stay = random.random(sampled) >= self.dropout
        return sorted(clients[stay if stay.any() else slice(1)].tolist())

    def bytes_per_update(self, problem: Problem, weights: torch.Tensor, num_workers: int) -> float:
        """Every worker hands in its sum of changes, and of corrections, once a round."""
        return weights.nbytes * (1 + self.control_variates) * num_workers if num_workers > 1 else 0

    def train(self, worker: Worker, problem: Problem) -> None:
        """Play this worker's clients, round by round."""
        clients, left = Clients(self, worker, problem), worker.budget
        rounds = Rounds(self, worker, problem, clients)
        for number in count():
            learning_rate, work = clients.learning_rate(left), dict[int, int]()
            for client in self.sample(_available(clients, worker), number, worker.seed):
                if samples := min(left, clients.work(client)):
                    work[client] = samples
                    left -= samples
            rounds.take(number, work, learning_rate)
            if not left:
                return


class Rounds:
    """One worker's part in the rounds, and its copy of the server."""

    def __init__(self, algorithm: Federated, worker: Worker, problem: Problem, clients: Clients) -> None:
        self._algorithm, self._worker, self._problem, self._clients = algorithm, worker, problem, clients
        self._player = Player(algorithm, worker, problem, clients)
        self._common = self._player.weights.clone()  # x
        # of changes; of corrections
        self._sums = self._common.new_zeros(1 + algorithm.control_variates, len(self._common))
        self._server = Descent(algorithm.server, self._common, self._sums[0], algorithm.server_learning_rate)
        self._control = torch.zeros_like(self._common)  # c
        self._controls: dict[int, torch.Tensor] = {}  # c_k of own clients that have taken part

    def take(self, number: int, work: dict[int, int], learning_rate: float) -> None:
        """One round of all clients and the server.

        Args:
            work: samples to process, by client.
            learning_rate: of the clients, eta_l.
        """
        total, own = sum(int(self._clients.sizes[client]) for client in work), self._own(list(work))
        self._sums.zero_()
        for client in own:
            self._train(number, client, work[client], learning_rate, total)
        dist.all_reduce(self._sums)
        self._server.step()
        if self._algorithm.control_variates:
            self._control += self._sums[1]
        self._worker.observe(self._common, sum(work[client] for client in own), updates=int(self._worker.rank == 0))

    def _own(self, sampled: list[int]) -> list[int]:
        """The clients that this worker plays."""
        with_memory = self._algorithm.control_variates or self._algorithm.compression.remembers
        return [
            client
            for place, client in enumerate(sampled)
            if (client if with_memory else place) % self._worker.num_workers == self._worker.rank
        ]

    def _train(self, number: int, client: int, num_samples: int, learning_rate: float, total: int) -> None:
        """Add a client's part to the sums."""
        algorithm, size, drift = self._algorithm, int(self._clients.sizes[client]), None
        if algorithm.control_variates:
            drift = self._control - self._controls.get(client, torch.zeros_like(self._control))
        message, steps = self._player.play(self._common, number, client, num_samples, learning_rate, drift)
        self._sums[0].add_(algorithm.compressor.decode(message, self._common), alpha=size / total)
        if algorithm.control_variates:
            exact = self._common - self._player.weights
            correction = exact / (steps * learning_rate) - self._control
            self._controls[client] = self._controls.get(client, 0) + correction
            self._sums[1].add_(correction, alpha=size / self._problem.num_samples)


def _available(clients: Clients, worker: Worker) -> np.ndarray:
    """Who can be sampled now by rank 0's clock, which tells all; time passes until there is somebody."""
    if clients.timetable is None:
        return clients.owners
    now_s = torch.zeros(1, dtype=torch.float64, device=worker.device)
    if worker.rank == 0:
        now_s.fill_(clients.timetable.wait(worker, clients.owners))
    dist.broadcast(now_s, 0)
    return clients.timetable.among(clients.owners, float(now_s))
