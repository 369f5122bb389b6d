"""The mesh: workers in a box whose axes are ways to split the work, as Megatron-LM numbers them.

    rank = (pipeline * D + data) * T + tensor        of T workers that split layers, D that split batches

Neighbours exchange most (Narayanan et al., SC 2021, section 3): those who split a layer exchange activations in the
midst of it, several times a layer, and shall sit in one machine; those who split a batch exchange gradients once a
step; stages of a pipeline exchange activations once a micro-batch, with one neighbour each, and may sit far apart.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch._subclasses import schema_check_mode  # noqa: F401 - what disables modes would import it late
from torch.distributed.device_mesh import DeviceMesh
from torch.utils._python_dispatch import _disable_current_modes

from harness.errors import UserError, require


class Shape(NamedTuple):
    """Workers along each axis, those whose ranks differ least first."""

    tensor: int
    data: int
    pipeline: int

    def seat(self, rank: int) -> "Shape":
        """Where a worker is along each axis, from 0.

        >>> Shape(tensor=2, data=3, pipeline=2).seat(7)
        Shape(tensor=1, data=0, pipeline=1)
        """
        return Shape(rank % self.tensor, rank // self.tensor % self.data, rank // (self.tensor * self.data))

    def along(self, axis: str, rank: int) -> list[int]:
        """The workers that differ from one at most in their seat along an axis, by that seat.

        >>> Shape(tensor=2, data=3, pipeline=2).along("data", 7)
        [7, 9, 11]
        """
        stride = prod(self[: self._fields.index(axis)])
        first = rank - getattr(self.seat(rank), axis) * stride
        return [first + stride * seat for seat in range(getattr(self, axis))]

    def group(self, axis: str, rank: int) -> dist.ProcessGroup | None:
        """Theirs, made by them alone; None for a worker by itself."""
        ranks = self.along(axis, rank)
        return dist.new_group(ranks, use_local_synchronization=True) if len(ranks) > 1 else None


@dataclass(frozen=True)
class Mesh:
    """Workers along each axis, >= 1; of one of them null: as many as there are workers for.

    Args:
        data: who take batches of their own.
        tensor: who split layers.
        pipeline: stages of layers.
    """

    data: int | None
    tensor: int | None
    pipeline: int | None

    def __post_init__(self) -> None:
        sizes = vars(self)
        for name, size in sizes.items():
            require(size is None or size >= 1, f"algorithm.mesh.{name}", "must be >= 1, or null for the rest", size)
        rule = "must leave at most one of data, tensor and pipeline null"
        if list(sizes.values()).count(None) > 1:
            raise UserError(f"algorithm.mesh {rule}, got {_shown(sizes)}")

    def shape(self, num_workers: int) -> Shape:
        """Of so many workers; one is alone, whatever the mesh is.

        Raises:
            UserError: if they do not fill it.
        """
        if num_workers == 1:
            return Shape(1, 1, 1)
        given = vars(self)
        product = prod(size for size in given.values() if size is not None)
        rest, over = divmod(num_workers, product)
        open_ended = None in given.values()
        if over or not (open_ended or num_workers == product):
            rule = f"must multiply to {'a divisor of ' * open_ended}hardware.num_workers={num_workers}"
            fewest = max(1, rest) * product if open_ended else product
            raise UserError(f"algorithm.mesh {rule}, got {_shown(given)}: set hardware.num_workers={fewest}")
        return Shape(**{name: rest if size is None else size for name, size in given.items()})

    def longer(self, shape: Shape, axis: str, size: int) -> str:
        """The settings of a mesh of which one axis is longer than of a shape of this one, and none shorter."""
        longer = shape._replace(**{axis: size})
        mesh = {f"algorithm.mesh.{name}={getattr(longer, name)}" for name in ("tensor", "pipeline")}
        given = {f"algorithm.mesh.{name}={value}" for name, value in vars(self).items()}
        data = [] if self.data is None else [f"algorithm.mesh.data={longer.data}"]
        return " ".join([f"hardware.num_workers={prod(longer)}", *sorted({*mesh, *data} - given)])


def _shown(sizes: Mapping[str, int | None]) -> str:
    """As they are typed."""
    return "{" + ", ".join(f"{name}: {'null' if size is None else size}" for name, size in sizes.items()) + "}"


def mesh_of(group: dist.ProcessGroup, device: torch.device) -> DeviceMesh:
    """Torch's mesh of the workers of a group."""
    with _disable_current_modes():  # it reads its ranks, which tensors without values have not
        return DeviceMesh.from_group(group, device.type)
