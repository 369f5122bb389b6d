"""FedBuff: asynchronous federated learning with a buffer (Nguyen et al., AISTATS 2022, Algorithm 1).

    worker:  loop: receive x and a client k;  y_k <- local training from x (`federation/clients.py`);  send x - y_k
    server:  loop: receive a change from whoever comes first;  buffer += change / (1 + tau)^a
                   after K changes:  x <- server's step along buffer / K;  empty the buffer
                   send x and a random client that is available, and nobody trains, to whom it heard

tau is the change's staleness: server's steps since its client was sent x; a = 1/2 in the paper (section 5). The
paper's concurrency is the number of workers, each of which plays one client at a time. Changes count alike, whatever
the samples behind them. What the buffer holds when the budget ends makes a last step. While no client is available to
a worker it waits for the next change, or where nobody trains until somebody is available.
"""

from dataclasses import dataclass

import numpy as np
import torch

from algorithms.common.optimizers import Descent
from algorithms.federation.availability import contained
from algorithms.federation.clients import Clients, Player, WithClients
from algorithms.federation.tasks import GOODBYE, Task, do_tasks, message
from algorithms.flat import flat_parameters
from algorithms.serving.correspondence import Correspondence
from harness.errors import require
from harness.problems.base import Problem
from harness.worker import Worker

_SAMPLING = 3_628_273  # tells these random numbers from others of the same seed


@dataclass(frozen=True)
class FedBuff(WithClients):
    """A server takes a step along every K changes, however stale.

    Args:
        buffer_size: changes per step, K, >= 1.
        staleness_exponent: a, >= 0; 0 for changes that count alike.
    """

    buffer_size: int
    staleness_exponent: float

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.buffer_size >= 1, "algorithm.buffer_size", "must be >= 1", self.buffer_size)
        exponent = self.staleness_exponent
        require(exponent >= 0, "algorithm.staleness_exponent", "must be >= 0", exponent)
        rule = "must be false with algorithm=fedbuff: whichever worker plays a client next knows not what it owes"
        remembers = self.compression.remembers
        require(not remembers, "algorithm.compression.error_feedback", rule, remembers)

    def bytes_per_update(self, problem: Problem, weights: torch.Tensor, num_workers: int) -> float:
        """K times the model and a task go to a client, and its change comes back."""
        return self.buffer_size * (len(message(weights, GOODBYE)) + self.compressor.num_bytes(weights))

    def notices(self, problem: Problem, num_workers: int, epochs: float) -> list[str]:
        """A buffer that never fills makes no step before the budget ends."""
        changes = epochs * self.num_clients / self.local_epochs  # of clients of mean size
        if changes >= self.buffer_size:
            return []
        never = f"algorithm.buffer_size={self.buffer_size} is more than all of about {changes:.0f} changes"
        return [f"{never}: the server takes one step, when budget.epochs={epochs:g} has ended"]

    def train(self, worker: Worker, problem: Problem) -> None:
        """Play whom the server names until it says goodbye."""
        player = Player(self, worker, problem, Clients(self, worker, problem))
        do_tasks(worker, player.weights.clone(), lambda common, task: player.play(common, task)[0])

    def serve(self, worker: Worker, problem: Problem) -> None:
        """Hand out the budget, and take steps."""
        weights = flat_parameters(problem.build_model(worker.device, worker.seed))
        Server(self, worker, weights, Clients(self, worker, problem)).run()


class Server:
    """The model, the buffer, and who trains.

    Args:
        weights: initial, shape (parameters,).
    """

    def __init__(self, algorithm: FedBuff, worker: Worker, weights: torch.Tensor, clients: Clients) -> None:
        self._algorithm, self._worker, self._weights, self._clients = algorithm, worker, weights, clients
        self._buffer, self._buffered = torch.zeros_like(weights), 0
        self._descent = Descent(algorithm.server, weights, self._buffer, algorithm.server_learning_rate)
        change = torch.empty(algorithm.compressor.num_bytes(weights), dtype=torch.uint8, device=weights.device)
        self._workers = Correspondence(worker, change)
        self._left, self._number, self._version = worker.budget, 0, 0  # samples; tasks given; steps taken
        self._training: dict[int, tuple[Task, int]] = {}  # by rank, with the version that it was sent

    def run(self) -> None:
        """Serve until all workers have been sent away."""
        waiting = list(range(self._worker.num_workers))
        while waiting or self._training:
            waiting = [rank for rank in waiting if not self._answer(rank)]
            if self._training:
                source, change = self._workers.hear()
                self._take(change, *self._training.pop(source))
                waiting.append(source)
            elif waiting:
                assert self._clients.timetable is not None  # else somebody had been found
                self._clients.timetable.wait(self._worker, self._clients.owners)
        self._workers.close()

    def _answer(self, rank: int) -> bool:
        """Give a worker the model and a client, or send it away; not if no client is to be had."""
        if not self._left:
            self._workers.send(rank, message(self._weights, GOODBYE))
            return True
        clients = self._free()
        if not len(clients):
            return False
        random = np.random.default_rng([self._worker.seed, _SAMPLING, self._number])
        client = int(random.choice(clients))
        task = Task(self._number, client, min(self._left, self._clients.work(client)), self._left)
        self._left, self._number = self._left - task.samples, self._number + 1
        self._training[rank] = task, self._version
        self._workers.send(rank, message(self._weights, task))
        self._workers.expect()
        return True

    def _free(self) -> np.ndarray:
        """Clients that are available, and that nobody trains."""
        busy = [task.client for task, _ in self._training.values()]
        clients, timetable = self._clients.owners, self._clients.timetable
        clients = clients[~contained(clients, busy)]
        return clients if timetable is None else timetable.among(clients, self._worker.read_clock())

    def _take(self, said: torch.Tensor, task: Task, version: int) -> None:
        """Add what was received to the buffer, and take a step if it is full or the last one."""
        staleness = self._version - version
        self._worker.measure("async/staleness", staleness)
        change = self._algorithm.compressor.decode(said, self._weights)
        self._buffer.add_(change, alpha=(1 + staleness) ** -self._algorithm.staleness_exponent)
        self._buffered += 1
        steps = self._buffered == self._algorithm.buffer_size or not (self._left or self._training)
        if steps:
            self._buffer /= self._buffered
            self._descent.step()
            self._buffer.zero_()
            self._buffered, self._version = 0, self._version + 1
        self._worker.observe(self._weights, task.samples, updates=int(steps))
