"""Pipeline parallelism: workers hold the stages of one model, and a batch goes through them in micro-batches.

(GPipe: Huang et al., NeurIPS 2019, section 2.2.) A worker works on one micro-batch while the others work on those
before and after it. Gradients of a batch's micro-batches are summed before its step, so that P workers do what one
would do with the same batch: minibatch SGD. Stages, orders of passes and messages are torch.distributed.pipelining's.

With one micro-batch it is model parallelism (`model_parallel.py`): at any time one worker works, and the others wait.
"""

from dataclasses import dataclass
from math import ceil
from typing import ClassVar

import torch

from algorithms.base import Algorithm
from algorithms.common.optimizers import Descent, Optimizer
from algorithms.common.schedules import Schedule
from algorithms.flat import flatten_
from algorithms.pipelining.balance import check_balance
from algorithms.pipelining.handed_on import bytes_handed_on
from algorithms.pipelining.held_stages import hold_stages
from algorithms.pipelining.micro_batch_counts import check_micro_batches, fewer_held
from algorithms.pipelining.micro_batches import Passes
from algorithms.pipelining.schedules import GPipe, PipelineSchedule
from algorithms.pipelining.stages import check_costs, check_layered, check_stages, most_stages
from harness.errors import require
from harness.problems.base import Problem
from harness.shortage import Shortage, Way
from harness.worker import Worker


@dataclass(frozen=True)
class Pipeline(Algorithm):
    """Stages of one model on all workers, a batch in micro-batches.

    Args:
        micro_batches: of a batch, >= 1.
        balance: by what layers cost the same: layers, parameters, flops or measured.
        pipeline_schedule: the order of passes.
        optimizer: what makes a step of the gradient, on every worker for its own stages.
        schedule: factor of the step as training goes on.
    """

    synchronous: ClassVar[bool] = True
    splits_model: ClassVar[bool] = True
    supports_fake_tensors: ClassVar[bool] = True

    micro_batches: int
    balance: str
    pipeline_schedule: PipelineSchedule
    optimizer: Optimizer
    schedule: Schedule

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.micro_batches >= 1, "algorithm.micro_batches", "must be >= 1", self.micro_batches)
        check_balance(self.balance)

    @property
    def least_batch(self) -> int:
        """A sample of each micro-batch."""
        return self.micro_batches

    def share(self, rank: int, num_workers: int) -> tuple[int, int]:
        """All work on the same samples."""
        return 0, 1

    def check(self, problem: Problem) -> None:
        """Its model is a chain of layers, whose costs can be known."""
        check_layered(problem)
        check_costs(problem, self.balance)

    def check_workers(self, problem: Problem, num_workers: int) -> None:
        """There is a layer for every stage, and a sample for every micro-batch."""
        check_stages(problem, num_workers, self.pipeline_schedule.stages_per_worker, "hardware.num_workers")
        check_micro_batches(self.pipeline_schedule, num_workers, self.micro_batches, self.batch_size)

    def constants(self, num_workers: int) -> dict[str, float]:
        """The share of time in which workers with uniform stages wait for each other."""
        return {"pipeline/bubble_frac": self.pipeline_schedule.bubble_frac(num_workers, self.micro_batches)}

    def bytes_per_update(self, problem: Problem, weights: torch.Tensor, num_workers: int) -> float | None:
        """Activations of a batch that go from worker to worker, and their gradients."""
        order, size = self.pipeline_schedule, -(-self.batch_size // self.micro_batches)
        layered = check_layered(problem)
        handed_on = bytes_handed_on(layered, self.balance, order.holders(num_workers), size)
        return None if handed_on is None else self.micro_batches * handed_on

    def frees_memory(self, problem: Problem, num_workers: int, lacks: Shortage) -> list[Way]:
        """Less of a batch under way at a time, and more stages."""
        order, most = self.pipeline_schedule, most_stages(problem) // self.pipeline_schedule.stages_per_worker
        held = fewer_held(order, num_workers, self.micro_batches, self.batch_size)
        ways = [lacks.passing_less(typed, times) for typed, times in held.items()]
        more = [number for number in range(num_workers + 1, most + 1) if order.fits(number, self.micro_batches)]
        passing_too = isinstance(order, GPipe)  # else more workers hold more micro-batches of fewer layers
        needed = ceil(num_workers * lacks.peak_bytes / lacks.held_bytes) if passing_too else lacks.sharers(num_workers)
        enough = [number for number in more if number >= needed]
        for number in enough[:1] or more[-1:]:
            ways.append(lacks.kept_less(f"hardware.num_workers={number}", number / num_workers, passing_too))
        return [*ways, *super().frees_memory(problem, num_workers, lacks)]

    def notices(self, problem: Problem, num_workers: int, epochs: float) -> list[str]:
        """What is predicted to be held beyond what one may have read."""
        return [self.pipeline_schedule.holds_more] * (problem.is_fake and bool(self.pipeline_schedule.holds_more))

    def train(self, worker: Worker, problem: Problem) -> None:
        """Take steps along the gradient of each batch."""
        problem = check_layered(problem)
        order, samples = self.pipeline_schedule, -(-self.batch_size // self.micro_batches)
        num_stages, numbers = order.stages_per_worker * worker.num_workers, order.held(worker.rank, worker.num_workers)
        held = hold_stages(problem, worker, self.balance, samples, num_stages, numbers)
        weights, gradient = flatten_(held.own)
        descent = Descent(self.optimizer, weights, gradient, self.learning_rate)
        passes = Passes(problem, held, order, self.micro_batches, worker)
        for batch in worker.batches(problem, self.batch_size):
            passes.run(batch)
            descent.step(self.learning_rate * self.schedule.at(worker))
            gradient.zero_()
            worker.observe(weights, samples=len(batch), part=held.part)
