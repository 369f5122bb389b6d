"""Send an object with large tensors to many processes at once.

It is pickled once; the bytes of its tensors and arrays go out of band (PEP 574) into one `Segment`, which every
receiver maps copy-on-write: P workers share one copy of the data, and none can spoil it for the others.
"""

import io
import pickle
from typing import Any

import numpy as np
import torch

from hardware.real.segment import Segment


class Parcel:
    """One object, packed for any number of worker processes.

    Args:
        content: anything that can be pickled.
    """

    def __init__(self, content: object) -> None:
        self._data = Segment()
        self._spans: list[tuple[int, int]] = []
        stream = io.BytesIO()
        _Packer(stream, protocol=5, buffer_callback=self._put).dump(content)
        self._pickle = stream.getvalue()

    def open(self) -> Any:
        """Unpack, in any process."""
        if not self._spans:
            return pickle.loads(self._pickle)
        view = memoryview(self._data.map(shared=False))
        return pickle.loads(self._pickle, buffers=[view[offset : offset + length] for offset, length in self._spans])

    def close(self) -> None:
        """Let go; what was opened stays valid."""
        self._data.close()

    def _put(self, buffer: pickle.PickleBuffer) -> bool:
        raw = buffer.raw()
        if raw.nbytes == 0:
            return True  # an empty buffer cannot be mapped: it stays in the pickle
        self._spans.append((self._data.append(raw), raw.nbytes))
        return False


class _Packer(pickle.Pickler):
    """Pickles plain CPU tensors as arrays of bytes, which go out of band."""

    def reducer_override(self, content: object) -> Any:
        if type(content) is not torch.Tensor or content.device.type != "cpu" or content.layout != torch.strided:
            return NotImplemented
        if content.requires_grad or content.numel() == 0 or content.is_conj() or content.is_neg():
            return NotImplemented
        raw = content.contiguous().view(-1).view(torch.uint8).numpy()
        return _rebuild, (raw, content.dtype, tuple(content.shape))


def _rebuild(raw: np.ndarray, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.from_numpy(raw).view(dtype).view(shape)
