"""An accelerator: the host issues ahead, and streams execute.

A stream is a FIFO of computations, records of events, waits and exchanges. It is evaluated as a recurrence, as far as
what it waits for is known: nothing of it needs SimPy but the ends of exchanges. An exchange is put on the stream of
its lane after what the current stream has been given, and `wait` makes the current stream wait for its end; the host
goes on. That is how ProcessGroupNCCL uses CUDA streams, but that messages to and from a peer have a lane each.

Values are computed as they are issued. A host that waits for an exchange is held, without spending virtual time, until
its peers have called it and the values are there; it may then issue, at its own earlier time, what others see late.
"""
# mypy: disable-error-code="call-arg, override"

from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from math import inf

import torch
import torch.distributed as dist

from hardware.simulated.activity import Activity, Signal, TimedOut
from hardware.simulated.device import Device, ExchangeTimedOut, ExchangeWork
from hardware.simulated.engine import Engine
from hardware.simulated.exchange import Part
from hardware.simulated.pace import Pace
from hardware.simulated.values import is_fake

Task = Callable[["Stream"], None]


class Stream:
    """One stream of a device; the methods are those that torch calls on a stream.

    Args:
        carries: exchanges, as the stream of a lane: what waits for those is other streams.

    Attributes:
        end_s: virtual time at which all that was evaluated so far has ended.
    """

    def __init__(self, device: "StreamDevice", carries: bool = False) -> None:
        self.device, self.end_s = device, 0.0
        self.computing = device.account.stream()
        self._waiting = None if carries else device.account.waiting
        self._tasks: deque[tuple[Signal | Task, float]] = deque()  # when issued; behind the first is what waits for it

    def put(self, task: Signal | Task) -> None:
        """Append a task, or a signal to wait for."""
        self._tasks.append((task, self.device.host_s()))
        if len(self._tasks) == 1:
            self._advance()

    def compute(self, seconds: float, issued_s: float) -> None:
        """Append a computation, which begins no earlier than it is issued."""

        def run(stream: Stream) -> None:
            begin_s = max(stream.end_s, issued_s)
            stream.end_s = begin_s + stream.device.pace.stretch(seconds, begin_s)
            stream.computing.add(begin_s, stream.end_s)

        self.put(run)

    def mark(self) -> Signal:
        """A signal that happens when all before it has ended, no earlier than now."""
        signal, issued_s = Signal(), self.device.host_s()
        self.put(lambda stream: signal.happen(max(stream.end_s, issued_s)))
        return signal

    def wait_stream(self, stream: "Stream") -> None:
        """Wait for all that another stream has been given."""
        self.put(stream.mark())

    def wait_event(self, event: "Event") -> None:
        """Wait for what was recorded; for nothing if nothing was."""
        if event.signal is not None:
            self.put(event.signal)

    def record_event(self, event: "Event | None" = None) -> "Event":
        """Record an event behind all it has been given."""
        event = event or Event(self.device)
        event.record(self)
        return event

    def synchronize(self) -> None:
        """Let the host wait for all it has been given."""
        self.device.block(self.mark())

    def query(self) -> bool:
        """Whether all it has been given has ended by the host's time."""
        return self.device.passed(self.mark())

    def _advance(self) -> None:
        while self._tasks:
            task, issued_s = self._tasks[0]
            if not isinstance(task, Signal):
                task(self)
            elif task.happened:
                self._waited(max(self.end_s, issued_s), task.at_s)
            else:
                task.then(self._advance)
                return
            self._tasks.popleft()

    def _waited(self, begin_s: float, end_s: float) -> None:
        self.end_s = max(self.end_s, end_s)
        if self._waiting is not None and begin_s < end_s:
            self._waiting.add(begin_s, end_s)


class Event:
    """A point in a stream; the methods are those that torch calls on an event.

    Attributes:
        signal: of what was recorded last, or None.
    """

    def __init__(self, device: "StreamDevice") -> None:
        self.device = device
        self.signal: Signal | None = None

    def record(self, stream: Stream | None = None) -> None:
        """Record the end of what a stream, or the current one, has been given."""
        self.signal = (stream or self.device.current_stream()).mark()

    def wait(self, stream: Stream | None = None) -> None:
        """Make a stream, or the current one, wait for it."""
        (stream or self.device.current_stream()).wait_event(self)

    def synchronize(self) -> None:
        """Let the host wait for it."""
        if self.signal is not None:
            self.device.block(self.signal)

    def query(self) -> bool:
        """Whether it has happened by the host's time, or was never recorded."""
        return self.signal is None or self.device.passed(self.signal)

    def elapsed_time(self, end: "Event") -> float:
        """Milliseconds between two events, both waited for."""
        self.synchronize()
        end.synchronize()
        assert self.signal is not None and end.signal is not None
        return (end.signal.at_s - self.signal.at_s) * 1e3


