"""One worker of a hyperparameter search: trains trials, and measures the validation loss that they are compared by."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch

from algorithms.common.optimizers import Descent
from algorithms.flat import flatten_
from harness.problems.base import Problem
from harness.worker import Worker

if TYPE_CHECKING:
    from algorithms.hyperparameter_search import HyperparameterSearch

VALIDATED_AT_ONCE = 4096  # samples
_ORDER, _HELD_OUT = 2_750_159, 6_291_469  # tell their random numbers from others of the same seed


class Trainer:
    """One worker's model, and the samples of all trials."""

    def __init__(self, search: "HyperparameterSearch", worker: Worker, problem: Problem) -> None:
        self._search, self._worker, self._problem = search, worker, problem
        self._model = problem.build_model(worker.device, worker.seed)
        self.weights, self._gradient = flatten_(self._model)
        self._initial = self.weights.clone()
        samples = np.random.default_rng([worker.seed, _HELD_OUT]).permutation(problem.num_samples).astype(np.int32)
        held_out = min(max(1, round(search.validation_fraction * len(samples))), len(samples) - 1)
        self._validation, self._training = torch.from_numpy(samples[:held_out]), samples[held_out:]

    def run(self, trial: int, begin: int, end: int) -> tuple[float, int]:
        """Train `weights` from one number of samples to another; returns the validation loss, and the steps."""
        if begin == 0:
            self.weights.copy_(self._initial)
        optimizer, learning_rate, batch_size = self._search.of(self._search.settings(self._worker.seed, trial))
        descent, steps = Descent(optimizer, self.weights, self._gradient, learning_rate), 0
        for batch in self._batches(begin, end, batch_size):
            self._problem.loss(self._model, batch).backward()
            descent.step()
            self._gradient.zero_()
            steps += 1
            self._worker.advance(len(batch))
        return self._loss(), steps

    def _batches(self, begin: int, end: int, batch_size: int) -> Iterator[torch.Tensor]:
        """Of a new order in every epoch, the same for all trials."""
        size = len(self._training)
        for epoch in range(begin // size, -(-end // size)):
            order = np.random.default_rng([self._worker.seed, _ORDER, epoch]).permutation(self._training)
            part = order[max(begin - epoch * size, 0) : end - epoch * size]
            yield from self._worker.batches_of(torch.from_numpy(part), batch_size)

    @torch.no_grad()
    def _loss(self) -> float:
        """Mean over the held-out samples."""
        total = 0.0
        for batch in self._worker.batches_of(self._validation, VALIDATED_AT_ONCE):
            total += float(self._problem.loss(self._model, batch)) * len(batch)
        return total / len(self._validation)
