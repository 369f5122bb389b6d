"""One worker's passes over the micro-batches of a batch, by torch.distributed.pipelining.

Torch wants micro-batches of equal size. Where a batch cannot be divided into such, some get the batch's first sample
once more: it costs time, and is in no loss. Shapes are told to torch beforehand, so that no clock sees it infer them.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.pipelining.stage import PipelineStage

from algorithms.pipelining.held_stages import HeldStages
from algorithms.pipelining.schedules import Loss, PipelineSchedule
from harness.batch import Samples
from harness.problems.layered import Layered
from harness.worker import Worker


class KnownStage(PipelineStage):
    """A stage of known shapes: torch's vote on whether they are, which takes messages, is not held.

    Torch detaches outputs in place after a backward pass to inputs alone, which views do not bear: they are copied.
    """

    def forward_maybe_with_nosync(self, *args: Any, **options: Any) -> torch.Tensor:
        """The outputs, in memory of their own."""
        outputs = super().forward_maybe_with_nosync(*args, **options)
        return outputs.clone() if outputs._is_view() else outputs

    def _warmup_forward_vote(self, has_backward: bool, received_acc: torch.Tensor | None = None) -> torch.Tensor:
        return torch.ones(1, dtype=torch.int32)

    def _warmup_backward_result(self, received_result: torch.Tensor | None = None) -> torch.Tensor:
        return torch.ones(1, dtype=torch.int32)


class Passes:
    """A worker's forward and backward passes, batch by batch.

    Args:
        held: the worker's stages.
        order: of passes.
        micro_batches: of every batch.
        objective: of what the last stage gives, and targets; None for the problem's.
        group: of the workers with a stage each; None for all.
    """

    def __init__(
        self,
        problem: Layered,
        held: HeldStages,
        order: PipelineSchedule,
        micro_batches: int,
        worker: Worker,
        objective: Loss | None = None,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        self._problem, self._order, self._micro_batches, self._worker = problem, order, micro_batches, worker
        self._held, self._objective, self._group = held, objective or problem.objective, group
        self._prepared: dict[int, Any] = {}  # torch's schedules, by samples of a batch: the last one may be smaller
        self._counts: Iterator[int] = iter(())  # samples of the micro-batches whose losses are still to come
        self._samples = 0  # of the batch

    def run(self, batch: Samples) -> None:
        """Add the gradient of the mean loss over a batch to those of this worker's stages."""
        self._samples = len(batch)
        if self._samples not in self._prepared:
            with self._worker.clock.paused():
                self._prepared[self._samples] = self._prepare()
        counts = sizes(self._samples, self._micro_batches)
        self._counts = iter(counts)
        first, last = 0 in self._held.numbers, len(self._held.stages) - 1 in self._held.numbers
        inputs, targets = self._rows(batch, counts) if first or last else (None, None)
        schedule, given = self._prepared[self._samples], (inputs,) if first else ()
        schedule.step(*given, target=targets if last else None, return_outputs=False)

    def _rows(self, batch: Samples, counts: Sequence[int]) -> list[torch.Tensor]:
        """What goes into the first stage, and what comes out of the last one is compared with, by micro-batch."""
        tensors = [tensor.to(self._worker.device) for tensor in self._problem.rows_of(batch)]
        if min(counts) == counts[0]:
            return tensors
        rows = filled(counts).to(self._worker.device)
        return [tensor.index_select(0, rows) for tensor in tensors]

    def _loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """A micro-batch's part in the mean over the batch; torch asks for them in order."""
        count = next(self._counts)
        if count == 0:
            return (outputs * 0).sum()
        if count < len(outputs):
            outputs, targets = outputs[:count], targets[:count]
        return self._objective(outputs, targets) * (count / self._samples)

    def _prepare(self) -> Any:
        stages, shapes = self._held.stages, self._held.shapes(sizes(self._samples, self._micro_batches)[0])
        known = [
            KnownStage(
                stages[number],
                number,
                len(stages),
                self._worker.device,
                input_args=shapes[number],
                output_args=shapes[number + 1],
                group=self._group,
            )
            for number in self._held.numbers
        ]
        return self._order.over(known, self._micro_batches, self._loss)


class Chain:
    """Passes of a worker that has all stages: a micro-batch after the other, forward and backward.

    Torch's pipelines keep the layers that FSDP2 gathers, and their whole gradients, until the last micro-batch is
    over; here both are given up as soon as they have been used.

    Args:
        objective: of what the last stage gives, and targets.
    """

    def __init__(self, problem: Layered, stages: Sequence[nn.Module], objective: Loss, micro_batches: int) -> None:
        self._problem, self._stages = problem, stages
        self._objective, self._micro_batches = objective, micro_batches

    def run(self, batch: Samples) -> None:
        """Add the gradient of the mean loss over a batch to that of the stages."""
        device = next(self._stages[0].parameters()).device
        rows = [each.to(device).split(sizes(len(batch), self._micro_batches)) for each in self._problem.rows_of(batch)]
        for outputs, targets in zip(*rows, strict=True):
            if len(targets):
                for stage in self._stages:
                    outputs = stage(outputs)
                (self._objective(outputs, targets) * (len(targets) / len(batch))).backward()


def sizes(samples: int, micro_batches: int) -> list[int]:
    """Of the micro-batches of a batch: they differ by one sample at most.

    >>> sizes(7, 3)
    [3, 2, 2]
    """
    few, more = divmod(samples, micro_batches)
    return [few + 1] * more + [few] * (micro_batches - more)


def filled(counts: Sequence[int]) -> torch.Tensor:
    """Positions in a batch, int64, of the samples of micro-batches that are all as large as the first one.

    >>> filled([3, 2, 2]).tolist()
    [0, 1, 2, 3, 4, 0, 5, 6, 0]
    """
    parts = torch.arange(sum(counts)).split(list(counts))
    return torch.cat([torch.cat([part, part.new_zeros(counts[0] - len(part))]) for part in parts])
