"""AD-PSGD: gossip in pairs, without waiting for anyone who computes (Lian et al., ICML 2018, Algorithm 1).

    active worker i:   g <- gradient at w_i, while w_i is averaged with that of a passive neighbour j drawn at random
                       w_i <- w_i - eta g
    passive worker j:  g <- gradient at w_j;  w_j <- w_j - eta g
    activity of j:     whoever sends its w_i gets w_j, and w_j becomes the average of both

As in the paper an edge joins an active and a passive worker (its section 3.3), so that nobody waits in a circle and a
pair is averaged at once. Edges within a side are left out of the graph: sides are odd and even ranks, or, where that
would cut it, odd and even distances from rank 0. Gradients are of the model as the worker knew it after its last step.
Passive workers that have done their part go on answering until all active ones have.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
import torch.distributed as dist

from algorithms.base import Algorithm
from algorithms.common.optimizers import Descent, Optimizer
from algorithms.flat import flatten_
from algorithms.mixing.matrices import Mixing, spectral_gap
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
        """The spectral gap of the expected matrix of an exchange.

        Raises:
            UserError: if it is not symmetric, or not always the same.
        """
        rule = "must be symmetric and the same at every step: use ring, torus, random_regular, complete or star, "
        rule += "with algorithm.mixing.weighting=metropolis"
        require(self.mixing.is_symmetric(num_workers), "algorithm/mixing", rule, self.mixing)
        (matrix,) = self.mixing.matrices(num_workers)
        return {"mixing/spectral_gap": spectral_gap([expected_exchange(matrix)])}

    def notices(self, problem: Problem, num_workers: int, epochs: float) -> list[str]:
        """Those of the graph, and what is left of it."""
        (matrix,), edges = self.mixing.matrices(num_workers), "edges of algorithm/mixing join workers of one side"
        side, joined = sides(matrix), np.argwhere(np.triu(matrix, 1))
        left_out = sum(side[one] == side[other] for one, other in joined)
        notice = f"{left_out} of {len(joined)} {edges} (active or passive) and are left out"
        return [*self.mixing.notices(num_workers), *[notice] * bool(left_out)]

    def train(self, worker: Worker, problem: Problem) -> None:
        """Step and average until the budget is spent, then tell the neighbours."""
        known, gradient = flatten_(model := problem.build_model(worker.device, worker.seed))
        pair = Averager(worker, known.clone(), self.mixing)
        descent = Descent(self.optimizer, pair.weights, gradient, self.learning_rate)
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
        worker.observe(known, samples=0, updates=0)  # others may have been so fast that nothing was left to do here
        pair.leave()


class Averager:
    """One worker's model, and its averaging with neighbours on the other side.

    Args:
        weights: of this worker, shape (parameters,).
        mixing: symmetric.

    Attributes:
        weights: to be read and changed in a `worker.turn` alone.
    """

    def __init__(self, worker: Worker, weights: torch.Tensor, mixing: Mixing) -> None:
        self.weights, self._worker = weights, worker
        (matrix,) = mixing.matrices(worker.num_workers)
        side = sides(matrix)
        others = [int(rank) for rank in np.flatnonzero(matrix[worker.rank]) if side[rank] != side[worker.rank]]
        passive = side[worker.rank] == 0
        self._asked, self._asking = ([], others) if passive else (others, [])
        self._chances = torch.from_numpy(matrix[worker.rank, others])
        self._answer = torch.empty_like(weights)
        self._works: list[dist.Work | None] = []
        if self._asking:
            worker.background(self._serve)

    def ask(self, known: torch.Tensor) -> None:
        """Begin to average the weights with a neighbour's, if active."""
        if self._asked:
            drawn = int(torch.multinomial(self._chances, 1, generator=self._worker.generator))
            peer = self._asked[drawn]
            request = torch.cat([known, known.new_ones(1)])
            self._works = [dist.irecv(self._answer, peer, tag=ANSWER), dist.isend(request, peer, tag=REQUEST)]

    def wait(self) -> None:
        """Wait for the answer."""
        for work in self._works:
            assert work is not None  # only a rank outside the group gets none
            work.wait()

    def move(self, known: torch.Tensor) -> None:
        """Move by half of the answer's difference from what was asked for."""
        if self._asked:
            self.weights.add_(self._answer - known, alpha=0.5)

    def leave(self) -> None:
        """Tell those it asks that this worker asks no more."""
        goodbye = torch.cat([self.weights, self.weights.new_zeros(1)])
        for peer in self._asked:
            dist.send(goodbye, peer, tag=REQUEST)

    def _serve(self) -> None:
        """Answer until all who ask have left."""
        request = self.weights.new_empty(len(self.weights) + 1)
        present = set(self._asking)
        while present:
            source = self._worker.receive(request, tag=REQUEST)
            if request[-1] == 0:
                present.remove(source)
                continue
            with self._worker.turn():
                answer = self.weights.clone()
                self.weights.add_(request[:-1] - answer, alpha=0.5)
            dist.send(answer, source, tag=ANSWER)


def sides(matrix: np.ndarray) -> list[int]:
    """0 for the passive workers and 1 for the active ones, such that edges from one side to the other connect all.

    Args:
        matrix: symmetric, of a connected graph.

    >>> sides(np.ones((4, 4)))
    [0, 1, 0, 1]
    """
    parity = [rank % 2 for rank in range(len(matrix))]
    crossing = np.not_equal.outer(parity, parity) * matrix
    if min(_distances(crossing)) < 0:
        return [distance % 2 for distance in _distances(matrix)]
    return parity


def expected_exchange(matrix: np.ndarray) -> np.ndarray:
    """The mean of what an exchange multiplies the models by, all active workers being the active one equally often.

    That of i and j is W = I - (e_i - e_j)(e_i - e_j)^T / 2, and W^T W = W, so that the mean square distance to the
    average shrinks at least by this matrix's spectral gap in an exchange (Lian et al., ICML 2018, section 4).

    >>> expected_exchange(np.ones((2, 2)))
    array([[0.5, 0.5],
           [0.5, 0.5]])
    """
    side = np.array(sides(matrix))
    drawn = matrix * np.outer(side, 1 - side)  # by the active worker in its row
    drawn /= np.maximum(drawn.sum(axis=1, keepdims=True), np.finfo(float).tiny) * max(1, side.sum())
    pairs = drawn + drawn.T
    return np.eye(len(matrix)) - (np.diag(pairs.sum(axis=1)) - pairs) / 2


def _distances(matrix: np.ndarray) -> list[int]:
    """Edges from rank 0 to each worker; -1 where there is no way."""
    found, reached = [-1] * len(matrix), [0]
    distance = 0
    while reached:
        for rank in reached:
            found[rank] = distance
        distance += 1
        reached = [rank for rank, known in enumerate(found) if known < 0 and matrix[rank, reached].any()]
    return found
