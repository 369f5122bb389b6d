"""Parameter servers: workers push gradients and pull weights (Li et al., OSDI 2014, Algorithm 1).

    worker r:  loop: g <- gradient at w;  push g to every server;  pull w from every server
    server m:  has its part of w;  loop: receive a push from whoever comes first;  update;  answer with the part of w

`consistency` is the servers' policy of when to update and whom to answer:

    synchronous        one step along the average of all pushes of a round; all are answered then (BSP): minibatch SGD
    backup_workers     one step along the average of the first P - b pushes of a round; late ones are dropped, and
                       answered at once (Chen et al., arXiv:1604.00981, Algorithms 3 and 4)
    asynchronous       a step along each push, as it comes, answered at once (Dean et al., NIPS 2012, Downpour SGD)
    bounded_staleness  as asynchronous, but a worker more than s pushes ahead of the slowest waits for its answer (SSP;
                       Ho et al., NIPS 2013, section 2)

A push and the next pull are one exchange here, so every gradient is of the weights that its worker pulled last. Each
server decides alone: with several, and unless synchronous, parts of w may have seen different pushes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.distributed as dist

from algorithms.base import Algorithm
from algorithms.flat import flat_parameters, flatten_
from algorithms.optimizers import Descent, Optimizer
from harness.errors import require
from harness.problems.base import Problem
from harness.worker import Worker

CONSISTENCIES = ("synchronous", "backup_workers", "asynchronous", "bounded_staleness")


@dataclass(frozen=True)
class ParameterServer(Algorithm):
    """Workers around servers, each of which has a part of the model.

    Args:
        num_servers: ranks beyond the workers, each with an equal part of the weights, >= 1.
        consistency: synchronous, backup_workers, asynchronous or bounded_staleness.
        staleness: s of bounded_staleness, >= 0.
        backups: b of backup_workers, >= 0 and below the number of workers.
        staleness_aware: divide the step by the staleness of its gradient where that is above 1 (Zhang, Gupta, Lian and
            Liu, IJCAI 2016, equation 6); of no effect where pushes make rounds.
        optimizer: of the servers.
    """

    num_servers: int
    consistency: str
    staleness: int
    backups: int
    staleness_aware: bool
    optimizer: Optimizer

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.num_servers >= 1, "algorithm.num_servers", "must be >= 1", self.num_servers)
        rule = f"must be one of {', '.join(CONSISTENCIES)}"
        require(self.consistency in CONSISTENCIES, "algorithm.consistency", rule, self.consistency)
        require(self.staleness >= 0, "algorithm.staleness", "must be >= 0", self.staleness)
        require(self.backups >= 0, "algorithm.backups", "must be >= 0", self.backups)

    @property
    def synchronous(self) -> bool:  # type: ignore[override]
        """Whether all workers take the same number of steps."""
        return self.consistency == "synchronous"

    def servers(self) -> int:
        """One rank each."""
        return self.num_servers

    def constants(self, num_workers: int) -> dict[str, float]:
        """None.

        Raises:
            UserError: if nobody would be left in a round.
        """
        few = self.consistency != "backup_workers" or num_workers == 1 or self.backups < num_workers
        require(few, "algorithm.backups", f"must be below hardware.num_workers={num_workers}", self.backups)
        return {}

    def bytes_per_update(self, weights: torch.Tensor, num_workers: int) -> float | None:
        """A push, with one number for every server, and a pull; in synchronous rounds those of every worker.

        Returns:
            None with backup workers, whose late pushes are no updates.
        """
        if self.consistency == "backup_workers":
            return None
        exchange = 2 * weights.nbytes + self.num_servers * weights.element_size()
        return exchange * num_workers if self.synchronous else exchange

    def staleness_bound(self, num_workers: int) -> int | None:
        """None of rounds; while a worker is from s behind to s ahead of another, that one pushes 2 s + 1 times."""
        if self.consistency == "bounded_staleness":
            return (num_workers - 1) * (2 * self.staleness + 1)
        return None if self.consistency == "asynchronous" else 0

    def train(self, worker: Worker, problem: Problem) -> None:
        """Push and pull until the budget is spent."""
        weights, gradient = flatten_(model := problem.build_model(worker.device, worker.seed))
        servers = list(zip(self._parts(len(weights)), range(worker.num_workers, 1 << 30), strict=False))
        for batch in worker.batches(problem, self.batch_size):
            problem.loss(model, batch).backward()
            pulls = [dist.irecv(weights[part], server) for part, server in servers]
            self._push(gradient, servers, len(batch))
            _wait(pulls)
            gradient.zero_()
            worker.observe(weights, len(batch), updates=int(self.synchronous))
        self._push(gradient, servers, 0)

    def serve(self, worker: Worker, problem: Problem) -> None:
        """Have a part of the weights until all workers have left."""
        weights = flat_parameters(problem.build_model(worker.device, worker.seed))
        part = self._parts(len(weights))[worker.rank - worker.num_workers]
        Server(self, worker, weights[part].clone()).run()

    def _parts(self, num_parameters: int) -> list[slice]:
        """Of the flat weights, one per server."""
        ends = [num_parameters * server // self.num_servers for server in range(self.num_servers + 1)]
        return [slice(begin, end) for begin, end in pairwise(ends)]

    def _push(self, gradient: torch.Tensor, servers: list[tuple[slice, int]], samples: int) -> None:
        """Send every server its part of the gradient, and how many samples it is of; 0 says goodbye."""
        size = gradient.new_tensor([samples])
        _wait([dist.isend(torch.cat([gradient[part], size]), server) for part, server in servers])


class Server:
    """One server's part of the weights.

    Args:
        weights: initial, shape (parameters of this part,).
    """

    def __init__(self, algorithm: ParameterServer, worker: Worker, weights: torch.Tensor) -> None:
        self._algorithm, self._worker, self._weights = algorithm, worker, weights
        self._push = weights.new_empty(len(weights) + 1)
        self._gradient = torch.zeros_like(weights)
        self._descent = Descent(algorithm.optimizer, weights, self._gradient, algorithm.learning_rate)
        self._present = set(range(worker.num_workers))
        self._version = 0  # steps taken
        self._pulled = dict.fromkeys(self._present, 0)  # version of the weights that each worker has
        self._pushes = dict.fromkeys(self._present, 0)
        self._waiting: dict[int, None] = {}  # for an answer, in the order in which they came
        self._round = 0  # pushes that count in this round

    def run(self) -> None:
        """Serve until nobody is left."""
        by_rounds = self._algorithm.consistency in ("synchronous", "backup_workers")
        while self._present:
            source = self._worker.receive(self._push)
            if self._push[-1] == 0:
                self._present.remove(source)
            else:
                self._waiting[source] = None
                (self._collect if by_rounds else self._apply)(source)
            if by_rounds:
                self._end_round()
            for rank in list(self._answerable(by_rounds)):
                self._answer(rank)

    def _apply(self, source: int) -> None:
        """A step along one push."""
        staleness = self._version - self._pulled[source]
        self._worker.measure("async/staleness", staleness)
        self._pushes[source] += 1
        self._gradient.copy_(self._push[:-1])
        divisor = max(1, staleness) if self._algorithm.staleness_aware else 1
        self._step(self._algorithm.learning_rate / divisor)

    def _collect(self, source: int) -> None:
        """Add a push to its round, or drop one that comes too late."""
        late = self._pulled[source] < self._version
        if self._algorithm.consistency == "backup_workers":
            self._worker.measure("async/dropped", int(late))
        if not late:
            self._gradient += self._push[:-1]
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

    def _answer(self, rank: int) -> None:
        """Give the worker the weights as they are."""
        del self._waiting[rank]
        self._pulled[rank] = self._version
        dist.send(self._weights, rank)


def _wait(works: Sequence[dist.Work | None]) -> None:
    for work in works:
        assert work is not None  # only a rank outside the group gets none
        work.wait()
