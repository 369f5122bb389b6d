"""What workers that split layers send each other, in bytes.

Of an activation of n bytes that T workers exchange, all of them together hand in

    T n       to an all-reduce: where a row leaves, and in the backward pass where a column enters
    n         to an all-gather, and T n to a reduce-scatter: with sequence parallelism both, one in each pass

for every sample. The first layer's inputs have no gradient. Where positions are cut or joined, and features joined in
the end, there is one all-gather in one of the passes; where the loss is computed in parts instead, three numbers of
each position are reduced. Gradients of whole weights are all-reduced once a batch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import Replicate

from algorithms.splitting.mesh import Shape
from algorithms.splitting.plan import COLUMN, ROW, by_position, ends_open, placement, seen_in_part
from harness.problems.layered import Layered
from harness.problems.outline import META, shapes_of

_NUMBERS = 3  # of each position: the largest score, the sum of exponentials and the target's


@dataclass(frozen=True)
class _Pass:
    """What went into a module and came out of it, for one sample."""

    name: str
    given: torch.Tensor
    output: torch.Tensor

    @property
    def back_bytes(self) -> int:
        """Of the gradient of what went in."""
        return self.given.nbytes * self.given.requires_grad


def bytes_of_batch(problem: Layered, num_workers: int, samples: int, sequence_parallel: bool) -> float:
    """Handed in by all workers that split a model, for one batch of it."""
    if num_workers == 1:
        return 0.0
    model, plan = shapes_of(problem), problem.tensor_plan()
    inside = by_position(plan) if sequence_parallel else set()
    passes = _passes(model, problem)
    columns = {id(each.given): each for each in passes if plan.get(each.name) == COLUMN}.values()
    rows = [each.output.nbytes for each in passes if plan.get(each.name) == ROW]
    summed = sum(rows) + sum(each.back_bytes for each in columns)
    gathered = sum(rows) + sum(each.given.nbytes for each in columns) if sequence_parallel else 0
    weights = sum(model.get_parameter(name).nbytes for name in seen_in_part(model, plan, inside))
    edges = _edges(model, plan, passes, inside, in_parts := ends_open(model, plan) and problem.has_objective_of_part)
    if in_parts:
        summed += (
            _NUMBERS * passes[-1].output[..., 0].to(torch.promote_types(passes[-1].output.dtype, torch.float32)).nbytes
        )
    return samples * (num_workers * summed + gathered + edges) + num_workers * weights


def bytes_of_gradients(problem: Layered, shape: Shape) -> float:
    """Handed in to the average over batches: every worker's part of the model, where there are several."""
    if shape.data == 1:
        return 0.0
    model, plan = shapes_of(problem), problem.tensor_plan()
    copies = {name: isinstance(placement(model, plan, name), Replicate) for name, _ in model.named_parameters()}
    sizes = {
        name: parameter.nbytes * (shape.tensor if copies[name] else 1) for name, parameter in model.named_parameters()
    }
    return shape.data * float(sum(sizes.values()))


def _edges(model: nn.Module, plan: Mapping[str, str], passes: list[_Pass], inside: set[str], in_parts: bool) -> int:
    """Of one sample, where positions are cut and joined, and features joined."""
    total, before = 0, False
    for each in passes:
        if "." not in each.name:
            if before != (each.name in inside):
                total += each.given.nbytes if before else each.back_bytes
            before, last = each.name in inside, each
    return total + (last.output.nbytes if (before or ends_open(model, plan)) and not in_parts else 0)


def _passes(model: nn.Module, problem: Layered) -> list[_Pass]:
    """Of every module of the model, in the order in which they end."""
    found: list[_Pass] = []

    def seen(name: str) -> Any:
        return lambda _, given, output: found.append(_Pass(name, given[0], output))

    for name, module in model.named_modules():
        if name:
            module.register_forward_hook(seen(name))
    shape, dtype = problem.layout(torch.zeros(1, dtype=torch.int32))[0]
    model(torch.zeros(shape, dtype=dtype, device=META))
    return found