class StreamDevice(Device):
    """An accelerator with a host thread that issues what it does.

    Args:
        launch_s: seconds in which the host issues an exchange.
    """

    streams = True

    def __init__(self, engine: Engine, pace: Pace, launch_s: float) -> None:
        super().__init__(engine)
        self.pace, self._launch_s = pace, launch_s
        self._default = Stream(self)
        self._streams = [self._default]
        self._lanes: dict[Hashable, Stream] = {}
        self._open: dict[Part, float] = {}  # what has not ended, with the time-out, in the order of issue
        self._current: dict[Activity, Stream] = {}

    def charge(self, launch_s: float, run_s: float) -> None:
        """The host launches, the current stream runs."""
        activity = self._engine.current
        if not activity.uncharged:
            begin_s = activity.local_s
            activity.charge(launch_s)
            self.account.issuing.add(begin_s, activity.local_s)
            if run_s:
                self.current_stream().compute(run_s, activity.local_s)

    def read(self) -> None:
        """Let the host wait for the current stream, whose values it reads."""
        if not self._engine.current.uncharged:
            self.current_stream().synchronize()

    def work(
        self,
        part: Part,
        tensors: Sequence[torch.Tensor],
        source: Callable[[], int],
        timeout_s: float,
        blocks: bool = False,
    ) -> dist.Work:
        """Arrives when its lane comes to it."""
        self.charge(self._launch_s, 0.0)
        lane = self._lanes.get(part.lane)
        if lane is None:
            lane = self._lanes[part.lane] = self.new_stream(carries=True)
        self._open[part] = timeout_s
        part.ended.then(partial(self._ended, part))
        lane.wait_stream(self.current_stream())
        dies_s = self._engine.current.dies_s
        lane.put(lambda stream: part.arrive(stream.end_s) if stream.end_s < dies_s else None)
        lane.put(part.ended)
        return ExchangeWork(self, part, tensors, source, timeout_s, partial(self._let_stream_wait, part, blocks))

    def handed(self, tensor: torch.Tensor) -> torch.Tensor:
        """A copy: its sender's host goes on, and may write it."""
        if is_fake(tensor):
            return tensor
        with self._engine.uncharged():
            return tensor.detach().clone()

    def synchronize(self) -> None:
        """Let the host wait for all streams."""
        for signal in [stream.mark() for stream in self._streams]:
            self.block(signal)

    def mark(self) -> Signal:
        """On the current stream."""
        return self.current_stream().mark()

    def new_stream(self, carries: bool = False) -> Stream:
        """Another stream, idle."""
        stream = Stream(self, carries)
        self._streams.append(stream)
        return stream

    def current_stream(self) -> Stream:
        """What the current activity issues to."""
        return self._current.get(self._engine.current, self._default)

    @contextmanager
    def stream(self, stream: Stream | None) -> Iterator[None]:
        """A block in which the current activity issues to `stream`; None changes nothing."""
        activity = self._engine.current
        before = self._current.get(activity, self._default)
        self._current[activity] = stream or before
        try:
            yield
        finally:
            self._current[activity] = before

    def host_s(self) -> float:
        """The host's virtual time."""
        return self._engine.current.now()

    def block(self, signal: Signal) -> None:
        """Let the host wait.

        Raises:
            ExchangeTimedOut: if an exchange on one of the streams takes too long.
        """
        while True:
            part, timeout_s = next(iter(self._open.items()), (None, inf))
            try:
                self._engine.wait(signal, self._busy_with, timeout_s=timeout_s)
                return
            except TimedOut:
                self._engine.sync()
            if part is not None and not part.ended.happened:  # else it is computing that takes so long
                raise self._aborted(part, timeout_s)

    def hold(self, part: Part, timeout_s: float) -> None:
        """Hold the host until the values of an exchange are there; that takes no virtual time.

        Raises:
            ExchangeTimedOut: if they take too long, or it has been aborted.
        """
        if part.gives:
            return
        if part.ended.happened and not part.valued.happened:
            raise self._aborted(part, timeout_s)
        try:
            self._engine.wait(part.valued, part.waited_for, timed=False, timeout_s=timeout_s)
        except TimedOut:
            raise self._aborted(part, timeout_s) from None

    def _let_stream_wait(self, part: Part, blocks: bool, timeout_s: float) -> None:
        """Let the current stream wait, and the host for that one after a barrier, as ProcessGroupNCCL does."""
        self.hold(part, timeout_s)
        stream = self.current_stream()
        stream.put(part.ended)
        if blocks:
            stream.synchronize()

    def _aborted(self, part: Part, timeout_s: float) -> ExchangeTimedOut:
        """Give an exchange up, as ProcessGroupNCCL's watchdog does: the stream goes on."""
        error = ExchangeTimedOut(part, timeout_s, self.host_s())
        if not part.ended.happened:
            part.ended.happen(self.host_s())
        return error

    def _busy_with(self) -> str:
        part = next(iter(self._open), None)
        return "its device" if part is None else f"its device, and that for {part.waited_for()}"

    def _ended(self, part: Part) -> None:
        del self._open[part]
        self.account.exchanged(part)
