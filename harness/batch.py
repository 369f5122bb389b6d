"""A batch: numbers of samples, whose rows the worker has, or the rows themselves, which came by message."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from harness.problems.base import Problem


@dataclass(frozen=True)
class Batch:
    """Samples whose rows came by message. Of what a tensor of numbers can do, it does what algorithms ask for.

    Args:
        rows: as `problem.gather` gives them.
        size: how many samples.
    """

    problem: "Problem"
    rows: tuple[torch.Tensor, ...]
    size: int

    def __len__(self) -> int:
        return self.size

    def tensor_split(self, parts: int) -> list["Batch"]:
        """Cut it as torch would a tensor of numbers: sizes differ by one at most, larger parts come first."""
        batches, start = [], 0
        for part in range(parts):
            stop = start + self.size // parts + (part < self.size % parts)
            batches.append(Batch(self.problem, self.problem.part(self.rows, start, stop), stop - start))
            start = stop
        return batches


Samples = torch.Tensor | Batch  # int32 or int64 numbers, shape (batch,), or rows
Layout = list[tuple[tuple[int, ...], torch.dtype]]  # shapes and dtypes of rows


def packed(rows: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Rows as one message on the CPU, uint8, shape (bytes,): largest numbers come first, so that all are aligned."""
    order = _order([row.dtype for row in rows])
    return torch.cat([rows[place].contiguous().view(-1).view(torch.uint8) for place in order]).cpu()


def message_bytes(layout: Layout) -> int:
    """How long a message of such rows is."""
    return sum(_nbytes(shape, dtype) for shape, dtype in layout)


def unpacked(message: torch.Tensor, layout: Layout) -> tuple[torch.Tensor, ...]:
    """The rows of a message, as views into it."""
    rows: dict[int, torch.Tensor] = {}
    begin = 0
    for place in _order([dtype for _, dtype in layout]):
        shape, dtype = layout[place]
        end = begin + _nbytes(shape, dtype)
        rows[place] = message[begin:end].view(dtype).view(shape)
        begin = end
    return tuple(rows[place] for place in range(len(layout)))


def _order(dtypes: list[torch.dtype]) -> list[int]:
    return sorted(range(len(dtypes)), key=lambda place: -dtypes[place].itemsize)


def _nbytes(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    return torch.Size(shape).numel() * dtype.itemsize
