"""Stages whose layers are split: what one hands on to the next, and where its parameters are in the whole model."""

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import nn

from algorithms.layer_split import LayerSplit
from algorithms.micro_batches import sizes
from algorithms.outline import META, outlines
from algorithms.pipeline_schedules import Loss
from algorithms.stages import inputs_like
from harness.batch import Samples
from harness.problems.layered import Layered


class HandedOn:
    """Shapes of what a worker's stages take and give.

    Args:
        sizes: layers of each stage.
        layers: how they are split; None where each is whole.
    """

    def __init__(self, problem: Layered, sizes: Sequence[int], layers: LayerSplit | None = None) -> None:
        self._problem, self._layers = problem, layers
        self._ends = list(accumulate(sizes))

    def __call__(self, samples: int) -> list[torch.Tensor]:
        """On the device "meta": what each stage takes of so many samples, and what the last one gives."""
        layers, tensors = outlines(self._problem, samples), [inputs_like(self._problem, samples, META)]
        for end in self._ends:
            given = torch.empty(layers[end - 1].shape, dtype=layers[end - 1].dtype, device=META)
            own = given if self._layers is None else self._layers.handed_on(end - 1, given)
            tensors.append(own.requires_grad_())
        return tensors


def of_stages(parts: Sequence[torch.Tensor], model: nn.Module, stages: Sequence[nn.Module]) -> torch.Tensor:
    """Of all parameters of some stages of a model.

    Args:
        parts: of each parameter of the model, int64 positions.
    """
    of_each = {id(parameter): part for parameter, part in zip(model.parameters(), parts, strict=True)}
    return torch.cat([of_each[id(parameter)] for stage in stages for parameter in stage.parameters()])


def let_go(model: nn.Sequential, stages: list[nn.Sequential], held: Sequence[int]) -> None:
    """Forget the layers of stages that are not held, so that they take no memory; all others keep their names."""
    place = 0
    for number, stage in enumerate(stages):
        for layer in range(place, place + len(stage)):
            if number not in held:
                model[layer] = nn.Identity()
        place += len(stage)
        if number not in held:
            stages[number] = nn.Sequential()


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
