"""CHOCO-SGD: gossip of compressed differences (Koloskova, Stich and Jaggi, ICML 2019, Algorithm 2, as Algorithm 6).

    w_i  <-  w_i - eta * gradient at w_i
    q_i  <-  Q(w_i - u_i);   send q_i to the neighbours, receive theirs
    u_i  <-  u_i + q_i                                 what all neighbours know of w_i
    s_i  <-  s_i + sum_j W[i, j] q_j                   = sum_j W[i, j] u_j, kept without keeping the u_j
    w_i  <-  w_i + gamma * (s_i - u_i)

What Q leaves out of one difference is in the next one, so that nothing is lost: u_i follows w_i. W must be symmetric,
doubly stochastic, and the same at every step; then the average of the w_i is that of their steps alone, whatever Q
does. We deviate in that u_i and s_i begin as the initial model, which all have, not as zero.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from algorithms.base import Algorithm
from algorithms.common.optimizers import Descent, Optimizer
from algorithms.common.schedules import Schedule
from algorithms.compression.compressor import Compression
from algorithms.compression.differences import of_differences
from algorithms.compression.gossip import CompressedAveraging
from algorithms.flat import flatten_
from algorithms.mixing.matrices import Mixing, messages_per_step, require_doubly_stochastic, spectral_gap
from harness.errors import require
from harness.problems.base import Problem
from harness.worker import Worker


@dataclass(frozen=True)
class ChocoSGD(Algorithm):
    """Gossip whose messages are compressed.

    Args:
        consensus_step: gamma, in (0, 1]; the stronger the compression, the smaller it has to be.
        compression: Q, of messages, a contraction; its error feedback is not used.
        mixing: who averages with whom.
        optimizer: of each worker.
        schedule: factor of its steps as training goes on.
    """

    synchronous: ClassVar[bool] = True
    decentralised: ClassVar[bool] = True

    consensus_step: float
    compression: Compression
    mixing: Mixing
    optimizer: Optimizer
    schedule: Schedule

    def __post_init__(self) -> None:
        super().__post_init__()
        rule = "must be in (0, 1]"
        require(0 < self.consensus_step <= 1, "algorithm.consensus_step", rule, self.consensus_step)
        of_differences(self.compression, "choco_sgd")

    def constants(self, num_workers: int) -> dict[str, float]:
        """The spectral gap.

        Raises:
            UserError: if the matrix is not symmetric, or not always the same.
        """
        require_doubly_stochastic(self.mixing, num_workers)
        rule = "must be symmetric and the same at every step: use ring, torus, random_regular, complete or star, "
        rule += "with algorithm.mixing.weighting=metropolis"
        require(self.mixing.is_symmetric(num_workers), "algorithm/mixing", rule, self.mixing)
        return {"mixing/spectral_gap": spectral_gap(self.mixing.matrices(num_workers))}

    def notices(self, problem: Problem, num_workers: int, epochs: float) -> list[str]:
        """Those of the graph."""
        return self.mixing.notices(num_workers)

    def bytes_per_update(self, problem: Problem, weights: torch.Tensor, num_workers: int) -> float:
        """A compressed change along every edge."""
        change_bytes = of_differences(self.compression, "choco_sgd").num_bytes(weights)
        return messages_per_step(self.mixing, num_workers) * change_bytes

    def train(self, worker: Worker, problem: Problem) -> None:
        """Step and average until the budget is spent."""
        weights, gradient = flatten_(model := problem.build_model(worker.device, worker.seed))
        descent = Descent(self.optimizer, weights, gradient, self.learning_rate)
        (row,) = self.mixing.rows(worker.num_workers, worker.rank)
        compressor = of_differences(self.compression, "choco_sgd")
        averaging = CompressedAveraging(weights, row, compressor, self.consensus_step, worker.generator)
        for batch in worker.batches(problem, self.batch_size):
            problem.loss(model, batch).backward()
            descent.step(self.learning_rate * self.schedule.at(worker))
            averaging.begin().finish()
            gradient.zero_()
            worker.observe(weights, samples=len(batch))
