"""Collectives and messages of tensors on a CUDA device by way of copies in the host's memory.

gloo sends what lies there. By itself it copies in some of its operations alone, and not in messages; here all are
alike, and do the CPU's arithmetic.
"""
# mypy: disable-error-code="override, call-arg"

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist


class Staging:
    """Arguments of an operation, with copies for tensors; the first is what it writes.

    Args:
        arguments: tensors, lists of them and lists of lists, and whatever else it takes.
    """

    def __init__(self, arguments: tuple[Any, ...]) -> None:
        self._pairs: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.written: tuple[Any, ...] = tuple(self._copied(each) for each in arguments[:1])
        self._outputs = len(self._pairs)
        self.arguments = (*self.written, *(self._copied(each) for each in arguments[1:]))

    def give_back(self) -> list[torch.Tensor]:
        """Copy what was written to where it belongs. Returns the tensors there."""
        for tensor, copy in self._pairs[: self._outputs]:
            tensor.copy_(copy)
        return [tensor for tensor, _ in self._pairs[: self._outputs]]

    def _copied(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self._copied(each) for each in value]
        if not isinstance(value, torch.Tensor):
            return value
        self._pairs.append((value.detach(), value.detach().to("cpu", copy=True)))
        return self._pairs[-1][1]


class DoneWork(dist.Work):
    """The handle of an operation that is over.

    Args:
        outputs: tensors that it has written.
    """

    def __init__(self, outputs: list[torch.Tensor]) -> None:
        super().__init__()
        self._outputs = outputs

    def wait(self, timeout: timedelta = timedelta(0)) -> bool:
        """There is nothing to wait for."""
        return True

    def is_completed(self) -> bool:
        """It is over."""
        return True

    def get_future(self) -> torch.futures.Future:
        """A future that has its value."""
        devices = {tensor.device for tensor in self._outputs if tensor.is_cuda}
        future: torch.futures.Future = torch.futures.Future(devices=list(devices))
        future.set_result(self._outputs)
        return future

    def result(self) -> list[torch.Tensor]:
        """The output tensors."""
        return self._outputs


class StagedMessage(dist.Work):
    """The handle of a message under way; what is received is there once it has been waited for."""

    def __init__(self, work: dist.Work, staging: Staging, receives: bool) -> None:
        super().__init__()
        self._work, self._staging, self._receives = work, staging, receives

    def wait(self, timeout: timedelta = timedelta(0)) -> bool:
        """Block until the operation is over."""
        result = self._work.wait(timeout)
        if self._receives:
            self._receives = False
            self._staging.give_back()
        return result

    def is_completed(self) -> bool:
        """Whether it is over."""
        return self._work.is_completed()

    def source_rank(self) -> int:
        """Whom a message came from."""
        return self._work.source_rank()

    def _source_rank(self) -> int:
        return self._work._source_rank()


def collective(call: Callable[..., dist.Work], *arguments: Any) -> dist.Work:
    """Do a collective on copies, and wait for it."""
    staging = Staging(arguments)
    call(*staging.arguments).wait()
    return DoneWork(staging.give_back())


def message(call: Callable[..., dist.Work], receives: bool, *arguments: Any) -> dist.Work:
    """Begin to send or receive a copy."""
    staging = Staging(arguments)
    return StagedMessage(call(*staging.arguments), staging, receives)
