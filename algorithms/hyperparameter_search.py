"""Hyperparameter search: many trainings with different settings, of which the best model counts.

    worker:  loop: ask for a job;  train its trial further;  measure its validation loss;  hand in loss and model
    server:  loop: hear of a result;  keep the best model;  give jobs to those who wait  (`search/strategies.py`)

    grid                every combination, of an equal share of the budget each
    random              trials drawn from the space (Bergstra and Bengio, JMLR 2012), of an equal share each
    successive_halving  the best 1 / eta of the trials go on (Jamieson and Talwalkar, AISTATS 2016, Algorithm 1)
    asha                the same, without anybody waiting (Li et al., MLSys 2020, Algorithm 2)

A trial is minibatch SGD with its own settings, on the run's initial model and samples in one order for all, less some
that are held out: their mean loss decides. Measuring it is a part of the search, and on the clock. The budget is that
of all trials together, so that a search of one worker is the sequential way of doing the same. What is found depends on
the seed alone, whatever the number of workers, but for `asha`, where it depends on who is first. A trial that diverges
is a result like any other. Deviation: a trial that goes on does so from its weights, with a new optimiser.
"""

from dataclasses import dataclass, fields, replace
from itertools import product
from typing import Any, ClassVar

import numpy as np
import torch
import torch.distributed as dist

from algorithms.base import Algorithm
from algorithms.common.optimizers import Optimizer
from algorithms.flat import flat_parameters
from algorithms.search.server import WEIGHTS, SearchServer
from algorithms.search.space import Range
from algorithms.search.strategies import ROUNDING, Asha, Plan, Rungs
from algorithms.search.trainer import Trainer
from harness.errors import require
from harness.problems.base import Problem
from harness.worker import Worker

STRATEGIES = ("grid", "random", "successive_halving", "asha")
OWN = ("learning_rate", "batch_size")  # settings of a trial that are not its optimizer's
_DRAW = 7_340_033  # tells its random numbers from others of the same seed


