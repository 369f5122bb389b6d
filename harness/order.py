"""The order in which a worker visits samples, of which a part at a time is in memory."""

from collections.abc import Callable
from contextlib import AbstractContextManager

import numpy as np
import torch

PART = 2**22  # samples, over all orders of a run: 16 MiB, some 50 ms to draw
HELD = 2  # parts: workers who ask a data server are not all in the same one


class Order:
    """The row at every position of an order, int32, on the worker's device.

    The first part is drawn at once, which is all of most runs; each of the others when it is needed, off the clock.

    Args:
        draw: the rows of so many positions from the beginning of an epoch on, on the CPU.
        epoch_rows: positions of an epoch.
        length: positions that there can be.
        usual: of these, how many are likely to be needed.
        part: how many to have at a time, in whole epochs, at least one.
        device: of the worker.
        paused: a block off its clock.
    """

    def __init__(
        self,
        draw: Callable[[int, int], torch.Tensor],
        epoch_rows: int,
        length: int,
        usual: int,
        part: int,
        device: torch.device,
        paused: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._draw, self._length, self._device, self._paused = draw, length, device, paused
        self._epoch_rows, self._epochs = epoch_rows, max(1, -(-min(usual, part) // epoch_rows))
        self._parts: dict[int, torch.Tensor] = {}
        self._part(0)

    @property
    def device(self) -> torch.device:
        """Where its rows are."""
        return self._device

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """The rows at positions start .. stop - 1."""
        number, begin = divmod(start, self._epochs * self._epoch_rows)
        part, end = self._parts.get(number), begin + stop - start
        if part is None or end > self._epochs * self._epoch_rows:
            with self._paused():
                part = self._joined(number, end)
        return part[begin:end]

    def _joined(self, number: int, end: int) -> torch.Tensor:
        """A part, with as much of those after it as there must be; joined by numpy, which no meter sees."""
        span = self._epochs * self._epoch_rows
        parts = [self._part(each) for each in range(number, number + max(1, -(-end // span)))]
        if len(parts) == 1:
            return parts[0]
        return torch.from_numpy(np.concatenate([part.numpy(force=True) for part in parts])).to(self._device)

    def _part(self, number: int) -> torch.Tensor:
        if number not in self._parts:
            epoch, span = number * self._epochs, self._epochs * self._epoch_rows
            while len(self._parts) >= HELD:
                self._parts.pop(min(self._parts))
            length = max(0, min(span, self._length - number * span))
            self._parts[number] = self._draw(epoch, length).to(self._device)
        return self._parts[number]
