"""Torch's device-agnostic stream calls, `torch.cpu.Stream` and its kin, with a simulated meaning.

Torch gives a CPU streams that do nothing, so that programs such as FSDP2's `fully_shard` are written once. Here the
calls of a thread whose rank has a device with streams go to that device; all others do what they did. Of
`torch.accelerator`, which knows no CPU, `synchronize` and `current_stream` have that meaning too, and `torch.Event`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NoReturn

import torch

from hardware.simulated import optimizers
from hardware.simulated.replaced import replaced
from hardware.simulated.streams import Event, Stream, StreamDevice
from harness.errors import UserError

_CPU: dict[str, Callable[..., Any]] = {
    "Stream": lambda device, *_, **__: device.new_stream(),
    "Event": lambda device, *_, **__: Event(device),
    "StreamContext": StreamDevice.stream,
    "current_stream": lambda device, *_: device.current_stream(),
    "stream": StreamDevice.stream,
    "synchronize": lambda device, *_: device.synchronize(),
}
_ACCELERATOR = {name: _CPU[name] for name in ("current_stream", "synchronize")}
_CLASSES = {"Stream": Stream, "Event": Event}
_READS = ("tolist", "numpy")  # of a tensor, which no operator shows


def _no_stream(*arguments: Any, **options: Any) -> NoReturn:
    raise UserError("torch.Stream has no simulated meaning: use torch.cpu.Stream() and `with torch.cpu.stream(it):`")


@contextmanager
def simulated(device_of_thread: Callable[[], object]) -> Iterator[None]:
    """A block in which the calls mean what the calling thread's device makes of them."""

    def has_streams() -> bool:
        return isinstance(device_of_thread(), StreamDevice)

    def bound(meanings: dict[str, Callable[..., Any]]) -> dict[str, Callable[..., Any]]:
        return {name: partial(on_device, meaning) for name, meaning in meanings.items()}

    def on_device(meaning: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        return meaning(device_of_thread(), *arguments, **options)

    def reading(read: Callable[..., Any]) -> Callable[..., Any]:
        def method(tensor: torch.Tensor, *arguments: Any, **options: Any) -> Any:
            device = device_of_thread()
            if isinstance(device, StreamDevice):
                device.read()
            return read(tensor, *arguments, **options)

        return method

    general = bound({"Event": _CPU["Event"], "Stream": _no_stream})
    with (
        replaced(torch.cpu, bound(_CPU), has_streams, _CLASSES),
        replaced(torch.accelerator, bound(_ACCELERATOR), has_streams),
        replaced(torch, general, has_streams, {"Event": Event}),
        optimizers.for_each(has_streams),
    ):
        try:
            for name in _READS:
                setattr(torch.Tensor, name, reading(getattr(torch.Tensor, name)))
            yield
        finally:
            for name in _READS:
                delattr(torch.Tensor, name)  # what it inherits is there again
