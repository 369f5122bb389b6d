"""The server of a hyperparameter search: gives out jobs, keeps every trial's weights, and knows the best."""

import math
from collections.abc import Callable

import torch
import torch.distributed as dist

from algorithms.search_strategies import Job, Plan
from harness.worker import Worker

STOP = (-1, 0, 0)


class SearchServer:
    """What is known of all trials.

    Args:
        initial: weights of a new trial, shape (parameters,).
    """

    def __init__(self, worker: Worker, plan: Plan, initial: torch.Tensor) -> None:
        self._worker, self._plan = worker, plan
        self._running: dict[int, Job] = {}  # by worker
        self._waiting: list[int] = []
        self._best, self._score, self._best_s = initial, (math.inf, 0), 0.0
        self._weights: dict[int, torch.Tensor] = {}  # of trials
        self._samples: dict[int, int] = {}
        self._losses: dict[int, float] = {}

    def run(self, settings: Callable[[int], dict[str, float]]) -> None:
        """Serve until all workers have left, then say what was found.

        Args:
            settings: of a trial.
        """
        present, result = self._worker.num_workers, torch.zeros(2, dtype=torch.float64)
        while present:
            source = self._worker.receive(result)
            if source in self._running:
                self._hear(source, self._running.pop(source), *result.tolist())
            self._waiting.append(source)
            present -= self._give_out()
        self._conclude(settings)

    def _hear(self, source: int, job: Job, loss: float, steps: float) -> None:
        """Take a result; from then on the run's model may be another."""
        weights = self._weights[job.trial] = torch.empty_like(self._best)
        dist.recv(weights, source)
        self._samples[job.trial], self._losses[job.trial] = job.end, loss
        self._plan.report(job, loss)
        if math.isfinite(loss) and (loss, job.trial) < self._score:
            self._best, self._score, self._best_s = weights, (loss, job.trial), self._worker.clock.now()
        self._worker.observe(self._best, job.end - job.begin, int(steps))

    def _give_out(self) -> int:
        """Jobs to those who wait, as far as there are any; returns how many were told to leave."""
        left = 0
        while self._waiting and ((job := self._plan.next()) is not None or self._plan.over):
            worker = self._waiting.pop(0)
            if job is None:
                left += 1
                dist.send(torch.tensor(STOP), worker)
                continue
            self._running[worker] = job
            dist.send(torch.tensor([job.trial, job.begin, job.end]), worker)
            if job.begin:
                dist.send(self._weights[job.trial], worker)
        return left

    def _conclude(self, settings: Callable[[int], dict[str, float]]) -> None:
        conclude, (loss, best) = self._worker.conclude, self._score
        conclude("search/trials", len(self._losses))
        conclude("search/diverged", sum(not math.isfinite(each) for each in self._losses.values()))
        conclude("search/results", [self._result(trial, settings(trial)) for trial in sorted(self._losses)])
        if math.isfinite(loss):
            conclude("search/best_trial", best)
            conclude("search/best_loss", loss)
            conclude("search/best_time_s", self._best_s)
            for name, value in settings(best).items():
                conclude(f"search/best_{name}", value)

    def _result(self, trial: int, settings: dict[str, float]) -> dict[str, float]:
        loss = self._losses[trial]
        found = {"trial": trial, "samples": self._samples[trial], **settings}
        return found | ({"validation_loss": loss} if math.isfinite(loss) else {})
