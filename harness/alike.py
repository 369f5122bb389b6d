"""Who behaves alike: the mesh that an algorithm lays over its workers."""

from dataclasses import dataclass

from harness.errors import require


@dataclass(frozen=True)
class Axis:
    """One axis of a mesh of workers; a worker's rank is its row-major number in the mesh.

    Args:
        size: workers along it, >= 1.
        alike: whether workers that differ in their place along it alone do the same: they call the same operators on
            tensors of the same shapes, and the same collectives and messages, each with those at its own place along
            the other axes. Data-parallel, sharded and tensor-parallel workers do, stages of a pipeline do not.
    """

    size: int
    alike: bool

    def __post_init__(self) -> None:
        require(self.size >= 1, "Axis.size", "must be >= 1", self.size)
