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
tau-overlap) are not offered. With compression the sums are averaged by compressed differences, and the weights by the
same W_gamma = (1 - gamma) I + gamma W (Taheri, Mokhtari, Hassani and Pedarsani, ICML 2020, Algorithm 2, where
gamma = 1; `compression/gossip.py`); models themselves must not be compressed, as averages of these do not converge.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle, repeat
from typing import ClassVar

import torch

from algorithms.base import Algorithm
from algorithms.common.optimizers import Descent, Optimizer
from algorithms.common.schedules import Schedule
from algorithms.compression.compressor import Compression
from algorithms.compression.differences import of_differences
from algorithms.compression.gossip import CompressedAveraging
from algorithms.flat import flatten_
from algorithms.mixing.matrices import Exchange, Mixing, messages_per_step, require_doubly_stochastic, spectral_gap
from harness.errors import require
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
        consensus_step: gamma of compressed messages, in (0, 1]; the stronger the compression, the smaller it has to be.
        compression: of messages, a contraction; its error feedback is not used.
        mixing: who sends to whom; the same at every step where messages are compressed.
        optimizer: of each worker.
        schedule: factor of its steps as training goes on.
    """

    synchronous: ClassVar[bool] = True
    decentralised: ClassVar[bool] = True

    overlap: bool
    consensus_step: float
    compression: Compression
    mixing: Mixing
    optimizer: Optimizer
    schedule: Schedule

    def __post_init__(self) -> None:
        super().__post_init__()
        rule = "must be in (0, 1]"
        require(0 < self.consensus_step <= 1, "algorithm.consensus_step", rule, self.consensus_step)
        of_differences(self.compression, "stochastic_gradient_push")

    def constants(self, num_workers: int) -> dict[str, float]:
        """The spectral gap.

        Raises:
            UserError: if neighbours would have to be told what they have not heard.
        """
        rule = "must be the same at every step where messages are compressed: set algorithm/mixing=exponential, or ring"
        constant = self.compression.is_exact or self.mixing.period(num_workers) == 1
        require(constant, "algorithm/mixing", rule, self.mixing)
        return {"mixing/spectral_gap": spectral_gap(self.mixing.matrices(num_workers))}

    def notices(self, problem: Problem, num_workers: int, epochs: float) -> list[str]:
        """Those of the graph."""
        return self.mixing.notices(num_workers)

    def without_effect(self) -> dict[str, str]:
        """A consensus step of whole messages."""
        return {"consensus_step": "algorithm/compression=none"} if self.compression.is_exact else {}

    def bytes_per_update(self, problem: Problem, weights: torch.Tensor, num_workers: int) -> float:
        """A sum and its weight along every edge."""
        sum_bytes = of_differences(self.compression, "stochastic_gradient_push").num_bytes(weights)
        return messages_per_step(self.mixing, num_workers) * (sum_bytes + weights.element_size())

    def train(self, worker: Worker, problem: Problem) -> None:
        """Step and average until the budget is spent."""
        ratio, gradient = flatten_(model := problem.build_model(worker.device, worker.seed))
        pushed = torch.cat([ratio, ratio.new_ones(1)])
        total, weight = pushed[:-1], pushed[-1]
        descent = Descent(self.optimizer, total, gradient, self.learning_rate)
        exchanges = self._exchanges(pushed, worker)
        for batch in worker.batches(problem, self.batch_size):
            exchange = next(exchanges) if self.overlap else None
            problem.loss(model, batch).backward()
            if exchange is not None:
                exchange.finish()
            descent.step(self.learning_rate * self.schedule.at(worker))
            if exchange is None:
                next(exchanges).finish()
            torch.div(total, weight, out=ratio)
            gradient.zero_()
            worker.observe(ratio, samples=len(batch))

    def _exchanges(self, pushed: torch.Tensor, worker: Worker) -> Iterator[Exchange | CompressedAveraging]:
        """One for every step, under way as soon as it is asked for."""
        rows = self.mixing.rows(worker.num_workers, worker.rank)
        if self.compression.is_exact:
            return (Exchange(pushed, row) for row in cycle(rows))
        compressor = of_differences(self.compression, "stochastic_gradient_push")
        gossip = rows[0], compressor, self.consensus_step, worker.generator
        averaging = CompressedAveraging(pushed[:-1], *gossip, whole=pushed[-1:])
        return (each.begin() for each in repeat(averaging))
