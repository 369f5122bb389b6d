"""A model in outline: what its layers give, by shape, and cost, without computing it.

It is found once for all workers of a process, and outside of the modes that they compute in: nobody's clock, memory or
fake tensors have to do with it.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch._subclasses import schema_check_mode  # noqa: F401 - what disables modes would import it late
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils.flop_counter import FlopCounterMode

if TYPE_CHECKING:
    from harness.problems.layered import Layered

META = torch.device("meta")


@dataclass(frozen=True)
class Outline:
    """A layer that some samples go through.

    Args:
        shape: of what it gives.
        dtype: likewise.
        flops: of its forward pass, by torch's flop counter.
    """

    shape: torch.Size
    dtype: torch.dtype
    flops: float


def shapes_of(problem: "Layered") -> nn.Sequential:
    """The model on the device "meta"."""
    with _disable_current_modes():
        return problem.build_model(META, 0)


def outlines(problem: "Layered", samples: int) -> list[Outline]:
    """Of all layers of the model."""
    if samples not in problem.outlines:
        problem.outlines[samples] = _outlines(problem, samples)
    return problem.outlines[samples]


def _outlines(problem: "Layered", samples: int) -> list[Outline]:
    shape, dtype = problem.layout(torch.zeros(samples, dtype=torch.int32))[0]
    found = []
    with _disable_current_modes():
        passing = torch.zeros(shape, dtype=dtype, device=META)
        for layer in problem.build_model(META, 0):
            with FlopCounterMode(display=False) as counter:
                passing = layer(passing).detach().requires_grad_()
            found.append(Outline(passing.shape, passing.dtype, float(counter.get_total_flops())))
    return found
