"""What a run of tensors without values says of the program: how long its steps take, and what they need.

Steps are told apart on the device: one begins when the device has done all that it was given before its batch was
dealt. The first is left out, in which optimizers make their state, and stages of a pipeline vote.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hardware.simulated.account import Split
from hardware.simulated.activity import Signal
from hardware.simulated.compute import Roofline
from hardware.simulated.device import Device
from harness.errors import UserError
from harness.program import Program
from harness.shortage import Shortage

GIB = 2**30


class Steps:
    """The steps of one rank.

    Attributes:
        begins: of each, once its batch has been dealt.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self.begins: list[Signal] = []

    def begin(self) -> None:
        """A batch has been dealt."""
        if len(self.begins) < 2:
            self.device.memory.begin()
        else:
            self.device.memory.step()
        self.begins.append(self.device.mark())

    def after_the_first(self, finish_s: float) -> tuple[float, Split]:
        """When the second step begins (the first, if it is the only one), and where time went from then on."""
        begin_s = self.begins[min(1, len(self.begins) - 1)].at_s
        whole, before = (self.device.account.split(until_s) for until_s in (finish_s, begin_s))
        return begin_s, whole.since(before)


@dataclass(frozen=True)
class Predicted:
    """What was simulated.

    Args:
        steps: of every simulated rank, by rank.
        finish_s: when each of them ended, likewise.
        num_ranks: of the run.
        samples: processed in a step, over all ranks.
    """

    steps: dict[int, Steps]
    finish_s: Sequence[float]
    num_ranks: int
    samples: float

    def metrics(self, program: Program, roofline: Roofline) -> dict[str, Any]:
        """By key of docs/metrics.md."""
        problem = program.problem
        told = [steps.after_the_first(end_s) for steps, end_s in zip(self.steps.values(), self.finish_s, strict=True)]
        measured = max(1, len(next(iter(self.steps.values())).begins) - 1)
        span_s = max(self.finish_s) - max(begin_s for begin_s, _ in told)
        if span_s <= 0:
            return {}
        step_s, rank_s = span_s / measured, len(told) * span_s
        found = {
            "predicted/step_s": step_s,
            "predicted/steps": measured,
            "predicted/simulated_ranks": len(told),
            "predicted/exposed_comm_frac": sum(split.exposed_s for _, split in told) / rank_s,
            "predicted/bubble_frac": max(0.0, sum(split.idle_s for _, split in told) / rank_s),  # rounding
            "predicted/peak_memory_bytes_max": max(steps.device.memory.peak_bytes for steps in self.steps.values()),
        }
        if problem.tokens_per_sample is not None:
            tokens = problem.tokens_per_sample * self.samples
            found["predicted/tokens_per_s_per_device"] = tokens / step_s / self.num_ranks
        peak = roofline.peak(program.algorithm.computes_in(problem.dtype))
        if problem.flops_per_sample is not None and peak is not None:
            found["predicted/mfu"] = problem.flops_per_sample * self.samples / step_s / self.num_ranks / peak
        return found

    def shortage(self, program: Program, roofline: Roofline) -> UserError | None:
        """What does not fit into the device's memory."""
        rank = max(self.steps, key=lambda each: self.steps[each].device.memory.peak_bytes)
        memory, held = self.steps[rank].device.memory, roofline.memory_bytes
        if held is None or memory.peak_bytes <= held:
            return None
        missing = memory.peak_bytes - held
        needs = f"{memory.peak_bytes / GIB:.4g} GiB, of which {memory.kept_bytes / GIB:.4g} GiB stay from step to step"
        has = f"{missing / GIB:.4g} GiB more than hardware.compute.memory_bytes, {held / GIB:.4g} GiB"
        lacks = Shortage(memory.peak_bytes, memory.kept_bytes, held)
        ways = program.algorithm.frees_memory(program.problem, self.num_ranks, lacks)
        remedy = ", or ".join([*ways, "devices with more (hardware/compute)"])
        return UserError(f"out of modelled memory: rank {rank} needs {needs}, {has}: what frees some is {remedy}")
