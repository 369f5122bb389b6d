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
server decides alone: with several, and unless synchronous, parts of w may have seen different pushes. Pushes may be
compressed, each server's part by itself; pulls are whole.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.distributed as dist

from algorithms.base import Algorithm
from algorithms.common.bits import joined
from algorithms.common.optimizers import Optimizer
from algorithms.compression.compressor import Compression, messages
from algorithms.flat import flat_parameters, flatten_
from algorithms.serving.server import Server
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
        compression: of pushes.
        optimizer: of the servers.
    """

    num_servers: int
    consistency: str
    staleness: int
    backups: int
    staleness_aware: bool
    compression: Compression
    optimizer: Optimizer

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.num_servers >= 1, "algorithm.num_servers", "must be >= 1", self.num_servers)
        rule = f"must be one of {', '.join(CONSISTENCIES)}"
        require(self.consistency in CONSISTENCIES, "algorithm.consistency", rule, self.consistency)
        require(self.staleness >= 0, "algorithm.staleness", "must be >= 0", self.staleness)
        require(self.backups >= 0, "algorithm.backups", "must be >= 0", self.backups)
        messages(self.compression, "parameter_server")
        owes = self.consistency == "backup_workers" and self.compression.remembers
        rule = "must be false with algorithm.consistency=backup_workers: late pushes are dropped, and "
        rule += "with them what was owed"
        require(not owes, "algorithm.compression.error_feedback", rule, owes)

    @property
    def synchronous(self) -> bool:  # type: ignore[override]
        """Whether all workers take the same number of steps."""
        return self.consistency == "synchronous"

    def without_effect(self) -> dict[str, str]:
        """What other policies go by."""
        used = {"staleness": "bounded_staleness", "backups": "backup_workers"}
        unused = [name for name, policy in used.items() if self.consistency != policy]
        unused += ["staleness_aware"] * (self.consistency in ("synchronous", "backup_workers"))
        return dict.fromkeys(unused, f"algorithm.consistency={self.consistency}")

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

    def check(self, problem: Problem) -> None:
        """Every server has something to serve."""
        if self.num_servers > 1:
            size = len(flat_parameters(problem.build_model(torch.device("cpu"), seed=0)))
            rule = f"must be at most {size}, the parameters of the model"
            require(self.num_servers <= size, "algorithm.num_servers", rule, self.num_servers)

    def bytes_per_update(self, problem: Problem, weights: torch.Tensor, num_workers: int) -> float | None:
        """A push, with one number for every server, and a pull; in synchronous rounds those of every worker.

        Returns:
            None with backup workers, whose late pushes are no updates.
        """
        if self.consistency == "backup_workers":
            return None
        compressor = messages(self.compression, "parameter_server")
        pushes = sum(compressor.num_bytes(weights[part]) for part in self._parts(len(weights)))
        exchange = pushes + self.num_servers * weights.element_size() + weights.nbytes
        return exchange * num_workers if self.synchronous else exchange

    def staleness_bound(self, num_workers: int) -> int | None:
        """None of rounds; while a worker is from s behind to s ahead of another, that one pushes 2 s + 1 times."""
        if self.consistency == "bounded_staleness":
            return (num_workers - 1) * (2 * self.staleness + 1)
        return None if self.consistency == "asynchronous" else 0

    def train(self, worker: Worker, problem: Problem) -> None:
        """Push and pull until the budget is spent."""
        weights, gradient = flatten_(model := problem.build_model(worker.device, worker.seed))
        compressor = messages(self.compression, "parameter_server")
        goes_on, leaves = gradient.new_ones(1), gradient.new_zeros(1)
        servers = [
            (server, gradient[part], compressor.sender(worker.generator), weights[part])
            for server, part in enumerate(self._parts(len(weights)), start=worker.num_workers)
        ]
        for batch in worker.batches(problem, self.batch_size):
            problem.loss(model, batch).backward()
            pulls = [dist.irecv(part, server) for server, _, _, part in servers]  # gloo sends to who waits
            pushes = [dist.isend(joined(goes_on, sender.encode(part)), server) for server, part, sender, _ in servers]
            gradient.zero_()  # of which they are a copy
            _wait([*pushes, *pulls])
            worker.observe(weights, len(batch), updates=int(self.synchronous))
        _wait([dist.isend(joined(leaves, sender.encode(part)), server) for server, part, sender, _ in servers])

    def serve(self, worker: Worker, problem: Problem) -> None:
        """Have a part of the weights until all workers have left."""
        weights = flat_parameters(problem.build_model(worker.device, worker.seed))
        part = self._parts(len(weights))[worker.rank - worker.num_workers]
        Server(self, worker, weights[part].clone()).run()

    def _parts(self, num_parameters: int) -> list[slice]:
        """Of the flat weights, one per server."""
        ends = [num_parameters * server // self.num_servers for server in range(self.num_servers + 1)]
        return [slice(begin, end) for begin, end in pairwise(ends)]


def _wait(works: Sequence[dist.Work | None]) -> None:
    for work in works:
        assert work is not None  # only a rank outside the group gets none
        work.wait()
