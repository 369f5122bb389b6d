"""What stages hand on to each other, by shape, whether or not their layers are split."""

from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch

from algorithms.pipelining.stages import counted, inputs_like, split, units
from algorithms.splitting.layers import LayerSplit
from harness.problems.layered import Layered
from harness.problems.outline import META, outlines, shapes_of


class HandedOn:
    """Shapes of what stages take and give.

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


def bytes_handed_on(problem: Layered, balance: str, holders: Sequence[int], samples: int) -> float | None:
    """What crosses from worker to worker while samples go through all stages and back: activations, then gradients.

    Args:
        holders: the worker of each stage.

    Returns:
        None where time decides where the model is cut.
    """
    if balance == "measured":
        return None
    model = shapes_of(problem)
    stages = split(model, len(holders), counted(units(model), balance, problem, samples))
    given = HandedOn(problem, [len(stage) for stage in stages])(samples)[1:-1]
    crosses = [before != after for before, after in pairwise(holders)]
    return float(sum(2 * each.nbytes for each, across in zip(given, crosses, strict=True) if across))
