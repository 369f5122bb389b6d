"""The server of a hyperparameter search: gives out jobs, keeps every trial's weights, and knows the best."""

import math
from collections.abc import Callable

import torch
import torch.distributed as dist

from algorithms.search.strategies import Job, Plan
from algorithms.serving.correspondence import Correspondence
from harness.worker import Worker

STOP = (-1, 0, 0)
WEIGHTS = 1  # tag of a trained model, which is received beside results of others


class SearchServer:
    """What is known of all trials.

    Args:
        initial: weights of a new trial, shape (parameters,).
    """

    def __init__(self, worker: Worker, plan: Plan, initial: torch.Tensor) -> None:
        self._worker, self._plan = worker, plan
        self._workers = Correspondence(worker, torch.zeros(2, dtype=torch.float64))
        self._running: dict[int, tuple[Job, torch.Tensor, dist.Work | None]] = {}  # by worker, with the model to come
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
        for _ in range(self._worker.num_workers):
            self._workers.expect()
        while self._workers.expected:
            source, result = self._workers.hear()
            if source in self._running:
                self._hear(*self._running.pop(source), *result.tolist())
                self._publish(settings)
            self._waiting.append(source)
            self._give_out()
        self._workers.close()
        self._conclude(settings)

    def _hear(self, job: Job, weights: torch.Tensor, work: dist.Work | None, loss: float, steps: float) -> None:
        """Take a result; from then on the run's model may be another."""
        assert work is not None  # only a rank outside the group gets none
        work.wait()
        self._weights[job.trial] = weights
        self._samples[job.trial], self._losses[job.trial] = job.end, loss
        self._plan.report(job, loss)
        if math.isfinite(loss) and (loss, job.trial) < self._score:
            self._best, self._score, self._best_s = weights, (loss, job.trial), self._worker.clock.now()
        self._worker.observe(self._best, job.end - job.begin, int(steps))

    def _give_out(self) -> None:
        """Jobs to those who wait, as far as there are any, and goodbye in the end."""
        while self._waiting and ((job := self._plan.next()) is not None or self._plan.over):
            worker = self._waiting.pop(0)
            if job is None:
                self._workers.send(worker, torch.tensor(STOP))
                continue
            model = torch.empty_like(self._best)
            self._running[worker] = job, model, dist.irecv(model, worker, tag=WEIGHTS)
            self._workers.send(worker, torch.tensor([job.trial, job.begin, job.end]))
            if job.begin:
                self._workers.send(worker, self._weights[job.trial])
            self._workers.expect()

    def _publish(self, settings: Callable[[int], dict[str, float]]) -> None:
        """Say what is found so far, of many trials ever more rarely, since all are said."""
        if len(self._losses) % max(1, len(self._losses) // 16) == 0:
            self._conclude(settings)
            self._worker.publish()

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
