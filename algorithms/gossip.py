"""Gossip: every worker has a model of its own, and averages it with its neighbours' at every step.

`Gossip` is D-PSGD (Lian et al., NIPS 2017, Algorithm 1):

    g <- gradient at w_i;  w_i <- sum_j W[i, j] w_j;  w_i <- w_i - eta g             overlap=true

whose messages are under way while the gradient is computed, or, as in Koloskova et al. (ICML 2020, Algorithm 1),

    g <- gradient at w_i;  w_i <- w_i - eta g;        w_i <- sum_j W[i, j] w_j       overlap=false

which on the complete graph with uniform weights is all-reduce SGD. W must be doubly stochastic.

`StochasticGradientPush` needs only its columns to sum to 1, as any directed graph allows (Assran et al., ICML 2019,
Algorithm 1): it averages a sum x_i and its weight p_i alike, and takes gradients at their ratio z_i:

    g <- gradient at z_i;  x_i <- x_i - eta g;  (x_i, p_i) <- sum_j W[i, j] (x_j, p_j);  z_i <- x_i / p_i

with overlap=true moving the gradient's step behind the averaging, as above. Messages that come whole steps late (their
tau-overlap) are not offered.
"""

from dataclasses import dataclass
from itertools import cycle
from typing import ClassVar

import torch

from algorithms.base import Algorithm
from algorithms.common.optimizers import Descent, Optimizer
from algorithms.common.schedules import Schedule
from algorithms.flat import flatten_
from algorithms.mixing.matrices import Exchange, Mixing, messages_per_step, require_doubly_stochastic, spectral_gap
from harness.problems.base import Problem
from harness.worker import Worker


@dataclass(frozen=True)
class Gossip(Algorithm):
    """D-PSGD: average the model with the neighbours'.

    Args:
        overlap: average while the gradient is computed, then step; or step, then average.
        mixing: who averages with whom.
        optimizer: of each worker.
        schedule: factor of its steps as training goes on.
    """

    synchronous: ClassVar[bool] = True
    decentralised: ClassVar[bool] = True

    overlap: bool
    mixing: Mixing
    optimizer: Optimizer
    schedule: Schedule

    def constants(self, num_workers: int) -> dict[str, float]:
        """The spectral gap.

        Raises:
            UserError: if the matrix is not doubly stochastic.
        """
        require_doubly_stochastic(self.mixing, num_workers)
        return {"mixing/spectral_gap": spectral_gap(self.mixing.matrices(num_workers))}

    def notices(self, problem: Problem, num_workers: int, epochs: float) -> list[str]:
        """Those of the graph."""
        return self.mixing.notices(num_workers)

    def bytes_per_update(self, problem: Problem, weights: torch.Tensor, num_workers: int) -> float:
        """A model along every edge."""
        return messages_per_step(self.mixing, num_workers) * weights.nbytes

    def train(self, worker: Worker, problem: Problem) -> None:
        """Step and average until the budget is spent."""
        weights, gradient = flatten_(model := problem.build_model(worker.device, worker.seed))
        descent = Descent(self.optimizer, weights, gradient, self.learning_rate)
        steps = cycle(self.mixing.rows(worker.num_workers, worker.rank))
        for row, batch in zip(steps, worker.batches(problem, self.batch_size), strict=False):
            if self.overlap:
                exchange = Exchange(weights, row)
                problem.loss(model, batch).backward()
                exchange.finish()
                descent.step(self.learning_rate * self.schedule.at(worker))
            else:
                problem.loss(model, batch).backward()
                descent.step(self.learning_rate * self.schedule.at(worker))
                Exchange(weights, row).finish()
            gradient.zero_()
            worker.observe(weights, samples=len(batch))


@dataclass(frozen=True)
class StochasticGradientPush(Algorithm):
    """Push-sum: average a sum and its weight with the neighbours'.

    Args:
        overlap: average while the gradient is computed, then step; or step, then average.
        mixing: who sends to whom.
        optimizer: of each worker.
        schedule: factor of its steps as training goes on.
    """

    synchronous: ClassVar[bool] = True
    decentralised: ClassVar[bool] = True

    overlap: bool
    mixing: Mixing
    optimizer: Optimizer
    schedule: Schedule

    def constants(self, num_workers: int) -> dict[str, float]:
        """The spectral gap."""
        return {"mixing/spectral_gap": spectral_gap(self.mixing.matrices(num_workers))}

    def notices(self, problem: Problem, num_workers: int, epochs: float) -> list[str]:
        """Those of the graph."""
        return self.mixing.notices(num_workers)

    def bytes_per_update(self, problem: Problem, weights: torch.Tensor, num_workers: int) -> float:
        """A sum and its weight along every edge."""
        return messages_per_step(self.mixing, num_workers) * (weights.nbytes + weights.element_size())

    def train(self, worker: Worker, problem: Problem) -> None:
        """Step and average until the budget is spent."""
        ratio, gradient = flatten_(model := problem.build_model(worker.device, worker.seed))
        pushed = torch.cat([ratio, ratio.new_ones(1)])
        total, weight = pushed[:-1], pushed[-1]
        descent = Descent(self.optimizer, total, gradient, self.learning_rate)
        steps = cycle(self.mixing.rows(worker.num_workers, worker.rank))
        for row, batch in zip(steps, worker.batches(problem, self.batch_size), strict=False):
            exchange = Exchange(pushed, row) if self.overlap else None
            problem.loss(model, batch).backward()
            if exchange is not None:
                exchange.finish()
            descent.step(self.learning_rate * self.schedule.at(worker))
            if exchange is None:
                Exchange(pushed, row).finish()
            torch.div(total, weight, out=ratio)
            gradient.zero_()
            worker.observe(ratio, samples=len(batch))
