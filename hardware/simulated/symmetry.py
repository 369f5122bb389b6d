"""Ranks that behave alike, of which one is simulated and stands for all.

Ranks lie on a mesh. Moving every rank by the same steps along its axes of alike ranks, around their ends, is a
*translation*: what a rank does with a group, the rank it is moved to does with the group that this is moved to. Ranks
that can be moved to each other are a *class*; the first of them is simulated. A group and those it can be moved to
are *siblings*, and do the same at the same time.
"""

from collections.abc import Sequence
from math import prod

import numpy as np

from harness.alike import Axis
from harness.errors import UserError

HINT = "set hardware.collapse=none"


class Symmetry:
    """The translations of a mesh.

    Args:
        axes: of the mesh, row-major.
        steps: along each axis of alike ranks the least step, a divisor of its size; None for 1.

    Attributes:
        num_ranks: of the whole mesh.
        size: number of translations, and of ranks of each class.
        classes: of each rank, the first rank of its class, shape (ranks,).
        elements: of each rank, the number of the translation that moves the first of its class there, shape (ranks,).
    """

    def __init__(self, axes: Sequence[Axis], steps: Sequence[int] | None = None) -> None:
        self.axes = tuple(axes)
        self._shape = tuple(axis.size for axis in axes)
        self._steps = np.array(
            [step if axis.alike else axis.size for axis, step in zip(axes, steps or [1] * len(axes), strict=True)]
        )
        self._moves = tuple(int(n) for n in np.array(self._shape) // self._steps)  # along each axis
        self.num_ranks, self.size = prod(self._shape), prod(self._moves)
        places = np.stack(np.unravel_index(np.arange(self.num_ranks), self._shape), 1)  # (ranks, axes)
        moved, first = np.divmod(places, self._steps)
        self.elements, self.classes = self._number(moved), self._rank(first)
        self._places = places

    def translated(self, ranks: np.ndarray, elements: np.ndarray) -> np.ndarray:
        """Ranks moved by the translations of these numbers; shapes are broadcast."""
        return self._rank((self._places[ranks] + self._vector(elements)) % self._shape)

    def moved_back(self, ranks: np.ndarray, elements: np.ndarray) -> np.ndarray:
        """Ranks moved by the inverse translations."""
        return self._rank((self._places[ranks] - self._vector(elements)) % self._shape)

    def siblings(self, group: np.ndarray) -> np.ndarray:
        """A group, first, and those it can be moved to, each in ascending order, shape (groups, ranks).

        Raises:
            UserError: if they are not the same for all ranks of the group, or overlap.
        """
        classes, elements = self.classes[group], self.elements[group]
        own = np.sort(elements[classes == classes[0]])
        for each in np.unique(classes):
            if not np.array_equal(np.sort(elements[classes == each]), own):
                raise UserError(f"collapse: ranks {_some(group)} meet, which are not alike ranks of each kind: {HINT}")
        if len(own) == self.size:
            return np.sort(group)[None]
        everywhere = np.arange(self.size)
        first = self._sum(everywhere[:, None], own[None, :]).min(1)
        distinct, counts = np.unique(first, return_counts=True)
        if own[0] != 0 or (counts != len(own)).any():
            raise UserError(f"collapse: ranks {_some(group)} meet, and so do ranks of theirs with others: {HINT}")
        return np.sort(self.translated(group[None, :], distinct[:, None]), axis=1)

    def _sum(self, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        moves = np.array(self._moves)
        digits = [np.stack(np.unravel_index(each, self._moves), -1) for each in (one, other)]
        return self._number((digits[0] + digits[1]) % moves)

    def _vector(self, elements: np.ndarray) -> np.ndarray:
        return np.stack(np.unravel_index(elements, self._moves), -1) * self._steps

    def _number(self, moved: np.ndarray) -> np.ndarray:
        return np.ravel_multi_index(tuple(np.moveaxis(moved, -1, 0)), self._moves)

    def _rank(self, places: np.ndarray) -> np.ndarray:
        return np.ravel_multi_index(tuple(np.moveaxis(places, -1, 0)), self._shape)


def keeping(symmetry: Symmetry, hosts: np.ndarray) -> Symmetry:
    """The translations along each axis that move hosts to hosts, all ranks of each together."""
    ranks, steps = np.arange(symmetry.num_ranks), []
    for position, axis in enumerate(symmetry.axes):
        strides = prod(each.size for each in symmetry.axes[position + 1 :])
        place = ranks // strides % axis.size
        divisors = [step for step in range(1, axis.size + 1) if axis.size % step == 0] if axis.alike else [axis.size]
        for step in divisors:
            moved = hosts[ranks + ((place + step) % axis.size - place) * strides]
            pairs = np.unique(np.stack([hosts, moved], 1), axis=0)
            if len(pairs) == len(np.unique(hosts)) == len(np.unique(pairs[:, 1])):
                steps.append(step)
                break
    return Symmetry(symmetry.axes, steps)


def _some(group: np.ndarray) -> str:
    named = ", ".join(map(str, group[:4].tolist()))
    return f"[{named}{', ...' if len(group) > 4 else ''}]"
