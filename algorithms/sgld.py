"""Stochastic gradient Langevin dynamics (Welling and Teh, ICML 2011, equation 4), on a model that workers share.

    w <- w - eta * gradient of the mean loss over the batch + N(0, 2 eta T / n)

The weights, once they have forgotten their start, are samples of exp(-n f(w) / T), the posterior at T = 1; in the
paper's words epsilon = 2 eta / n. Without locks it is the asynchronous SG-MCMC of Chen, Ding, Li, Zhang and Carin
(NIPS 2016), whose gradients are stale. By native kernels the noise is as sparse as the gradient
(harness/kernels/langevin.py); by torch it is dense.

With a constant step the variance is too large by what gradients of single samples bring of their own (Mandt, Hoffman,
Blei, JMLR 2017, section 3), and right as eta goes to 0; that noise is small beside the other where eta |g_i|^2 is
beside 2 T / n. Deviations: samples are shuffled, not drawn with replacement, and steps fall as `schedule` says.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch

from algorithms.flat import flat_parameters, flatten_
from algorithms.sgd import run_kernel
from algorithms.shared_memory.replicas import Replica
from algorithms.shared_memory.shared_model import SharedModelAlgorithm
from harness.errors import require
from harness.kernels.base import Kernel
from harness.kernels.langevin import LangevinKernel
from harness.kernels.sparse_linear import SparseLinearKernel
from harness.problems.base import Problem
from harness.worker import Worker


@dataclass(frozen=True)
class SGLD(SharedModelAlgorithm):
    """Every worker descends on the shared model and shakes it.

    Args:
        temperature: T, > 0.
    """

    is_sgd: ClassVar[bool] = False
    visits_rows: ClassVar[bool] = True
    why_full: ClassVar[str] = "rounding would add noise of its own"
    why_summed: ClassVar[str] = "an average has less noise than the samples of a posterior"

    temperature: float

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.temperature > 0, "algorithm.temperature", "must be > 0", self.temperature)

    def train(self, worker: Worker, problem: Problem) -> None:
        """Walk."""
        layout = self.laid_out(worker, problem)
        start = flat_parameters(problem.build_model(worker.device, worker.seed))
        replica = self.replica(worker, problem, start, layout)
        if layout is not None:
            run_kernel(self._kernel(layout.kernel), worker, replica, partial(self.step, worker))
        else:
            self._walk(worker, problem, replica)

    def warm_up(self, problem: Problem) -> None:
        """Compile the kernel."""
        if self.releases_gil(problem):
            self._kernel(problem.kernel).warm_up(*self.example(problem))

    def releases_gil(self, problem: Problem) -> bool:
        """With one sample per update and a linear model on sparse rows."""
        return self.batch_size == 1 and isinstance(problem.kernel, SparseLinearKernel)

    def _kernel(self, linear: Kernel | None) -> LangevinKernel:
        assert isinstance(linear, SparseLinearKernel)
        return LangevinKernel(linear, self.temperature)

    def _walk(self, worker: Worker, problem: Problem, replica: Replica) -> None:
        assert isinstance(replica.model, torch.Tensor)
        model = problem.build_model(worker.device, worker.seed)
        weights, gradient = flatten_(model, replica.model)
        for batch in worker.batches(problem, self.batch_size):
            step = self.step(worker)
            noise = torch.randn(weights.shape, dtype=weights.dtype, generator=worker.generator).to(weights.device)
            with replica.locked(worker):
                problem.loss(model, batch).backward()
                weights.sub_(gradient, alpha=step)
                weights.add_(noise, alpha=math.sqrt(2 * step * self.temperature / problem.num_samples))
            gradient.zero_()
            replica.processed(len(batch))
        replica.finish()