@dataclass(frozen=True)
class HyperparameterSearch(Algorithm):
    """Trials of minibatch SGD, on workers around a server.

    Args:
        optimizer: of every trial, but for what is searched.
        space: what settings may be (`search/space.py`), None for not searched, by name: learning_rate, batch_size, or a
            number of the optimizer.
        strategy: grid, random, successive_halving or asha.
        trials: drawn from the space by random and successive_halving, >= 1.
        grid_points: of a range in a grid, >= 2.
        reduction: eta, of successive_halving and asha, >= 2.
        min_epochs: of a new trial of asha, > 0.
        max_epochs: of its longest, >= min_epochs.
        validation_fraction: share of the training set that is held out, in (0, 1).
    """

    synchronous: ClassVar[bool] = False
    is_sgd: ClassVar[bool] = False
    own_baseline: ClassVar[bool] = True
    deals_samples: ClassVar[bool] = True

    optimizer: Optimizer
    space: dict[str, str | None]
    strategy: str
    trials: int
    grid_points: int
    reduction: int
    min_epochs: float
    max_epochs: float
    validation_fraction: float

    def __post_init__(self) -> None:
        super().__post_init__()
        rule = f"must be one of {', '.join(STRATEGIES)}"
        require(self.strategy in STRATEGIES, "algorithm.strategy", rule, self.strategy)
        for name, least in (("trials", 1), ("grid_points", 2), ("reduction", 2)):
            require(getattr(self, name) >= least, f"algorithm.{name}", f"must be >= {least}", getattr(self, name))
        require(self.min_epochs > 0, "algorithm.min_epochs", "must be > 0", self.min_epochs)
        rule = f"must be >= algorithm.min_epochs={self.min_epochs}"
        require(self.max_epochs >= self.min_epochs, "algorithm.max_epochs", rule, self.max_epochs)
        share = self.validation_fraction
        require(0 < share < 1, "algorithm.validation_fraction", "must be in (0, 1)", share)
        self._check_space()

    def without_effect(self) -> dict[str, str]:
        """What other strategies go by, and what is searched, which is not set."""
        used = {"trials": ("random", "successive_halving"), "grid_points": ("grid",), "min_epochs": ("asha",)}
        used |= {"reduction": ("successive_halving", "asha"), "max_epochs": ("asha",)}
        found = {name: f"algorithm.strategy={self.strategy}" for name in used if self.strategy not in used[name]}
        for name, values in self.space.items():
            if values:
                found[name if name in OWN else f"optimizer.{name}"] = f"algorithm.space.{name}={values}"
        return found

    def notices(self, problem: Problem, num_workers: int, epochs: float) -> list[str]:
        """One rung promotes nobody."""
        chosen = f"algorithm.strategy={self.strategy} with algorithm.reduction={self.reduction}"
        if self.strategy == "successive_halving" and self.trials <= self.reduction:
            return [f"{chosen} and algorithm.trials={self.trials} has one rung: it is random search"]
        if self.strategy == "asha" and self.min_epochs * self.reduction > self.max_epochs * (1 + ROUNDING):
            longest = f"algorithm.max_epochs={self.max_epochs:g}"
            return [f"{chosen}, algorithm.min_epochs={self.min_epochs:g} and {longest} has one rung: no trial goes on"]
        return []

    def steadies(self) -> list[str]:
        """Where the step is searched, the space has it."""
        searched = self.space.get("learning_rate")
        return [f"smaller steps in algorithm.space.learning_rate='{searched}'"] if searched else super().steadies()

    def servers(self) -> int:
        """One, which has the best model and knows who does what."""
        return 1

    def train(self, worker: Worker, problem: Problem) -> None:
        """Train trials, as the server says."""
        trainer, server = Trainer(self, worker, problem), worker.num_workers
        result, job = torch.tensor([0.0, 0.0], dtype=torch.float64), torch.zeros(3, dtype=torch.int64)
        dist.send(result, server)
        while True:
            dist.recv(job, server)
            trial, begin, end = job.tolist()
            if trial < 0:
                return
            if begin:
                dist.recv(trainer.weights, server)
            result[0], result[1] = trainer.run(trial, begin, end)
            dist.send(result, server)
            dist.send(trainer.weights, server, tag=WEIGHTS)

    def serve(self, worker: Worker, problem: Problem) -> None:
        """Give out jobs and keep the best model."""
        budget, initial = worker.budget, flat_parameters(problem.build_model(worker.device, worker.seed))
        SearchServer(worker, self.plan(budget, problem.num_samples), initial).run(
            lambda trial: self.settings(worker.seed, trial)
        )

    def plan(self, budget: int, num_samples: int) -> Plan:
        """Of the jobs of a search.

        Raises:
            UserError: if a trial of the first rung would be left without a sample.
        """
        if self.strategy == "asha":
            least, most = (max(1.0, epochs * num_samples) for epochs in (self.min_epochs, self.max_epochs))
            return Asha(least, most, self.reduction, budget)
        trials = len(self.grid()) if self.strategy == "grid" else self.trials
        rungs = Rungs(trials, self.reduction if self.strategy == "successive_halving" else None, budget)
        least = trials * len(rungs.sizes)
        rule = f"must be at least {least / num_samples:.6g}: a sample for each of {trials} trials in the first of "
        rule += f"{len(rungs.sizes)} rungs, which share the budget equally"
        require(budget >= least, "budget.epochs", rule, budget / num_samples)
        return rungs

    def settings(self, seed: int, trial: int) -> dict[str, float]:
        """What a trial is made with, by name."""
        if self.strategy == "grid":
            return self.grid()[trial]
        random = np.random.default_rng([seed, _DRAW, trial])
        return {name: values.draw(random) for name, values in self._ranges()}

    def grid(self) -> list[dict[str, float]]:
        """Every combination."""
        names, values = zip(*((name, values.grid(self.grid_points)) for name, values in self._ranges()), strict=True)
        return [dict(zip(names, combination, strict=True)) for combination in product(*values)]

    def of(self, settings: dict[str, Any]) -> tuple[Optimizer, float, int]:
        """Optimiser, learning rate and batch size of a trial."""
        own = {name: settings[name] for name in settings if name not in OWN}
        step, size = (settings.get(name, getattr(self, name)) for name in OWN)
        return replace(self.optimizer, **own), step, size

    def _ranges(self) -> list[tuple[str, Range]]:
        asked = [(name, text) for name, text in sorted(self.space.items()) if text is not None]
        return [(name, Range.read(f"algorithm.space.{name}", text)) for name, text in asked]

    def _check_space(self) -> None:
        require(bool(self._ranges()), "algorithm.space", "must name a setting to search", self.space)
        known = [*OWN]
        known += [each.name for each in fields(self.optimizer) if each.type in (float, "float")]
        for name, values in self._ranges():
            rule = f"must name settings of a trial ({', '.join(known)})"
            require(name in known, "algorithm.space", rule, name)
            least = min(values.numbers)
            if name == "batch_size":
                whole = values.kind == "one_of" and all(isinstance(number, int) for number in values.numbers)
                rule = "must be one_of(...) whole numbers >= 1"
                require(whole and least >= 1, f"algorithm.space.{name}", rule, self.space[name])
            elif name == "learning_rate":
                require(least > 0, f"algorithm.space.{name}", "must be > 0", self.space[name])
            else:
                for number in values.extremes(drawn=self.strategy != "grid"):
                    replace(self.optimizer, **{name: number})
