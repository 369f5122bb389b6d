"""Deep ensembles: models trained apart, whose predictions are averaged (Lakshminarayanan et al., NIPS 2017, Alg. 1).

    for m in 1 .. M, in parallel:  initialise theta_m at random;  train it on all samples, in an order of its own
    predict with 1/M sum_m p(y | x, theta_m)

Worker r trains members r, r + P, r + 2 P, ..., a step of each in turn, and nothing is ever sent: an ensemble is as far
as its members are, at any time. What is observed is all members; their predictions are averaged, never their weights.
The members do not depend on the number of workers. Deviations: no adversarial examples, and no predicted variance.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from typing import ClassVar

import numpy as np
import torch

from algorithms.base import Algorithm
from algorithms.common.optimizers import Descent, Optimizer
from algorithms.common.schedules import Schedule
from algorithms.flat import flat_parameters, flatten_
from harness.errors import Unfit, require
from harness.problems.base import Problem
from harness.worker import Worker

_ORDER, _SEEDS = 5_915_587, 1_000_000_007  # tell random numbers from others of the same seed; more than any seed


@dataclass(frozen=True)
class Ensemble(Algorithm):
    """Members trained side by side.

    Args:
        members: how many models, M, >= 1.
        optimizer: of every member.
        schedule: factor of the step, by epochs of a member.
    """

    synchronous: ClassVar[bool] = False  # nobody waits for anybody
    decentralised: ClassVar[bool] = True
    is_sgd: ClassVar[bool] = False
    own_baseline: ClassVar[bool] = True
    deals_samples: ClassVar[bool] = True

    members: int
    optimizer: Optimizer
    schedule: Schedule

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.members >= 1, "algorithm.members", "must be >= 1", self.members)

    @property
    def max_workers(self) -> int:  # type: ignore[override]
        """No worker is without a member."""
        return self.members

    def seeds(self, seed: int) -> list[int]:
        """Of the members' initial models."""
        return [seed + member * _SEEDS for member in range(self.members)]

    def constants(self, num_workers: int) -> dict[str, float]:
        """How many members."""
        return {"ensemble/members": self.members}

    def check(self, problem: Problem) -> None:
        """Refuse a problem whose predictions nobody knows how to average.

        Raises:
            Unfit: where there is no `evaluate_ensemble`.
        """
        if type(problem).evaluate_ensemble is Problem.evaluate_ensemble:
            raise Unfit("predictions are averaged, and nothing (`evaluate_ensemble`) says what the mean of these is")

    def train(self, worker: Worker, problem: Problem) -> None:
        """Take a step of each own member in turn, until the budget is spent by all."""
        own = range(worker.rank, self.members, worker.num_workers)
        crew = [Member(self, worker, problem, member) for member in own]
        weights = torch.stack([flat_parameters(each.model) for each in crew])  # (own members, parameters)
        for each, row in zip(crew, weights, strict=True):
            each.begin(row)
        for batches in zip_longest(*(each.batches() for each in crew)):
            own_batches = [(each, batch) for each, batch in zip(crew, batches, strict=True) if batch is not None]
            for each, batch in own_batches:
                each.step(batch)
            worker.observe(weights, sum(len(batch) for _, batch in own_batches), updates=len(own_batches))


class Member:
    """One model in training."""

    def __init__(self, ensemble: Ensemble, worker: Worker, problem: Problem, member: int) -> None:
        self._ensemble, self._worker, self._problem, self._member = ensemble, worker, problem, member
        self.model = problem.build_model(worker.device, ensemble.seeds(worker.seed)[member])
        first, end = (worker.budget * number // ensemble.members for number in (member, member + 1))
        self._samples, self._done = end - first, 0

    def begin(self, weights: torch.Tensor) -> None:
        """Have its weights here from now on, where their values are already."""
        _, self._gradient = flatten_(self.model, weights)
        self._descent = Descent(self._ensemble.optimizer, weights, self._gradient, self._ensemble.learning_rate)

    def batches(self) -> Iterator[torch.Tensor]:
        """An equal share of the budget, in epochs of an order of its own."""
        left, epoch = self._samples, 0
        while left:
            random = np.random.default_rng([self._worker.seed, _ORDER, self._member, epoch])
            order = random.permutation(self._problem.num_samples).astype(np.int32)[:left]
            yield from self._worker.batches_of(torch.from_numpy(order), self._ensemble.batch_size)
            left, epoch = left - len(order), epoch + 1

    def step(self, batch: torch.Tensor) -> None:
        """Along the gradient of a batch."""
        self._problem.loss(self.model, batch).backward()
        size = self._problem.num_samples
        factor = self._ensemble.schedule.factor(self._done / size, self._samples / size)
        self._done += len(batch)
        self._descent.step(self._ensemble.learning_rate * factor)
        self._gradient.zero_()
