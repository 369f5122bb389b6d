"""Asynchronous pipeline parallelism with weight stashing (PipeDream: Narayanan et al., SOSP 2019, sections 3.2, 3.3).

    n: stages, one per worker;  s: stage, 0 .. n - 1;  w_s(t): its weights after t steps

    w_s(t + 1) = w_s(t) - eta grad_s f(w_0(t - n + 1), w_1(t - n + 2), ..., w_{n-1}(t))

Whole batches follow each other through the pipeline, which is filled once and never flushed: a stage with n - s of them
under way takes one backward, makes a step, and takes the next one forward (1F1B). A batch goes backward through the
weights that it went forward with, of which a stage stashes n - s versions. Its gradient at stage s is n - 1 - s steps
old when it is applied; that of the first batches is of the initial weights.

Without vertical sync (a batch meets the newest weights of each stage: the paper's own default), and without stages that
several workers replicate (section 3.1). What is observed is every stage's newest weights, each after as many steps.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar, TypeVar

import torch

from algorithms.base import Algorithm
from algorithms.common.optimizers import Descent, Optimizer
from algorithms.common.schedules import Schedule
from algorithms.flat import flatten_
from algorithms.pipelining.balance import check_balance
from algorithms.pipelining.handed_on import bytes_handed_on
from algorithms.pipelining.held_stages import hold_stages
from algorithms.pipelining.stages import check_layered, check_stages
from algorithms.pipelining.stashing import Passing, StashingStage
from harness.problems.base import Problem
from harness.problems.layered import Layered
from harness.worker import Worker

Batch = TypeVar("Batch")


@dataclass(frozen=True)
class PipeDream(Algorithm):
    """One stage of the model on every worker, batches one after the other, weights stashed.

    Args:
        balance: by what layers cost the same: layers, parameters, flops or measured.
        optimizer: what makes a step of a gradient, on every worker for its own stage.
        schedule: factor of the step as training goes on.
    """

    synchronous: ClassVar[bool] = True  # all work on the same batches in the same order, if not on the same weights
    splits_model: ClassVar[bool] = True
    why_no_fake_tensors: ClassVar[str] = "is still filling its pipeline in the few steps of a prediction"

    balance: str
    optimizer: Optimizer
    schedule: Schedule

    def __post_init__(self) -> None:
        super().__post_init__()
        check_balance(self.balance)

    def share(self, rank: int, num_workers: int) -> tuple[int, int]:
        """All work on the same samples."""
        return 0, 1

    def check(self, problem: Problem) -> None:
        """Its model is a chain of layers."""
        check_layered(problem)

    def check_workers(self, problem: Problem, num_workers: int) -> None:
        """There is a layer for every stage."""
        check_stages(problem, num_workers, 1, "hardware.num_workers")

    def constants(self, num_workers: int) -> dict[str, float]:
        """Nobody waits once the pipeline is full."""
        return {"pipeline/bubble_frac": 0.0}

    def bytes_per_update(self, problem: Problem, weights: torch.Tensor, num_workers: int) -> float | None:
        """Activations of a batch that go from worker to worker, and their gradients."""
        layered = check_layered(problem)
        return bytes_handed_on(layered, self.balance, range(num_workers), self.batch_size)

    def staleness_bound(self, num_workers: int) -> int | None:
        """That of the first stage."""
        return num_workers - 1

    def train(self, worker: Worker, problem: Problem) -> None:
        """Go forward and backward in turns, and take a step after each backward pass."""
        problem = check_layered(problem)
        held = hold_stages(problem, worker, self.balance, self.batch_size, worker.num_workers, [worker.rank])
        weights, gradient = flatten_(held.own)
        descent = Descent(self.optimizer, weights, gradient, self.learning_rate)
        stage = StashingStage(problem, held, gradient, worker)
        steps = 0
        for forward, batch in one_f_one_b(self._expected(worker, problem, stage), stage.depth):
            if forward:
                stage.forward(batch, weights, steps)
                continue
            stage.backward(batch)
            descent.step(batch.learning_rate)
            gradient.zero_()
            stage.await_next()
            worker.measure("async/staleness", steps - batch.version)
            steps += 1
            worker.observe(weights, samples=len(batch.samples), part=held.part)
        stage.close()

    def _expected(self, worker: Worker, problem: Layered, stage: StashingStage) -> Iterator[Passing]:
        """The batches, each announced to the stage before it goes on with those under way."""
        for samples in worker.batches(problem, self.batch_size):
            yield stage.expect(samples, self.learning_rate * self.schedule.at(worker))


def one_f_one_b(batches: Iterable[Batch], depth: int) -> Iterator[tuple[bool, Batch]]:
    """The passes of a stage: forward until `depth` batches are under way, then backward and forward in turns.

    Yields:
        whether it is a forward pass, and the batch.

    >>> "".join(f"{'BF'[forward]}{batch} " for forward, batch in one_f_one_b(range(4), 2))
    'F0 F1 B0 F2 B1 F3 B2 B3 '
    """
    under_way: deque[Batch] = deque()
    for batch in batches:
        if len(under_way) == depth:
            yield False, under_way.popleft()
        under_way.append(batch)
        yield True, batch
    while under_way:
        yield False, under_way.popleft()
