"""What a rank computes on: which of its timelines a computation, and an exchange with others, is put on."""
# mypy: disable-error-code="call-arg, override"

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from typing import ClassVar

import torch
import torch.distributed as dist

from hardware.simulated.account import Account
from hardware.simulated.activity import Signal, TimedOut
from hardware.simulated.device_memory import DeviceMemory
from hardware.simulated.engine import Engine
from hardware.simulated.exchange import Part
from hardware.simulated.futures import ExchangeFuture, Outstanding
from hardware.simulated.pace import Pace


class ExchangeTimedOut(dist.DistBackendError, TimedOut):
    """Torch's error where a wait takes too long.

    Args:
        part: that did not end.
        timeout_s: virtual seconds for which it was waited for.
        by_s: virtual time at which that ended.

    Attributes:
        missing: ranks of the run that had not come by then.
    """

    def __init__(self, part: Part, timeout_s: float, by_s: float) -> None:
        why, waited = part.why(by_s), f"it waited in vain, {timeout_s:g} virtual s, for {part.description}"
        words = f"Timed out waiting {timeout_s * 1e3:.0f}ms of virtual time for {part.description}"
        super().__init__(f"{words}: {why}" if why else words)
        self._sentence, self.missing = f"{why}; {waited}" if why else waited, part.missing(by_s)

    def sentence(self) -> str:
        """The cause first."""
        return self._sentence


class ConnectionLost(dist.DistBackendError, TimedOut):
    """Torch's error where the connection to a rank breaks, since that has died.

    Args:
        part: that will not end.
        by_s: virtual time at which that is known.

    Attributes:
        missing: ranks of the run that had not come by then.
    """

    def __init__(self, part: Part, by_s: float) -> None:
        why, self.missing = part.why(by_s), part.missing(by_s)
        super().__init__(f"Connection closed by peer at {by_s:.6g} s of virtual time, in {part.description}: {why}")
        self._sentence = f"{why}; it lost the connection at {by_s:.6g} s, in {part.description}"

    def sentence(self) -> str:
        """The cause first."""
        return self._sentence


class Device(ABC):
    """The timelines of one rank.

    Attributes:
        streams: whether the host issues ahead and streams execute.
        account: where the time goes.
        futures: of exchanges, without a value yet.
        memory: what is in it, where tensors are fake.
    """

    streams: ClassVar[bool]

    def __init__(self, engine: Engine) -> None:
        self.account, self.futures = Account(), Outstanding(engine)
        self.memory = DeviceMemory()
        self._engine = engine

    def host_work(
        self, part: Part, tensors: Sequence[torch.Tensor], source: Callable[[], int], timeout_s: float
    ) -> dist.Work:
        """Let the host itself take part in an exchange, at once, whatever its device is busy with; see `work`."""
        part.ended.then(partial(self.account.exchanged, part))
        part.arrive(self._engine.current.now())
        return ExchangeWork(self, part, tensors, source, timeout_s, partial(self._block_host, part))

    def passed(self, signal: Signal) -> bool:
        """Whether it has happened by the host's time."""
        return self._engine.poll(signal)

    def _block_host(self, part: Part, timeout_s: float) -> None:
        left_s = timeout_s
        if breaks := part.breaks():
            give_up_s = self._engine.current.now() + timeout_s
            for break_s, rank in breaks:
                if break_s < give_up_s and self._is_lost(part, break_s, rank):
                    raise ConnectionLost(part, self._engine.current.local_s)
            left_s = give_up_s - self._engine.current.now()
        try:
            self._engine.wait(part.ended, part.waited_for, timeout_s=left_s)
        except TimedOut:
            raise ExchangeTimedOut(part, timeout_s, self._engine.current.local_s) from None

    def _is_lost(self, part: Part, break_s: float, rank: int) -> bool:
        """Wait for the part's end, as long as there is a connection to the rank, and whether it takes longer."""
        engine = self._engine
        try:
            engine.wait(part.ended, part.waited_for, timeout_s=max(0.0, break_s - engine.current.now()))
        except TimedOut:
            return part.needs(rank, engine.current.local_s)
        return False

    @abstractmethod
    def charge(self, launch_s: float, run_s: float) -> None:
        """Compute something, as the current activity: `launch_s` to start it, `run_s` to do it."""

    @abstractmethod
    def read(self) -> None:
        """The host is about to read the value of a tensor."""

    @abstractmethod
    def work(
        self,
        part: Part,
        tensors: Sequence[torch.Tensor],
        source: Callable[[], int],
        timeout_s: float,
        blocks: bool = False,
    ) -> dist.Work:
        """Take part in an exchange, begun now.

        Args:
            tensors: of which the work's future speaks.
            source: the group's rank that `tensors` came from, once that is known.
            timeout_s: virtual seconds after which torch would give up.
            blocks: whether `wait` blocks the host though the device has streams.
        """

    @abstractmethod
    def handed(self, tensor: torch.Tensor) -> torch.Tensor:
        """What a message keeps of a tensor to send, so that its sender may write it once it has waited."""

    @abstractmethod
    def synchronize(self) -> None:
        """Let the host wait for all that the device has been given."""

    @abstractmethod
    def mark(self) -> Signal:
        """What happens when the device has done what it was given so far."""


