"""Torch's device-agnostic stream calls on the CPU, `torch.cpu.Stream` and its kin, with a simulated meaning.

Torch gives a CPU streams that do nothing, so that programs such as FSDP2's `fully_shard` are written once. Here the
calls of a thread whose rank has a device with streams go to that device; all others do what they did.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from hardware.simulated.streams import Event, StreamDevice

_MEANINGS: dict[str, Callable[..., Any]] = {
    "Stream": lambda device, *_, **__: device.new_stream(),
    "Event": lambda device, *_, **__: Event(device),
    "StreamContext": StreamDevice.stream,
    "current_stream": lambda device, *_: device.current_stream(),
    "stream": StreamDevice.stream,
    "synchronize": lambda device, *_: device.synchronize(),
}
_READS = ("tolist", "numpy")  # of a tensor, which no operator shows


@contextmanager
def simulated(device_of_thread: Callable[[], object]) -> Iterator[None]:
    """A block in which the calls mean what the calling thread's device makes of them."""

    def call(name: str, *arguments: Any, **options: Any) -> Any:
        device = device_of_thread()
        if isinstance(device, StreamDevice):
            return _MEANINGS[name](device, *arguments, **options)
        return kept[name](*arguments, **options)

    def reading(read: Callable[..., Any]) -> Callable[..., Any]:
        def method(tensor: torch.Tensor, *arguments: Any, **options: Any) -> Any:
            device = device_of_thread()
            if isinstance(device, StreamDevice):
                device.read()
            return read(tensor, *arguments, **options)

        return method

    kept = {name: getattr(torch.cpu, name) for name in _MEANINGS}
    try:
        for name in _MEANINGS:
            setattr(torch.cpu, name, partial(call, name))
        for name in _READS:
            setattr(torch.Tensor, name, reading(getattr(torch.Tensor, name)))
        yield
    finally:
        for name, before in kept.items():
            setattr(torch.cpu, name, before)
        for name in _READS:
            delattr(torch.Tensor, name)  # what it inherits is there again
