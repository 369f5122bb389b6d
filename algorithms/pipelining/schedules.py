"""In which order the stages of a pipeline work on the micro-batches of a batch, by torch.distributed.pipelining.

    p: workers;  m: micro-batches;  v: stages per worker;  a backward pass takes twice as long as a forward pass

                   share of a step in which a worker waits, of uniform stages
    gpipe          (p - 1) / (m + p - 1)       Huang et al., NeurIPS 2019, section 2.3
    one_f_one_b    (p - 1) / (m + p - 1)       PipeDream-flush: Narayanan et al., ICML 2021, section 2.2
    interleaved    (p - 1) / (v m + p - 1)     Narayanan et al., SC 2021, section 2.2.2
    zero_bubble    (p - 1) / (3 v m + p - 1)   order of ZB-H1: Qi et al., ICLR 2024, section 2.1, as in torch
    zero_bubble_v  0                           ZB-V: Qi et al., section 6

The last two pass backward in two steps: first what the worker before waits for, the gradient of the inputs; that of the
weights when there is nothing else to do. Their shares are those of steps in which both take as long as a forward pass.
Until then torch's split backward pass (torch/distributed/pipelining/_backward.py) holds what was computed forward, for
the graph is retained, and about as much of its gradients. So ZB-H1, by which every worker holds p micro-batches at a
time, does not do here with the memory of 1F1B, as the paper has it: of these, `rank` wait for gradients of weights.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.distributed.pipelining import (
    Schedule1F1B,
    ScheduleGPipe,
    ScheduleInterleaved1F1B,
    ScheduleInterleavedZeroBubble,
    ScheduleZBVZeroBubble,
)
from torch.distributed.pipelining.stage import PipelineStage

from harness.errors import require

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
_SPLIT = (
    "algorithm/pipeline_schedule={} holds activations and their gradients until those of weights are there, as torch "
    "does it: more memory than its paper says"
)


@dataclass(frozen=True)
class PipelineSchedule(ABC):
    """An order of forward and backward passes.

    Class attributes:
        holds_more: what it holds beyond what its paper says, in one sentence; empty where nothing.
    """

    holds_more: ClassVar[str] = ""

    @property
    def stages_per_worker(self) -> int:
        """v."""
        return 1

    def held(self, rank: int, num_workers: int) -> list[int]:
        """The stages of a worker, in order."""
        return [rank + turn * num_workers for turn in range(self.stages_per_worker)]

    def holders(self, num_workers: int) -> list[int]:
        """The worker of each stage."""
        held = [(stage, rank) for rank in range(num_workers) for stage in self.held(rank, num_workers)]
        return [rank for _, rank in sorted(held)]

    def rule(self, num_workers: int) -> str:
        """What a number of micro-batches must be."""
        return "at least 1"

    def fits(self, num_workers: int, micro_batches: int) -> bool:
        """Whether it is."""
        return True

    @abstractmethod
    def bubble_frac(self, num_workers: int, micro_batches: int) -> float:
        """Share of a step in which a worker waits, of uniform stages without communication."""

    @abstractmethod
    def over(self, stages: Sequence[PipelineStage], micro_batches: int, loss: Loss) -> Any:
        """Torch's schedule of a worker's stages.

        Args:
            loss: of the outputs of the last stage and its targets, of one micro-batch; gradients are summed.
        """


@dataclass(frozen=True)
class GPipe(PipelineSchedule):
    """All forward passes, then all backward passes: every micro-batch's activations are held at once."""

    def bubble_frac(self, num_workers: int, micro_batches: int) -> float:
        """One forward and one backward pass for each worker before."""
        return (num_workers - 1) / (micro_batches + num_workers - 1)

    def over(self, stages: Sequence[PipelineStage], micro_batches: int, loss: Loss) -> ScheduleGPipe:
        """With one stage."""
        return ScheduleGPipe(stages[0], micro_batches, loss, scale_grads=False)


