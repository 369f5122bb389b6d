"""Stages whose layers are split: what one hands on to the next, and where its parameters are in the whole model."""

from collections.abc import Sequence

import torch
from torch import nn

from algorithms.balance import shadow
from algorithms.layer_split import LayerSplit
from algorithms.stages import inputs_like, passed
from harness.problems.layered import Layered


class HandedOn:
    """Shapes of what a worker's stages take and give.

    Args:
        model: that is not split yet.
        stages: all of it.
        layers: how it will be split.
    """

    def __init__(
        self, problem: Layered, model: nn.Sequential, stages: Sequence[nn.Sequential], layers: LayerSplit
    ) -> None:
        self._problem, self._layers = problem, layers
        self._model, self._stages = shadow(model), [shadow(stage) for stage in stages]

    def __call__(self, samples: int) -> list[torch.Tensor]:
        """On the device "meta": what each stage takes of so many samples, and what the last one gives."""
        shapes = passed(self._stages, inputs_like(self._problem, samples, torch.device("meta")))
        last = -1
        for number, stage in enumerate(self._stages, start=1):
            last += len(stage)
            shapes[number] = self._layers.handed_on(self._model, last, shapes[number]).detach().requires_grad_()
        return shapes


def of_stages(parts: Sequence[torch.Tensor], model: nn.Module, stages: Sequence[nn.Module]) -> torch.Tensor:
    """Of all parameters of some stages of a model.

    Args:
        parts: of each parameter of the model, int64 positions.
    """
    of_each = {id(parameter): part for parameter, part in zip(model.parameters(), parts, strict=True)}
    return torch.cat([of_each[id(parameter)] for stage in stages for parameter in stage.parameters()])
