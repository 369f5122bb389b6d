"""Data parallel SGD whose optimiser's state is sharded by torch's ZeroRedundancyOptimizer (ZeRO-1, Rajbhandari et al.,
SC 2020, section 5.1).

Every worker has the whole model and all of its gradient, but takes the steps of some tensors alone, and of these alone
has the optimiser's state; it then broadcasts them. Torch shares out whole tensors, the largest first, to who has least:
a model with a large one is not balanced. Gradients are all-reduced whole; with the broadcasts half as many bytes again
are on the wire as of `all_reduce`. `zero1_plain` sends as the paper counts, which is as many. Workers have tensors of
their own, so that a prediction simulates every one: of many, `zero1_plain` is predicted sooner.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch.distributed.optim import ZeroRedundancyOptimizer

from algorithms.base import Algorithm
from algorithms.common.optimizers import Optimizer
from algorithms.common.schedules import Schedule
from algorithms.flat import flatten_
from algorithms.sharding.footprint import Footprint
from harness.problems.base import Problem
from harness.worker import Worker


@dataclass(frozen=True)
class Zero1(Algorithm):
    """Average the gradients of all workers at every step, each of which takes the step of its tensors for all.

    Args:
        linear_scaling: multiply the step by the number of workers.
        optimizer: what makes a step of the average gradient, of every tensor alike.
        schedule: factor of the step as training goes on.
    """

    synchronous: ClassVar[bool] = True
    supports_fake_tensors: ClassVar[bool] = True

    linear_scaling: bool
    optimizer: Optimizer
    schedule: Schedule

    def bytes_per_update(self, problem: Problem, weights: torch.Tensor, num_workers: int) -> float | None:
        """Every worker hands in its gradient, and the new parameters of its tensors."""
        return weights.nbytes * (num_workers + 1) if num_workers > 1 else 0.0

    def notices(self, problem: Problem, num_workers: int, epochs: float) -> list[str]:
        """What a prediction takes where no worker stands for others, each having tensors of its own."""
        if not problem.is_fake or num_workers == 1:
            return []
        return [
            f"zero1 is simulated rank by rank, {num_workers} of them, as torch deals whole tensors out: the host takes "
            "longer for each; algorithm=zero1_plain, of equal shards, is predicted by one rank"
        ]

    def train(self, worker: Worker, problem: Problem) -> None:
        """Take steps along 1/P sum_i g_i."""
        model = problem.build_model(worker.device, worker.seed)
        weights, gradient = flatten_(model)
        learning_rate = self.learning_rate * (worker.num_workers if self.linear_scaling else 1)
        made: Any = lambda parameters, **_: self.optimizer.over(parameters, learning_rate)  # noqa: E731 - a class
        sharded = ZeroRedundancyOptimizer(list(model.parameters()), made)
        footprint = Footprint(worker)
        for batch in worker.batches(problem, self.batch_size):
            with footprint.forward([weights]):
                loss = problem.loss(model, batch)
            loss.backward()
            dist.all_reduce(gradient)
            gradient /= worker.num_workers
            sharded.param_groups[0]["lr"] = learning_rate * self.schedule.at(worker)
            sharded.step()
            footprint.tell(model.parameters(), sharded.optim.state)
            gradient.zero_()
            worker.observe(weights, samples=len(batch))