@dataclass(frozen=True)
class OneFOneB(PipelineSchedule):
    """A backward pass after each forward pass, once the pipeline is full: p - rank micro-batches are held at most."""

    def rule(self, num_workers: int) -> str:
        """The pipeline gets full."""
        return f"at least {num_workers}, the workers of the pipeline, with algorithm/pipeline_schedule=one_f_one_b"

    def fits(self, num_workers: int, micro_batches: int) -> bool:
        """As the rule says."""
        return micro_batches >= num_workers

    def bubble_frac(self, num_workers: int, micro_batches: int) -> float:
        """As GPipe."""
        return (num_workers - 1) / (micro_batches + num_workers - 1)

    def over(self, stages: Sequence[PipelineStage], micro_batches: int, loss: Loss) -> Schedule1F1B:
        """With one stage."""
        return Schedule1F1B(stages[0], micro_batches, loss, scale_grads=False)


@dataclass(frozen=True)
class InRounds(PipelineSchedule, ABC):
    """Workers take turns with micro-batches in rounds of p, with stages that are spread over the chain.

    Args:
        stages: of a worker, >= `least_stages`.
    """

    option: ClassVar[str]
    least_stages: ClassVar[int]

    stages: int

    def __post_init__(self) -> None:
        rule = f"must be >= {self.least_stages}"
        require(self.stages >= self.least_stages, "algorithm.pipeline_schedule.stages", rule, self.stages)

    @property
    def stages_per_worker(self) -> int:
        """v."""
        return self.stages

    def rule(self, num_workers: int) -> str:
        """Rounds are whole."""
        workers = f"{num_workers}, the workers of the pipeline"
        return f"a multiple of {workers}, with algorithm/pipeline_schedule={self.option}"

    def fits(self, num_workers: int, micro_batches: int) -> bool:
        """As the rule says."""
        return micro_batches % num_workers == 0


@dataclass(frozen=True)
class Interleaved(InRounds):
    """1F1B in which every worker has several stages: shorter waits."""

    option: ClassVar[str] = "interleaved"
    least_stages: ClassVar[int] = 2

    def bubble_frac(self, num_workers: int, micro_batches: int) -> float:
        """Passes of a v-th of a worker's layers."""
        return (num_workers - 1) / (self.stages * micro_batches + num_workers - 1)

    def over(self, stages: Sequence[PipelineStage], micro_batches: int, loss: Loss) -> ScheduleInterleaved1F1B:
        """With several stages."""
        return ScheduleInterleaved1F1B([*stages], micro_batches, loss, scale_grads=False)


@dataclass(frozen=True)
class ZeroBubble(InRounds):
    """1F1B that fills waits with gradients of weights; with several stages of a worker, interleaved."""

    option: ClassVar[str] = "zero_bubble"
    least_stages: ClassVar[int] = 1
    holds_more: ClassVar[str] = _SPLIT.format("zero_bubble")

    def bubble_frac(self, num_workers: int, micro_batches: int) -> float:
        """A third of that of 1F1B's passes: only the gradients of inputs are waited for."""
        return (num_workers - 1) / (3 * self.stages * micro_batches + num_workers - 1)

    def over(self, stages: Sequence[PipelineStage], micro_batches: int, loss: Loss) -> ScheduleInterleavedZeroBubble:
        """With one stage or several."""
        return ScheduleInterleavedZeroBubble([*stages], micro_batches, loss, scale_grads=False)


@dataclass(frozen=True)
class ZeroBubbleV(PipelineSchedule):
    """Zero bubble with two stages of a worker, which lie in a V: the first worker has the first stage and the last."""

    holds_more: ClassVar[str] = _SPLIT.format("zero_bubble_v")

    @property
    def stages_per_worker(self) -> int:
        """Down, and up again."""
        return 2

    def held(self, rank: int, num_workers: int) -> list[int]:
        """One on each leg."""
        return [rank, 2 * num_workers - 1 - rank]

    def rule(self, num_workers: int) -> str:
        """The V gets full."""
        fewest = f"{2 * num_workers - 1}, twice the {num_workers} workers of the pipeline less 1"
        return f"at least {fewest}, with algorithm/pipeline_schedule=zero_bubble_v"

    def fits(self, num_workers: int, micro_batches: int) -> bool:
        """As the rule says."""
        return micro_batches >= 2 * num_workers - 1

    def bubble_frac(self, num_workers: int, micro_batches: int) -> float:
        """None, once the pipeline is full: a worker goes on to the next step as soon as it is done with this one."""
        return 0.0

    def over(self, stages: Sequence[PipelineStage], micro_batches: int, loss: Loss) -> ScheduleZBVZeroBubble:
        """With two stages."""
        return ScheduleZBVZeroBubble([*stages], micro_batches, loss, scale_grads=False)
