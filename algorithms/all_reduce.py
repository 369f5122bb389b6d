"""Synchronous data parallel SGD by all-reduce (Goyal et al., arXiv:1706.02677, section 2).

P workers take a batch of b samples each, average their gradients and take the same step: minibatch SGD with a batch of
P * b samples, whatever P is. With the step of a batch of b samples that costs up to P times the epochs; the linear
scaling rule (section 2.1) wins them back while P * b is small, after a warm-up (section 2.2), as `schedule` has it.

Gradients may be compressed, by one worker as by many: with error feedback every worker does what EF-SGD does
(Karimireddy et al., ICML 2019, Algorithm 2).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from algorithms.common.data_parallel import DataParallel
from algorithms.common.gradient import add_gradient
from harness.batch import Samples
from harness.problems.base import Problem
from harness.worker import Worker


@dataclass(frozen=True)
class AllReduce(DataParallel):
    """Average the gradients of all workers at every step, in one buffer."""

    def averaged(
        self, model: nn.Module, gradient: torch.Tensor, worker: Worker, problem: Problem
    ) -> Callable[[Samples], None]:
        """All-reduce, or what the compression does in its place."""
        averaging = self.compression.averaging(model, worker)

        def average(batch: Samples) -> None:
            add_gradient(problem, model, batch, self.accumulate)
            averaging.average_(gradient)

        return average
