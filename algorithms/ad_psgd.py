"""AD-PSGD: gossip in pairs, without waiting for anyone who computes (Lian et al., ICML 2018, Algorithm 1).

    worker i:          g <- gradient at w_i, while w_i is averaged with that of a neighbour j drawn at random
                       w_i <- w_i - eta g
    activity of j:     whoever sends its w_i gets w_j, and w_j moves half of the way to w_i

Both sides move by half of the difference between what was sent and what was answered, whatever else has happened to
w_i in between: so a pair keeps its sum, as the paper's atomic averaging does, and no graph can deadlock: it need not be
bipartite. A gradient is of the model as it was sent, which is that after the worker's last step. Those who have done
their part go on answering to the end.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.distributed as dist

from algorithms.base import Algorithm
from algorithms.flat import flatten_
from algorithms.mixing import Mixing, spectral_gap
from algorithms.optimizers import Descent, Optimizer
from harness.errors import require
from harness.problems.base import Problem
from harness.worker import Worker

REQUEST, ANSWER = 1, 2  # tags


@dataclass(frozen=True)
class ADPSGD(Algorithm):
    """Average with one neighbour at a time, whenever it suits oneself.

    Args:
        mixing: who averages with whom: a neighbour's chance to be drawn is its weight.
        optimizer: of each worker.
    """

    synchronous: ClassVar[bool] = False
    decentralised: ClassVar[bool] = True

    mixing: Mixing
    optimizer: Optimizer

    def constants(self, num_workers: int) -> dict[str, float]:
        """The spectral gap of the matrix that neighbours are drawn by.

        Raises:
            UserError: if it is not symmetric, or not always the same.
        """
        rule = "must be symmetric and the same at every step: use ring, torus, random_regular, complete or star"
        require(self.mixing.is_symmetric(num_workers), "algorithm/mixing", rule, self.mixing)
        return {"mixing/spectral_gap": spectral_gap(self.mixing.matrices(num_workers))}

    def train(self, worker: Worker, problem: Problem) -> None:
        """Step and average until the budget is spent, then tell the neighbours."""
        known, gradient = flatten_(model := problem.build_model(worker.device, worker.seed))
        pair = Averager(worker, known.clone(), self.mixing)
        descent = Descent(self.optimizer, pair.weights, gradient, self.learning_rate)
        worker.observe(known, samples=0, updates=0)  # others may be so fast that nothing is left to do here
        for batch in worker.batches(problem, self.batch_size):
            pair.ask(known)
            problem.loss(model, batch).backward()
            pair.wait()
            with worker.turn():
                pair.move(known)
                descent.step()
                known.copy_(pair.weights)
            gradient.zero_()
            worker.observe(known, samples=len(batch))
        with worker.turn():
            known.copy_(pair.weights)
        pair.leave()


class Averager:
    """One worker's model, and its averaging with the neighbours, on either side.

    Args:
        weights: of this worker, shape (parameters,).
        mixing: symmetric.

    Attributes:
        weights: to be read and changed in a `worker.turn` alone.
    """

    def __init__(self, worker: Worker, weights: torch.Tensor, mixing: Mixing) -> None:
        self.weights, self._worker = weights, worker
        (row,) = mixing.rows(worker.num_workers, worker.rank)
        self._neighbours = list(row.receives)
        self._chances = torch.tensor(list(row.receives.values()))
        self._answer = torch.empty_like(weights)
        self._works: list[dist.Work | None] = []
        if self._neighbours:
            worker.background(self._serve)

    def ask(self, known: torch.Tensor) -> None:
        """Begin to average what is known of the weights with a neighbour's."""
        if self._neighbours:
            drawn = int(torch.multinomial(self._chances, 1, generator=self._worker.generator))
            peer = self._neighbours[drawn]
            request = torch.cat([known, known.new_ones(1)])
            self._works = [dist.irecv(self._answer, peer, tag=ANSWER), dist.isend(request, peer, tag=REQUEST)]

    def wait(self) -> None:
        """Wait for the answer."""
        for work in self._works:
            assert work is not None  # only a rank outside the group gets none
            work.wait()

    def move(self, known: torch.Tensor) -> None:
        """Move by half of the answer's difference from what was asked for."""
        if self._neighbours:
            self.weights.add_(self._answer - known, alpha=0.5)

    def leave(self) -> None:
        """Tell the neighbours that this worker asks no more."""
        goodbye = torch.cat([self.weights, self.weights.new_zeros(1)])
        for peer in self._neighbours:
            dist.send(goodbye, peer, tag=REQUEST)

    def _serve(self) -> None:
        """Answer until all neighbours have left."""
        request = self.weights.new_empty(len(self.weights) + 1)
        present = set(self._neighbours)
        while present:
            source = self._worker.receive(request, tag=REQUEST)
            if request[-1] == 0:
                present.remove(source)
                continue
            with self._worker.turn():
                answer = self.weights.clone()
                self.weights.add_(request[:-1] - answer, alpha=0.5)
            dist.send(answer, source, tag=ANSWER)
