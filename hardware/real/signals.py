"""How the process that runs workers takes signals."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


@contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM end a run as Ctrl-C does: in good order, with what was observed until then."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, _: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


@contextmanager
def deaf() -> Iterator[None]:
    """Keep a second Ctrl-C from cutting the clean-up short; it takes seconds at most."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with _handled(signal.SIG_IGN):
        yield


@contextmanager
def deferred() -> Iterator[list[int]]:
    """Let Ctrl-C and SIGTERM wait, while what a run came to is put in order; it takes seconds at most.

    Yields:
        the signals that came, for the caller to act on.
    """
    heard: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield heard
        return
    with _handled(lambda number, _: heard.append(number)):
        yield heard


@contextmanager
def _handled(by: Any) -> Iterator[None]:
    before = {number: signal.signal(number, by) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)
