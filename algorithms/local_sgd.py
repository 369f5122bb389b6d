"""Local SGD: every worker descends alone, and models are averaged now and then (Stich, ICLR 2019, Algorithm 1).

    worker i:  loop H times:  w_i <- step of the inner optimiser along its own gradient
               change <- mean over workers of (x - w_i)
               x <- step of the outer optimiser along change;  w_i <- x

That is DiLoCo (Douillard et al., arXiv:2311.08105, Algorithm 1: AdamW inside, Nesterov outside; the inner steps'
schedule is `schedule`). Plain outer steps of learning rate 1 make it the average of models, and one period H the rule:

    post-local  H = 1 until an epoch, from then on `period` (Lin et al., ICLR 2020, section 3)
    growing     H = period + growth * (rounds so far) (Spiridonoff et al., NeurIPS 2021, section 4)
    hierarchical  only groups of workers average at the end of a round, all of them at every `group_rounds`-th (Lin et
                al., ICLR 2020, appendix on hierarchical local SGD)

Changes may be compressed, which with error feedback is Qsparse-local-SGD (Basu et al., NeurIPS 2019, Algorithm 1);
averages of groups are of whole models.

What is observed is the mean of all w_i, which the harness makes, off the clock: the algorithm sends nothing for it, and
makes no such mean at the end. With a period that never ends it is of models that have never met, and no worker has it;
`stat/consensus_distance` says how far they are apart. DiLoCo evaluates x, of the last round.

With H = 1 and plain or heavy-ball steps inside it is `all_reduce`: both are linear in the gradients.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.distributed as dist

from algorithms.base import Algorithm
from algorithms.common.optimizers import Descent, Optimizer
from algorithms.common.schedules import Schedule
from algorithms.compression.averaging import WholeMean
from algorithms.compression.compressor import Compression
from algorithms.flat import flatten_
from harness.errors import require
from harness.problems.base import Problem
from harness.worker import Worker


@dataclass(frozen=True)
class LocalSGD(Algorithm):
    """Average the models of all workers after every `period` steps.

    Args:
        period: steps of a worker between two averages, H, >= 1.
        growth: steps by which every period is longer than the one before, >= 0.
        all_reduce_epochs: epochs in which every step is averaged, before periods count, >= 0.
        group_size: workers that average among themselves, with neighbouring ranks, the last group being what is left;
            1 for no groups.
        group_rounds: averages in groups before one of all, that one included, >= 1; of no effect without groups.
        compression: of the changes that all average.
        optimizer: of every worker's own steps.
        schedule: factor of those steps as training goes on.
        outer: what makes a step of the average change.
        outer_learning_rate: of that step, > 0; 1 for the average where `outer` is plain.
    """

    synchronous: ClassVar[bool] = True
    decentralised: ClassVar[bool] = True

    period: int
    growth: int
    all_reduce_epochs: float
    group_size: int
    group_rounds: int
    compression: Compression
    optimizer: Optimizer
    schedule: Schedule
    outer: Optimizer
    outer_learning_rate: float

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("period", 1), ("growth", 0), ("all_reduce_epochs", 0), ("group_size", 1)):
            require(getattr(self, name) >= least, f"algorithm.{name}", f"must be >= {least}", getattr(self, name))
        require(self.group_rounds >= 1, "algorithm.group_rounds", "must be >= 1", self.group_rounds)
        rate = self.outer_learning_rate
        require(rate > 0, "algorithm.outer_learning_rate", "must be > 0", rate)

    @property
    def is_sgd(self) -> bool:  # type: ignore[override]
        """Where outer steps are averages, of whole changes."""
        return self.compression.is_exact and self.outer.is_plain and self.outer_learning_rate == 1

    def steps(self, rounds: int, epoch: float) -> int:
        """H of the next round.

        Args:
            rounds: so far, without those of `all_reduce_epochs`.
            epoch: epochs that all workers had been dealt before.
        """
        return 1 if epoch < self.all_reduce_epochs else self.period + self.growth * rounds

    def without_effect(self) -> dict[str, str]:
        """Rounds of groups where there are none."""
        return {"group_rounds": "algorithm.group_size=1"} if self.group_size == 1 else {}

    def notices(self, problem: Problem, num_workers: int, epochs: float) -> list[str]:
        """Groups that are none, or uneven, and a budget that ends before all workers have met."""
        if num_workers == 1:
            return []
        noted, size = [], f"algorithm.group_size={self.group_size}"
        if self.group_size >= num_workers:
            noted.append(f"{size} makes one group of all {num_workers} workers")
        elif left := num_workers % self.group_size:
            noted.append(f"{size} does not divide {num_workers} workers: the last group has {left}")
        rounds = self.group_rounds if 1 < self.group_size < num_workers else 1
        first = rounds * self.period + self.growth * rounds * (rounds - 1) // 2
        steps = -(-round(epochs * problem.num_samples) // (self.batch_size * num_workers))
        if steps < first and not self.all_reduce_epochs:
            which = f"algorithm.period={self.period}" + f" and algorithm.group_rounds={rounds}" * (rounds > 1)
            never = f"all workers would meet after {first} steps each, and budget.epochs={epochs:g} ends after {steps}"
            noted.append(f"{which}: {never}: they never do")
        return noted

    def bytes_per_update(self, problem: Problem, weights: torch.Tensor, num_workers: int) -> float | None:
        """Every worker hands in its change at the end of a period, all being alike.

        Returns:
            None where they are not.
        """
        if self.growth or self.all_reduce_epochs or self.group_size > 1:
            return None
        return self.compression.bytes_of_mean(problem, weights, num_workers) / self.period

    def train(self, worker: Worker, problem: Problem) -> None:
        """Descend alone, and meet the others at the end of every round."""
        model = problem.build_model(worker.device, worker.seed)
        weights, gradient = flatten_(model)
        inner = Descent(self.optimizer, weights, gradient, self.learning_rate)
        common, change = weights.clone(), torch.zeros_like(weights)
        outer = Descent(self.outer, common, change, self.outer_learning_rate)
        averaging, group = self.compression.averaging(model, worker), self._group(worker)
        rounds, local_steps = 0, 0
        for batch in worker.batches(problem, self.batch_size):
            problem.loss(model, batch).backward()
            inner.step(self.learning_rate * self.schedule.at(worker))
            gradient.zero_()
            local_steps += 1
            if local_steps == self.steps(rounds, worker.elapsed_epochs):
                local_steps, rounds = 0, rounds + (worker.elapsed_epochs >= self.all_reduce_epochs)
                if group is None or rounds % self.group_rounds == 0:
                    torch.sub(common, weights, out=change)
                    averaging.average_(change)
                    outer.step()
                    weights.copy_(common)
                else:
                    WholeMean(group).average_(weights)
            worker.observe(weights, len(batch))

    def _group(self, worker: Worker) -> dist.ProcessGroup | None:
        """The worker's own; None without groups. All workers make all groups."""
        if self.group_size == 1:
            return None
        ranks = list(range(worker.num_workers))
        groups = [dist.new_group(ranks[first : first + self.group_size]) for first in ranks[:: self.group_size]]
        return groups[worker.rank // self.group_size]
