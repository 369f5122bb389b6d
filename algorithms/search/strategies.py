"""Which trial of a search is to be trained next, and how far: plans without workers, clocks or models.

    Rungs    n trials share the budget of a rung equally; the best 1 / eta of them share that of the next, equally large
             one, and so on (successive halving; Jamieson and Talwalkar, AISTATS 2016, Algorithm 1, with any eta for
             their 2). One rung alone is grid or random search.
    Asha     a worker that is free takes a trial among the best 1 / eta of the highest rung in which one has not been
             promoted yet, or else begins a new one (Li et al., MLSys 2020, Algorithm 2, with s = 0)

A trial whose loss is not finite is never promoted.
"""

import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

ROUNDING = 1e-9  # relative, of products of numbers such as 0.1


@dataclass(frozen=True)
class Job:
    """A part of one trial's training.

    Args:
        trial: its number, from 0.
        begin: samples that it has been trained with before.
        end: samples that it shall have been trained with.
    """

    trial: int
    begin: int
    end: int


class Plan(ABC):
    """What is to be done next."""

    @property
    @abstractmethod
    def over(self) -> bool:
        """Whether nothing will be, whatever is reported."""

    @abstractmethod
    def next(self) -> Job | None:
        """The next job; None where that depends on those under way, or nothing is left."""

    @abstractmethod
    def report(self, job: Job, loss: float) -> None:
        """Hear how a job ended."""


class Rungs(Plan):
    """Rungs of equal budgets, one after the other; all of a rung is done before the next begins.

    Args:
        trials: n.
        reduction: eta, >= 2; None for a single rung.
        budget: samples.

    Attributes:
        sizes: trials of each rung.
    """

    def __init__(self, trials: int, reduction: int | None, budget: int) -> None:
        self.sizes = [trials]
        while reduction is not None and self.sizes[-1] > reduction:
            self.sizes.append(-(-self.sizes[-1] // reduction))
        self._budgets = _shares(budget, len(self.sizes))
        self._reached = dict.fromkeys(range(trials), 0)
        self._queue: deque[Job] = deque()
        self._losses: dict[int, float] = {}  # of this rung
        self._awaited = 0
        self._begin(range(trials))

    @property
    def over(self) -> bool:
        """Whether the last rung's trials have all been given out."""
        return not self._queue and not self._budgets

    def next(self) -> Job | None:
        """The next of this rung."""
        return self._queue.popleft() if self._queue else None

    def report(self, job: Job, loss: float) -> None:
        """Once a rung is complete, the next begins."""
        self._losses[job.trial] = loss
        if len(self._losses) == self._awaited and self._budgets:
            self._begin(best(self._losses)[: self.sizes[len(self.sizes) - len(self._budgets)]])

    def _begin(self, trials: Sequence[int]) -> None:
        budget, self._awaited, self._losses = self._budgets.pop(0), len(trials), {}
        if not trials:  # all have diverged
            self._budgets.clear()
        for trial, share in zip(trials, _shares(budget, len(trials)), strict=True):
            self._queue.append(Job(trial, self._reached[trial], self._reached[trial] + share))
            self._reached[trial] += share


class Asha(Plan):
    """Asynchronous successive halving.

    Args:
        least: samples of a new trial, r, >= 1; those of every rung are rounded.
        most: samples that no trial is trained beyond, R, >= least.
        reduction: eta, >= 2.
        budget: samples; the last job may go beyond.
    """

    def __init__(self, least: float, most: float, reduction: int, budget: int) -> None:
        self._ends, end = list[int](), least
        while end <= most * (1 + ROUNDING):
            self._ends.append(round(end))
            end *= reduction
        self._losses: list[dict[int, float]] = [{} for _ in self._ends]
        self._promoted: list[set[int]] = [set() for _ in self._ends]
        self._reduction, self._left, self._begun = reduction, budget, 0

    @property
    def over(self) -> bool:
        """Whether the budget has been given out."""
        return self._left <= 0

    def next(self) -> Job | None:
        """A promotion if there can be one, or a new trial."""
        if self.over:
            return None
        job = self._promotion() or self._new()
        self._left -= job.end - job.begin
        return job

    def report(self, job: Job, loss: float) -> None:
        """Note it in its rung."""
        self._losses[self._ends.index(job.end)][job.trial] = loss

    def _promotion(self) -> Job | None:
        for rung in reversed(range(len(self._ends) - 1)):
            for trial in best(self._losses[rung])[: len(self._losses[rung]) // self._reduction]:
                if trial not in self._promoted[rung]:
                    self._promoted[rung].add(trial)
                    return Job(trial, self._ends[rung], self._ends[rung + 1])
        return None

    def _new(self) -> Job:
        self._begun += 1
        return Job(self._begun - 1, 0, self._ends[0])


def best(losses: dict[int, float]) -> list[int]:
    """Trials by loss, then number, without those whose loss is not finite.

    >>> best({0: 0.5, 1: float("nan"), 2: 0.1, 3: 0.5})
    [2, 0, 3]
    """
    return sorted((trial for trial in losses if math.isfinite(losses[trial])), key=lambda trial: (losses[trial], trial))


def _shares(amount: int, parts: int) -> list[int]:
    return [amount * (part + 1) // parts - amount * part // parts for part in range(parts)]
