"""What hardware executes: one algorithm on one problem, with a budget. It travels whole to every worker."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch

from algorithms.base import Algorithm
from harness.data import DataPolicy
from harness.interleaving import Interleaving
from harness.problems.base import Problem

if TYPE_CHECKING:
    from harness.place import Place
    from harness.worker import Worker


@dataclass(frozen=True)
class Program:
    """One algorithm on one problem, with a budget.

    Args:
        seed: of the initial model and the order of samples.
        budget_samples: global samples to process, over all workers, >= 1.
        milestones: increasing global sample counts at which the model is observed; the last is `budget_samples`.
        replay: by rank, what an earlier run decided by its timing, to be decided alike; empty to let time decide.
    """

    algorithm: Algorithm
    problem: Problem
    data: DataPolicy
    seed: int
    budget_samples: int
    milestones: Sequence[int]
    replay: Sequence[Interleaving] = field(default=())

    def servers(self) -> int:
        """Ranks beyond the workers: the algorithm's servers, then those of data."""
        return self.algorithm.servers() + self.data.servers()

    def workers(self, num_ranks: int) -> int:
        """How many of these ranks are workers: the first ones."""
        return num_ranks - self.servers()

    def share(self, place: "Place") -> tuple[int, int]:
        """Which share of the samples of a step the rank at a place takes, and of how many; a server's is beyond all."""
        num_workers = self.workers(place.num_workers)
        if place.rank < num_workers:
            return self.algorithm.share(place.rank, num_workers)
        return place.rank, self.algorithm.share(0, num_workers)[1]

    def parts(self, num_workers: int) -> list[np.ndarray] | None:
        """The samples of every worker, where each has its own; see `DataPolicy.parts`."""
        if num_workers not in self._parts:
            self._parts[num_workers] = self.data.parts(self.problem, num_workers, self.seed)
        return self._parts[num_workers]

    @cached_property
    def _parts(self) -> dict[int, list[np.ndarray] | None]:
        """Computed once for all ranks that share this object."""
        return {}

    def touch(self, device: torch.device, samples: int = 1) -> None:
        """Do what only the first worker in a process would pay for: load data, and pass once through a model."""
        if self.problem.is_fake:
            return
        self.algorithm.releases_gil(self.problem)  # which makes the kernel
        with torch.random.fork_rng(devices=[]):
            model = self.problem.build_model(device, self.seed)
            self.problem.loss(model, torch.zeros(samples, dtype=torch.int32, device=device)).backward()
        if self.data.servers():
            self.problem.layout(torch.zeros(1, dtype=torch.int32))

    def warm_up(self) -> None:
        """Compile what workers will run."""
        self.algorithm.warm_up(self.problem)

    def run(self, worker: "Worker") -> None:
        """Do one worker's whole training, or one server's work."""
        if worker.rank < worker.num_workers:
            self.algorithm.train(worker, self.problem)
            worker.finish()
        elif worker.rank < worker.num_workers + self.algorithm.servers():
            self.algorithm.serve(worker, self.problem)
        else:
            worker.serve_rows(self.problem)
