"""Synchronous data parallel SGD by torch's DistributedDataParallel (Li et al., VLDB 2020, section 3).

What `all_reduce` computes, but gradients travel in buckets of layers, each as soon as the backward pass has filled it:
the last layers' while the first ones' are still computed (section 3.2.3). Torch compresses by communication hooks, of
which we take its own: float16, and PowerSGD from the third step on, when buckets stay as they are; the first two send
whole gradients, which `bytes_per_update` leaves out. Its PowerSGD sends the parts of a bucket one after the other, from
gloo's own threads; with several buckets workers do so in orders that differ, and gloo adds what does not belong
together, or waits forever. Therefore it needs one bucket for all.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

from algorithms.common.data_parallel import DataParallel
from algorithms.common.gradient import add_gradient
from algorithms.compression.compressor import Uncompressed
from algorithms.compression.power_sgd import PowerSGD
from algorithms.compression.quantization import Half
from harness.batch import Samples
from harness.errors import require
from harness.problems.base import Problem
from harness.worker import Worker

WHOLE_STEPS = 2  # the fewest after which torch lets PowerSGD begin: it makes its buckets anew after the first


@dataclass(frozen=True)
class DDP(DataParallel):
    """Average the gradients of all workers at every step, in buckets that travel during the backward pass.

    Args:
        bucket_bytes: size at which a bucket is full, > 0; a layer is never split.
    """

    bucket_bytes: int

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

    def check(self, problem: Problem) -> None:
        """PowerSGD needs the whole model in one bucket."""
        super().check(problem)
        if isinstance(self.compression, PowerSGD):
            model = problem.build_model(torch.device("cpu"), seed=0)
            size = sum(parameter.nbytes for parameter in model.parameters())
            rule = f"must be at least {size}, the bytes of the model, with algorithm/compression=power_sgd"
            require(self.bucket_bytes >= size, "algorithm.bucket_bytes", rule, self.bucket_bytes)

    def notices(self, problem: Problem, num_workers: int, epochs: float) -> list[str]:
        """Steps before PowerSGD begins."""
        whole = f"the first {WHOLE_STEPS} steps send whole gradients, as torch's PowerSGD begins after them"
        begins = [f"algorithm/compression=power_sgd with algorithm=ddp: {whole}"]
        late = num_workers > 1 and isinstance(self.compression, PowerSGD)
        return [*super().notices(problem, num_workers, epochs), *begins * late]

    def averaged(
        self, model: nn.Module, gradient: torch.Tensor, worker: Worker, problem: Problem
    ) -> Callable[[Samples], None]:
        """A backward pass; of several over parts of a batch the last one, which alone sends anything."""
        parallel = self._wrapped(model, worker)
        return lambda batch: add_gradient(problem, parallel, batch, self.accumulate, before_last=parallel.no_sync)

    def _wrapped(self, model: nn.Module, worker: Worker) -> DistributedDataParallel:
        """The model, whose backward passes average; all workers have built the same one, buffers included."""
        parallel = DistributedDataParallel(
            model, bucket_cap_mb=self.bucket_bytes / 2**20, init_sync=False, forward_sync_buffers=False
        )
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
