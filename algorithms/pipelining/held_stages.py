"""What a worker has of a model that is cut into stages: its own ones, and where they are in the whole model."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from algorithms.pipelining.handed_on import HandedOn
from algorithms.pipelining.stages import costs_of, indices, split
from algorithms.splitting.layers import LayerSplit
from harness.problems.layered import Layered
from harness.worker import Worker


@dataclass(frozen=True)
class HeldStages:
    """The stages of a model, of which a worker holds some.

    Args:
        stages: all of them; those that are not held are empty.
        numbers: of those held.
        shapes: of what stages take and give.
        part: indices of the parameters held among the flat ones of the whole model, int64; None without values.
    """

    stages: list[nn.Sequential]
    numbers: Sequence[int]
    shapes: HandedOn
    part: torch.Tensor | None

    @property
    def own(self) -> nn.ModuleList:
        """Those held."""
        return nn.ModuleList(self.stages[number] for number in self.numbers)


def hold_stages(
    problem: Layered,
    worker: Worker,
    balance: str,
    samples: int,
    num_stages: int,
    numbers: Sequence[int],
    layers: LayerSplit | None = None,
) -> HeldStages:
    """Build the model, cut it, and keep a worker's stages of it alone.

    Args:
        balance: one of `BALANCES`.
        samples: that go through it at once.
        numbers: of the stages to keep.
        layers: how they are split; None where each is whole.
    """
    model = problem.build_model(worker.device, worker.seed)
    costs = costs_of(model, balance, problem, samples, worker)
    with worker.clock.paused():
        stages, part = split(model, num_stages, costs), None
        shapes = HandedOn(problem, [len(stage) for stage in stages], layers)
        if worker.sees_values:
            of_each = indices(model) if layers is None else layers.indices(model)
            part = of_stages(of_each, model, [stages[number] for number in numbers])
        let_go(model, stages, numbers)
        if layers is not None:
            layers.split_(model)
    return HeldStages(stages, numbers, shapes, part)


def of_stages(parts: Sequence[torch.Tensor], model: nn.Module, stages: Sequence[nn.Module]) -> torch.Tensor:
    """Of all parameters of some stages of a model.

    Args:
        parts: of each parameter of the model, int64 indices.
    """
    of_each = {id(parameter): part for parameter, part in zip(model.parameters(), parts, strict=True)}
    return torch.cat([of_each[id(parameter)].flatten() for stage in stages for parameter in stage.parameters()])


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
