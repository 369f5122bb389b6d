"""Federated learning by rounds: a few of many clients train at a time, from one model (McMahan et al., AISTATS 2017).

    server, round t:  S <- a random subset of the available clients;  send x, and c, to each of S
    client k of S:    y_k <- local training from x (`federation/clients.py`), with drift c - c_k;  send x - y_k, and d_k
    server:           x <- server's step along the mean over S, by samples, of (x - y_k);  c <- c + sum over S of d_k

    FedAvg    mu = 0, c = 0, plain server steps of learning rate 1 (McMahan et al., Algorithm 1)
    FedProx   mu > 0 (Li et al., MLSys 2020, Algorithm 2)
    FedAdam   Adam at the server (Reddi et al., ICLR 2021, Algorithm 2), and other optimisers likewise. Deviation: it is
              torch's, which corrects the bias of its moments, where theirs begin at 0 and tau^2; tau is epsilon
    SCAFFOLD  d_k = (x - y_k) / (K eta_l) - c after K steps, c_k <- c_k + d_k, c their mean over all clients, by samples
              (Karimireddy et al., ICML 2020, Algorithm 1, option II); in the paper clients are alike

Workers play a round's clients, dealt to them in turn, one after the other; those who remember something (c_k, errors of
compression) are always played by the same worker. The server sums in the order of clients, so that the weights depend
neither on the number of workers nor on who was first. Compressed is x - y_k; d_k is sent whole, and is of what a client
did, not of what it said. Who drops out is sent nothing. The last round is cut where the budget ends.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from algorithms.common.bits import joined, split
from algorithms.common.optimizers import Descent
from algorithms.federation.clients import Clients, Player, WithClients
from algorithms.federation.tasks import GOODBYE, Task, answers, dismiss, do_tasks, message
from algorithms.flat import flat_parameters
from harness.errors import require
from harness.problems.base import Problem
from harness.splits import IID
from harness.worker import Worker

_SAMPLING = 4_230_119  # tells these random numbers from others of the same seed


@dataclass(frozen=True)
class Federated(WithClients):
    """Rounds of local training by a sample of the clients.

    Args:
        participation: share of the clients that a round samples, at least one, in (0, 1].
        dropout: probability that a sampled client does not take part after all, in [0, 1); one always does, however.
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

    @property
    def sampled(self) -> int:
        """Clients that a round samples, if as many are available."""
        return max(1, round(self.participation * self.num_clients))

    def sample(self, available: np.ndarray, number: int, seed: int) -> list[int]:
        """The clients that take part in a round; somebody always does.

        Args:
            available: those who could, at least one, in order.
            number: of the round.
        """
        random = np.random.default_rng([seed, _SAMPLING, number])
        clients = random.choice(available, min(len(available), self.sampled), replace=False)
        stay = random.random(len(clients)) >= self.dropout
        return sorted(clients[stay if stay.any() else slice(1)].tolist())

    def bytes_per_update(self, problem: Problem, weights: torch.Tensor, num_workers: int) -> float | None:
        """To and from every client that takes part, in the mean; None where time or labels decide how many can."""
        if not isinstance(self.partition, IID) or self.availability.timetable(self.num_clients, seed=0) is not None:
            return None
        sent = len(message(weights, GOODBYE)) + self.compressor.num_bytes(weights)
        mean_clients = self.sampled * (1 - self.dropout) + self.dropout**self.sampled
        return mean_clients * (sent + 2 * self.control_variates * weights.nbytes)

    def notices(self, problem: Problem, num_workers: int, epochs: float) -> list[str]:
        """Somebody always stays."""
        stay = self.sampled * (1 - self.dropout)
        rule = f"algorithm.dropout={self.dropout:g} leaves {stay:.2g} of {self.sampled} sampled clients in the mean"
        return [f"{rule}: one always takes part, so that there is a round"] if stay < 0.99 else []

    def train(self, worker: Worker, problem: Problem) -> None:
        """Play the clients that the server names until it says goodbye."""
        player = Player(self, worker, problem, Clients(self, worker, problem))
        controls: dict[int, torch.Tensor] = {}  # c_k of clients that have taken part

        def play(sent: torch.Tensor, task: Task) -> torch.Tensor:
            if not self.control_variates:
                return player.play(sent, task)[0]
            common, control = sent.chunk(2)
            own = controls.get(task.client, torch.zeros_like(control))
            change, distance = player.play(common, task, drift=control - own)
            correction = (common - player.weights) / distance - control
            controls[task.client] = own + correction
            return joined(change, correction)

        do_tasks(worker, player.weights.repeat(1 + self.control_variates), play)

    def serve(self, worker: Worker, problem: Problem) -> None:
        """Be the server, round by round."""
        server, left, number = Server(self, worker, problem), worker.budget, 0
        while left:
            tasks = server.tasks(number, left)
            server.take(tasks)
            left, number = left - sum(task.samples for task in tasks), number + 1
        dismiss(worker, server.model.view(-1))


class Server:
    """What there is beside the workers: `model` is x, and c of SCAFFOLD, shape (1 or 2, parameters)."""

    def __init__(self, algorithm: Federated, worker: Worker, problem: Problem) -> None:
        self._algorithm, self._worker, self._clients = algorithm, worker, Clients(algorithm, worker, problem)
        weights = flat_parameters(problem.build_model(worker.device, worker.seed))
        self.model = weights.new_zeros(1 + algorithm.control_variates, len(weights))
        self.model[0] = weights
        self._sums = torch.zeros_like(self.model)  # of changes, and of corrections
        self._descent = Descent(algorithm.server, self.model[0], self._sums[0], algorithm.server_learning_rate)

    def tasks(self, number: int, left: int) -> list[Task]:
        """A round's, with so much of the budget left; time passes until somebody is available."""
        tasks, unspent, available = list[Task](), left, self._clients.owners
        if (timetable := self._clients.timetable) is not None:
            available = timetable.among(available, timetable.wait(self._worker, available))
        for client in self._algorithm.sample(available, number, self._worker.seed):
            tasks.append(Task(number, client, min(unspent, self._clients.work(client)), left))
            unspent -= tasks[-1].samples
        return [task for task in tasks if task.samples]

    def take(self, tasks: Sequence[Task]) -> None:
        """A round."""
        sizes, all_samples = [int(self._clients.sizes[task.client]) for task in tasks], int(self._clients.sizes.sum())
        self._sums.zero_()
        for size, (change, correction) in zip(sizes, self._answers(tasks), strict=True):
            self._sums[0].add_(change, alpha=size / sum(sizes))
            self._sums[1:].add_(correction, alpha=size / all_samples)
        self._descent.step()
        self.model[1:] += self._sums[1:]
        self._worker.observe(self.model[0], sum(task.samples for task in tasks))

    def _answers(self, tasks: Sequence[Task]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Changes and corrections, in the order of clients."""
        compressor, like, corrections = self._algorithm.compressor, self.model[0], self.model[1:]
        change_bytes = compressor.num_bytes(like)
        ranks = [self._rank_of(turn, task.client) for turn, task in enumerate(tasks)]
        for answer in answers(self.model.view(-1), tasks, ranks, change_bytes + corrections.nbytes):
            change, correction = split(answer, change_bytes)
            yield compressor.decode(change, like), correction.view(like.dtype).view_as(corrections)

    def _rank_of(self, turn: int, client: int) -> int:
        """The worker that plays a client, the `turn`-th of its round."""
        remembers = self._algorithm.control_variates or self._algorithm.compression.remembers
        return (client if remembers else turn) % self._worker.num_workers
