"""When a worker waited for others outside of `torch.distributed`: at a meeting, or for a lock."""

import time
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from threading import get_ident

import numpy as np


class Waits:
    """The waits of one worker. Created in the thread that trains: waits of its background activities hold up nobody."""

    def __init__(self) -> None:
        self._times = array("d")
        self._thread = get_ident()

    @contextmanager
    def noted(self) -> Iterator[None]:
        """A block that does nothing but wait."""
        begin_s = time.perf_counter()
        yield
        if get_ident() == self._thread:
            self._times.extend((begin_s, time.perf_counter()))

    def table(self) -> np.ndarray:
        """Host times in seconds of begin and end, shape (waits, 2)."""
        return np.array(self._times).reshape(-1, 2)
