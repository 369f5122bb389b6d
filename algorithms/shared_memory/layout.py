"""Where in memory the coordinates of a shared model lie: what shares a cache line is contended together.

    as_given   in the problem's order
    scattered  in a random order, so that the hottest coordinates are no neighbours
    by_heat    the hottest first: they share the fewest cache lines, for which all workers contend
    padded     each on a cache line of its own: no line is contended but for its coordinate, and the model grows

Kernels run on the model as it lies, by renumbered rows; whoever looks at the model sees it in the problem's order.
Models of rounded numbers (`algorithm.precision`) and SGLD draw other random bits, which depend on where a coordinate
lies.
"""

from dataclasses import dataclass
from functools import lru_cache
from math import gcd
from threading import Lock

import numpy as np
import torch

from harness.errors import require
from harness.kernels.base import Kernel
from harness.kernels.native import LINE_BYTES

LAYOUTS = ("as_given", "scattered", "by_heat", "padded")
_building = Lock()


@dataclass(frozen=True, eq=False)
class Layout:
    """A kernel for a model that is laid out.

    Args:
        kernel: updates the model as it lies.
        places: of each parameter in it, int64, shape (parameters,); None where all are in their own.
    """

    kernel: Kernel
    places: torch.Tensor | None = None

    def lay(self, weights: torch.Tensor) -> torch.Tensor:
        """The model as it lies; what lies between parameters is 0."""
        if self.places is None:
            return weights
        laid = weights.new_zeros(self.kernel.num_coordinates * self.kernel.block)
        laid[self.places] = weights
        return laid

    def restore(self, laid: torch.Tensor) -> torch.Tensor:
        """The model in the problem's order, shape (parameters,)."""
        return laid if self.places is None else laid[self.places]


def check_layout(layout: str) -> None:
    """Refuse what is none of `LAYOUTS`.

    Raises:
        UserError: naming algorithm.layout.
    """
    require(layout in LAYOUTS, "algorithm.layout", f"must be one of {', '.join(LAYOUTS)}", layout)


def laid_out(kernel: Kernel, layout: str, number_bytes: int, seed: int) -> Layout:
    """The layout of a kernel's model; workers that ask for the same get the same.

    Args:
        kernel: one that can be renumbered (`Kernel.row_data`).
        number_bytes: of one parameter, as it is stored.
        seed: of the random order.
    """
    with _building:
        return Layout(kernel) if layout == "as_given" else _built(kernel, layout, number_bytes, seed)


def parameters_of(kernel: Kernel, coordinates: torch.Tensor) -> torch.Tensor:
    """The parameters of coordinates, int64, shape (coordinates * block,)."""
    return (coordinates.unsqueeze(1) * kernel.block + torch.arange(kernel.block)).view(-1)


def hottest(kernel: Kernel, count: int) -> torch.Tensor:
    """The coordinates that most samples touch, int64, shape (min(count, coordinates),)."""
    counts = torch.bincount(kernel.indices, minlength=kernel.num_coordinates)
    return counts.argsort(descending=True, stable=True)[:count]


@lru_cache(maxsize=1)
def _built(kernel: Kernel, layout: str, number_bytes: int, seed: int) -> Layout:
    coordinates, block = kernel.num_coordinates, kernel.block
    if layout == "padded":
        stride = LINE_BYTES // gcd(LINE_BYTES, block * number_bytes)  # coordinates between two that begin a line
        places, size = np.arange(coordinates) * stride, coordinates * stride
        rule = "must not be padded where that takes 2^31 coordinates or more"
        require(size < 2**31, "algorithm.layout", rule, layout)
    elif layout == "by_heat":
        places, size = hottest(kernel, coordinates).argsort().numpy(), coordinates
    else:
        places, size = np.random.default_rng(seed).permutation(coordinates), coordinates
    moved = torch.from_numpy(places)  # (coordinates,)
    return Layout(kernel.renumbered(moved, size), parameters_of(kernel, moved))
