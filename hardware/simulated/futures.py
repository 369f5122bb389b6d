"""Futures of what is under way between ranks; nobody waits for one in vain, in Python or in C++.

Torch's own threads would complete such a future; here a rank has none to spare, so the rank that asks completes it: one
of an exchange by waiting for that exchange, one that torch has made of others (`collect_all`, the buckets of a
DistributedDataParallel that has joined) by completing those outstanding, the oldest first, until it has a value. Torch
waits for what a backward pass was given in a callback at the end of the pass; what completes it is queued before, and
raises its error there: C++ would take the error, which Python keeps as a value, for the tensors it expects. What is
begun in such a callback (a static graph's first gradients) is completed at once.
"""
# mypy: disable-error-code="attr-defined"

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial, wraps
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch._C import _distributed_c10d as native

from hardware.simulated.activity import Signal
from hardware.simulated.engine import Engine
from hardware.simulated.replaced import replaced
from harness.errors import UserError

_LOOK_S = 1e-3  # host seconds between two looks at a future that a thread of the script may complete
_Meanings = dict[str, Callable[..., Any]]
_Future = torch._C.Future
_has_value, _wait, _value = _Future.done, _Future.wait, _Future.value


class Outstanding:
    """The futures of one rank that have no value yet, the oldest first.

    Attributes:
        works: those of which C++ keeps its half alone, by the reducer that has them.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.works: dict[int, dist.Work] = {}
        self._futures: deque[ExchangeFuture] = deque()

    def add(self, future: "ExchangeFuture") -> None:
        """One more; the oldest of those whose exchange is over are completed."""
        while self._futures and self._futures[0].over.at_s <= self._engine.current.local_s:
            self._complete_oldest()
        self._futures.append(future)

    def settle(self) -> None:
        """Complete all."""
        while self._futures:
            self._complete_oldest()

    def complete(self, future: _Future) -> None:
        """Let a future of torch's have a value."""
        while self._futures and not _has_value(future):
            self._complete_oldest()
        while not _has_value(future):  # a thread of the script may do it
            time.sleep(_LOOK_S)
            self._engine.poll(Signal())

    def try_to_complete(self, future: _Future) -> bool:
        """Whether a future of torch's has a value by this rank's time."""
        while not _has_value(future):
            if not (self._engine.poll(Signal()) if not self._futures else self._futures[0].done()):
                return False
            self._complete_oldest()
        return True

    def _complete_oldest(self) -> None:
        future = self._futures[0]
        future.complete()
        if self._futures and self._futures[0] is future:  # else another activity of the rank has waited for it too
            self._futures.popleft()


class ExchangeFuture(torch.futures.Future):
    """A future of an exchange.

    Args:
        work: the exchange, which calls `resolve` at the end of its `wait`.
        over: happens when it has ended.
    """

    def __init__(self, work: dist.Work, over: Signal) -> None:
        super().__init__()
        self.over = over
        self._work: dist.Work | None = work  # until it is over: it knows this future
        self._followers: list[_Follower] = []
        _at_the_end_of_backward(self._complete_or_raise)

    def resolve(self, value: object) -> None:
        """It has a value, if it had none."""
        if not _has_value(self):
            self._work = None
            self.set_result(value)
            self._tell()

    def complete(self) -> None:
        """Wait for the exchange, whose error is the future's."""
        if self._work is None:
            return
        try:
            self._work.wait()
        except Exception as error:
            if not _has_value(self):
                self._work = None
                self.set_exception(error)
                self._tell()

    def wait(self) -> object:
        """Its value."""
        self.complete()
        return _wait(self)

    def _complete_or_raise(self) -> None:
        self.complete()
        if _has_value(self):  # while its exchange is being begun it has none
            _wait(self)

    def value(self) -> object:
        """Its value."""
        self.complete()
        return _value(self)

    def done(self) -> bool:
        """Whether it has one by the rank's time."""
        if self._work is not None and self._work.is_completed():
            self.complete()
        return _has_value(self)

    def then(self, callback: Callable[[torch.futures.Future], object]) -> torch.futures.Future:
        """A future of what `callback` makes of this one."""
        return self.follow(_Follower(self, self, callback))

    def follow(self, follower: "_Follower") -> "_Follower":
        """Complete another one behind this one."""
        _at_the_end_of_backward(self._complete_or_raise)
        if _has_value(self):
            follower.make()
        else:
            self._followers.append(follower)
        return follower

    def add_done_callback(self, callback: Callable[[torch.futures.Future], None]) -> None:
        """Call it when there is a value: outside a backward pass that is now."""
        super().add_done_callback(callback)
        if not _in_backward():
            self.complete()

    def _tell(self) -> None:
        while self._followers:
            self._followers.pop(0).make()