class HostDevice(Device):
    """A CPU: computing and issuing are one timeline, and `wait` blocks it."""

    streams = False

    def __init__(self, engine: Engine, pace: Pace) -> None:
        super().__init__(engine)
        self._pace = pace

    def charge(self, launch_s: float, run_s: float) -> None:
        """Both, one after the other."""
        activity = self._engine.current
        if not activity.uncharged:
            begin_s = activity.local_s
            activity.charge(self._pace.stretch(launch_s + run_s, begin_s))
            self.account.computing.add(begin_s, activity.local_s)

    def read(self) -> None:
        """It is there."""

    def work(
        self,
        part: Part,
        tensors: Sequence[torch.Tensor],
        source: Callable[[], int],
        timeout_s: float,
        blocks: bool = False,
    ) -> dist.Work:
        """Arrives at once."""
        return self.host_work(part, tensors, source, timeout_s)

    def handed(self, tensor: torch.Tensor) -> torch.Tensor:
        """Itself: its sender waits until it has arrived."""
        return tensor

    def synchronize(self) -> None:
        """Nothing is under way."""

    def mark(self) -> Signal:
        """Now."""
        signal = Signal()
        signal.happen(self._engine.current.now())
        return signal


class ExchangeWork(dist.Work):
    """An exchange under way.

    Args:
        device: of the rank.
        part: the rank's.
        tensors: of which its future speaks.
        source: the group's rank that `tensors` came from, once that is known.
        timeout_s: virtual seconds after which torch would give up.
        block: called with the time-out to wait for it, as the device does.
    """

    def __init__(
        self,
        device: Device,
        part: Part,
        tensors: Sequence[torch.Tensor],
        source: Callable[[], int],
        timeout_s: float,
        block: Callable[[float], None],
    ) -> None:
        super().__init__()
        self._device, self._part, self._tensors, self._source = device, part, tensors, source
        self._timeout_s, self._block = timeout_s, block
        self._future: ExchangeFuture | None = None
        self._over = False

    def wait(self, timeout: timedelta | None = None) -> bool:
        """Wait for its end: on a host this rank, on streams the current one."""
        self._block(timeout.total_seconds() if timeout else self._timeout_s)
        self._over = True
        if self._future is not None:
            self._future.resolve(list(self._tensors))
        return True

    def is_completed(self) -> bool:
        """Whether it has ended by this rank's time."""
        return self._device.passed(self._part.ended)

    def get_future(self) -> torch.futures.Future:
        """A future of the tensors."""
        if self._future is None:
            self._future = ExchangeFuture(self, self._part.ended)
            if self._over:
                self._future.resolve(list(self._tensors))
            else:
                self._device.futures.add(self._future)
        return self._future

    def _source_rank(self) -> int:
        return self._source()
