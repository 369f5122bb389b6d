"""Tensor parallelism: all workers compute one batch with one model, whose layers they split among them.

(Megatron-LM: Shoeybi et al., arXiv:1909.08053, section 3; sequence parallelism: Korthikanti et al., arXiv:2205.05198.)
Workers do what one would do with the same batch. They exchange activations in the midst of every layer, and wait for
them: what they send grows with the batch, not with the model (`splitting/`). What is not split, all compute alike.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.distributed as dist

from algorithms.base import Algorithm
from algorithms.common.optimizers import Descent, Optimizer
from algorithms.common.schedules import Schedule
from algorithms.flat import flatten_
from algorithms.splitting.layers import LayerSplit
from algorithms.splitting.plan import check_degree, check_plan, larger_degree, lets_split_positions
from algorithms.splitting.traffic import bytes_of_batch
from harness.alike import Axis
from harness.problems.base import Problem
from harness.shortage import Shortage, Way
from harness.worker import Worker


@dataclass(frozen=True)
class TensorParallel(Algorithm):
    """Split each layer among all workers.

    Args:
        sequence_parallel: whether activations outside of split layers are split by position.
        optimizer: what makes a step of the gradient, on each worker's part.
        schedule: factor of the step as training goes on.
    """

    synchronous: ClassVar[bool] = True
    splits_model: ClassVar[bool] = True
    supports_fake_tensors: ClassVar[bool] = True

    sequence_parallel: bool
    optimizer: Optimizer
    schedule: Schedule

    def share(self, rank: int, num_workers: int) -> tuple[int, int]:
        """All work on the same samples."""
        return 0, 1

    def alike(self, num_workers: int) -> list[Axis]:
        """All workers."""
        return [Axis(num_workers, alike=True)]

    def check(self, problem: Problem) -> None:
        """Its layers can be split."""
        check_plan(problem, self.sequence_parallel)

    def check_workers(self, problem: Problem, num_workers: int) -> None:
        """They divide what is split."""
        check_degree(problem, num_workers, "hardware.num_workers", self.sequence_parallel)

    def bytes_per_update(self, problem: Problem, weights: torch.Tensor, num_workers: int) -> float:
        """Activations of the batch, in both passes."""
        problem = check_plan(problem, self.sequence_parallel)
        return bytes_of_batch(problem, num_workers, self.batch_size, self.sequence_parallel)

    def frees_memory(self, problem: Problem, num_workers: int, lacks: Shortage) -> list[Way]:
        """More workers for a layer, and for what is between layers."""
        ways = []
        if not self.sequence_parallel and num_workers > 1 and lets_split_positions(problem, num_workers):
            ways.append(lacks.passing_less("algorithm.sequence_parallel=true", num_workers))
        if more := larger_degree(problem, num_workers, lacks.sharers(num_workers), self.sequence_parallel):
            ways.append(lacks.kept_less(f"hardware.num_workers={more}", more / num_workers, passing_too=True))
        return [*ways, *super().frees_memory(problem, num_workers, lacks)]

    def train(self, worker: Worker, problem: Problem) -> None:
        """Take steps along the gradient of each batch."""
        problem = check_plan(problem, self.sequence_parallel)
        model = problem.build_model(worker.device, worker.seed)
        with worker.clock.paused():
            group = dist.group.WORLD if worker.num_workers > 1 else None
            split = LayerSplit(problem, group, self.sequence_parallel, worker.device)
            part = torch.cat(split.indices(model)) if worker.sees_values else None
            split.split_(model)
        weights, gradient = flatten_(model)
        descent = Descent(self.optimizer, weights, gradient, self.learning_rate)
        for batch in worker.batches(problem, self.batch_size):
            inputs, targets = (rows.to(worker.device) for rows in problem.rows_of(batch))
            split.objective(model(inputs), targets).backward()
            split.sum_gradients()
            descent.step(self.learning_rate * self.schedule.at(worker))
            gradient.zero_()
            worker.observe(weights, samples=len(batch), part=part)