class _Follower(torch.futures.Future):
    """A future of what a callback makes of another one, of which it is completed at once."""

    def __init__(
        self,
        first: ExchangeFuture,
        before: torch.futures.Future,
        callback: Callable[[torch.futures.Future], object],
    ) -> None:
        super().__init__()
        self._first, self._before, self._callback = first, before, callback

    def make(self) -> None:
        """Call the callback."""
        try:
            self.set_result(self._callback(self._before))
        except Exception as error:
            self.set_exception(error)

    def wait(self) -> object:
        """Its value."""
        self._first.complete()
        return _wait(self)

    def value(self) -> object:
        """Its value."""
        self._first.complete()
        return _value(self)

    def done(self) -> bool:
        """Whether it has one by the rank's time."""
        return self._first.done() and _has_value(self)

    def then(self, callback: Callable[[torch.futures.Future], object]) -> torch.futures.Future:
        """A future of what `callback` makes of this one."""
        return self._first.follow(_Follower(self._first, self, callback))

    def add_done_callback(self, callback: Callable[[torch.futures.Future], None]) -> None:
        """Call it when there is a value: outside a backward pass that is now."""
        super().add_done_callback(callback)
        if not _in_backward():
            self._first.complete()


def _in_backward() -> bool:
    return torch._C._current_graph_task_id() >= 0


def _at_the_end_of_backward(action: Callable[[], Any]) -> None:
    if not _in_backward():
        return
    if torch._C._current_autograd_node() is None:  # it is there: callbacks are being called
        action()
    else:
        torch.autograd.Variable._execution_engine.queue_callback(action)


@contextmanager
def simulated(outstanding_of_thread: Callable[[], Outstanding | None]) -> Iterator[None]:
    """A block in which torch, too, waits for futures and works of ranks' threads as they do themselves."""

    def here() -> Outstanding:
        outstanding = outstanding_of_thread()
        assert outstanding is not None
        return outstanding

    def asking(ask: Callable[[_Future], Any]) -> Callable[[_Future], Any]:
        def completed(future: _Future) -> Any:
            here().complete(future)
            return ask(future)

        return completed

    def by_the_end_of_backward(futures: Sequence[_Future]) -> None:
        for future in futures:
            _at_the_end_of_backward(partial(asking(_wait), future))

    def register_hook(reducer: dist.Reducer, state: object, hook: Callable[..., _Future]) -> None:
        @wraps(hook)
        def handed(state: object, bucket: dist.GradBucket) -> _Future:
            future = hook(state, bucket)
            by_the_end_of_backward([future])
            return future

        register(reducer, state, handed)

    def install_futures(reducer: dist.Reducer, futures: list[torch.futures.Future]) -> None:
        by_the_end_of_backward(futures)
        install(reducer, futures)

    def set_work(reducer: dist.Reducer, work: dist.Work, *options: Any) -> None:
        here().works[id(reducer)] = work  # C++ keeps half of it, which knows no wait
        keep(reducer, work, *options)

    def register_work(tensor: torch.Tensor, work: dist.Work) -> None:
        work.wait()

    def refuse(*arguments: Any) -> NoReturn:
        raise UserError(
            "the simulator has no communication hooks of C++ (_register_builtin_comm_hook): give register_comm_hook "
            "one of torch.distributed.algorithms.ddp_comm_hooks.default_hooks"
        )

    register, install = dist._register_comm_hook, dist.Reducer._install_post_backward_futures
    keep, make_work = dist.Reducer._set_forward_pass_work_handle, native._create_work_from_future
    asked: _Meanings = {"wait": asking(_wait), "value": asking(_value)}
    asked |= {"done": lambda future: here().try_to_complete(future)}
    works: _Meanings = {"_create_work_from_future": asking(make_work), "_register_work": register_work}
    reducers: _Meanings = {"_install_post_backward_futures": install_futures, "_set_forward_pass_work_handle": set_work}
    meanings: list[tuple[Any, _Meanings]] = [
        (_Future, asked),
        (torch._C, {"wait": asking(_wait)}),
        (native, works),
        (dist, {"_register_comm_hook": register_hook, "_register_builtin_comm_hook": refuse}),
        (dist.Reducer, reducers),
    ]
    with ExitStack() as stack:
        for owner, inside in meanings:
            stack.enter_context(replaced(owner, inside, lambda: outstanding_of_thread() is not None))
        yield
