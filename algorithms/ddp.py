"""Synchronous data parallel SGD by torch's DistributedDataParallel (Li et al., VLDB 2020, section 3).

What `all_reduce` computes, but gradients travel in buckets of layers, each as soon as the backward pass has filled it:
the last layers' while the first ones' are still computed (section 3.2.3). Torch compresses by communication hooks, of
which we take its own: float16, and PowerSGD from the third step on, when buckets stay as they are. Its PowerSGD
sends the parts of a bucket one after the other, from gloo's own threads; with several buckets workers do so in orders
that differ, and gloo adds what does not belong together, or waits forever. Therefore it needs one bucket for all.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

from algorithms.base import Algorithm
from algorithms.compression import Compression, Uncompressed
from algorithms.flat import flatten_
from algorithms.optimizers import Descent, Optimizer
from algorithms.power_sgd import PowerSGD
from algorithms.quantization import Half
from algorithms.schedules import Schedule
from harness.errors import require
from harness.problems.base import Problem
from harness.worker import Worker

WHOLE_STEPS = 2  # the fewest after which torch lets PowerSGD begin: it makes its buckets anew after the first


@dataclass(frozen=True)
class DDP(Algorithm):
    """Average the gradients of all workers at every step, in buckets that travel during the backward pass.

    Args:
        linear_scaling: multiply the step by the number of workers.
        bucket_bytes: size at which a bucket is full, > 0; a layer is never split.
        compression: of the gradients: none, half or power_sgd.
        optimizer: what makes a step of the average gradient, on every worker alike.
        schedule: factor of the step as training goes on.
    """

    synchronous: ClassVar[bool] = True

    linear_scaling: bool
    bucket_bytes: int
    compression: Compression
    optimizer: Optimizer
    schedule: Schedule

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.bucket_bytes >= 1, "algorithm.bucket_bytes", "must be >= 1", self.bucket_bytes)
        hooked = isinstance(self.compression, Uncompressed | Half | PowerSGD)
        rule = "must be none, half or power_sgd with algorithm=ddp; algorithm=all_reduce takes any"
        require(hooked, "algorithm/compression", rule, type(self.compression).__name__)
        if isinstance(self.compression, Half):
            precision, feeds_back = self.compression.precision, self.compression.error_feedback
            rule = "must be float16 with algorithm=ddp, as torch's hook for bfloat16 needs NCCL"
            require(precision == "float16", "algorithm.compression.precision", rule, precision)
            rule = "must be false with algorithm=ddp and half, for which torch has none"
            require(not feeds_back, "algorithm.compression.error_feedback", rule, feeds_back)

    def bytes_per_update(self, weights: torch.Tensor, num_workers: int) -> float | None:
        """Every worker hands in its gradient; that rank 0 says once which layers make a bucket comes on top."""
        return self.compression.bytes_of_mean(weights, num_workers)

    def check(self, problem: Problem) -> None:
        """PowerSGD needs the whole model in one bucket."""
        if isinstance(self.compression, PowerSGD):
            model = problem.build_model(torch.device("cpu"), seed=0)
            size = sum(parameter.nbytes for parameter in model.parameters())
            rule = f"must be at least {size}, the bytes of the model, with algorithm/compression=power_sgd"
            require(self.bucket_bytes >= size, "algorithm.bucket_bytes", rule, self.bucket_bytes)

    @property
    def is_sgd(self) -> bool:  # type: ignore[override]
        """Where gradients are whole."""
        return self.compression.is_exact

    def train(self, worker: Worker, problem: Problem) -> None:
        """Take steps along 1/P sum_i g_i."""
        model = problem.build_model(worker.device, worker.seed)
        weights, gradient = flatten_(model)
        learning_rate = self.learning_rate * (worker.num_workers if self.linear_scaling else 1)
        descent = Descent(self.optimizer, weights, gradient, learning_rate)
        parallel = self._wrapped(model, worker)
        for batch in worker.batches(problem, self.batch_size):
            problem.loss(parallel, batch).backward()
            descent.step(learning_rate * self.schedule.at(worker))
            gradient.zero_()
            worker.observe(weights, samples=len(batch))

    def _wrapped(self, model: nn.Module, worker: Worker) -> DistributedDataParallel:
        """The model, whose backward passes average; all workers have built the same one."""
        parallel = DistributedDataParallel(model, bucket_cap_mb=self.bucket_bytes / 2**20, init_sync=False)
        compression = self.compression
        if isinstance(compression, Half):
            parallel.register_comm_hook(None, default_hooks.fp16_compress_hook)
        elif isinstance(compression, PowerSGD):
            state = powerSGD_hook.PowerSGDState(
                None,
                compression.matrix_rank,
                WHOLE_STEPS,
                min_compression_rate=1,
                use_error_feedback=compression.error_feedback,
                warm_start=compression.warm_start,
                random_seed=worker.seed,
            )
            parallel.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
        return parallel
