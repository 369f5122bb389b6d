"""The memory of one simulated device: what its tensors take, in the order in which its host makes and drops them.

That is what a caching allocator counts, which gives out again at once what the host has dropped, because the streams
come to it in the same order. Not counted: what CUDA, its libraries and NCCL take, and what fragments waste.
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor

BLOCK_BYTES = 512  # allocations are rounded up to so many (torch's CUDACachingAllocator.cpp: kMinBlockSize)


class DeviceMemory:
    """Counts the bytes of storages from when they are seen until they are gone.

    Attributes:
        now_bytes: of those there are.
        peak_bytes: the most there were, since `begin`.
        begun_bytes: those there were at the first `begin`.
        kept_bytes: those there were at the last `step`: parameters, the optimiser's state and what else stays.
    """

    def __init__(self) -> None:
        self.now_bytes = self.peak_bytes = self.kept_bytes = self.begun_bytes = 0
        self._sizes: dict[int, int] = {}
        self._watched: dict[int, weakref.ref] = {}

    def begin(self) -> None:
        """Forget what was before."""
        self.peak_bytes = self.kept_bytes = self.now_bytes
        self.begun_bytes = self.begun_bytes or self.now_bytes

    def step(self) -> None:
        """A step begins, with what stays from one to the next."""
        self.kept_bytes = self.now_bytes

    def seen(self, made: Any) -> None:
        """An operator has returned this: a tensor, or several; those with values, and shapes alone, are the host's."""
        if isinstance(made, FakeTensor):
            if made.fake_device.type != "meta":
                self._watch(made.untyped_storage())
        elif isinstance(made, list | tuple):
            for each in made:
                self.seen(each)

    def resized(self, storage: torch.UntypedStorage) -> None:
        """A storage has another size."""
        key = storage._cdata
        if key in self._sizes:
            self._change(key, storage.nbytes())

    def _watch(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._watched:
            self._sizes[key] = 0
            self._watched[key] = weakref.ref(storage, lambda _: self._gone(key))
            self._change(key, storage.nbytes())

    def _gone(self, key: int) -> None:
        self._change(key, 0)
        del self._sizes[key], self._watched[key]

    def _change(self, key: int, nbytes: int) -> None:
        rounded = -(-nbytes // BLOCK_BYTES) * BLOCK_BYTES
        self.now_bytes += rounded - self._sizes[key]
        self._sizes[key] = rounded
        self.peak_bytes = max(self.peak_bytes, self.now_bytes)


@contextmanager
def resizes_seen(memory_of_thread: Callable[[], DeviceMemory | None]) -> Iterator[None]:
    """A block in which storages that are resized, which no operator shows, are counted anew.

    Args:
        memory_of_thread: that of the calling thread's rank, or None.
    """
    resize = torch.UntypedStorage.resize_

    def resized(storage: torch.UntypedStorage, size: int) -> None:
        resize(storage, size)
        memory = memory_of_thread()
        if memory is not None:
            memory.resized(storage)

    torch.UntypedStorage.resize_ = resized  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        torch.UntypedStorage.resize_ = resize  # type: ignore[method-assign]
