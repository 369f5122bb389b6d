"""The locks of a run (`Worker.lock`), for threads and for processes.

Whoever waits for longer than hardware.timeout_s ends the run: the holder may wait for something that never comes.
"""

import fcntl
import os
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import blake2b
from typing import Protocol

from hardware.real.segment import Segment
from hardware.real.waits import Waits
from harness.errors import WorkerFailed

LOOK_S = 0.05  # between two looks of a waiting thread at whether the run is over
WATCH_S = 0.25  # between two looks at who waits for too long
OFFSET_BYTES = 7  # of a name's hash: two names in 2**56 that meet would only exclude each other


class Locks(Protocol):
    """Locks by name."""

    def try_acquire(self, name: str) -> bool:
        """Take it if nobody holds it; returns whether."""

    def acquire(self, name: str, who: str) -> None:
        """Wait for it, and take it."""

    def release(self, name: str) -> None:
        """Give it back, in the thread that took it."""


@contextmanager
def held(locks: Locks, name: str, who: str, waits: Waits) -> Iterator[None]:
    """A block in which this thread holds a lock.

    Args:
        who: waits, as a failure would say.
        waits: takes note of the wait, if there is one.
    """
    if not locks.try_acquire(name):
        with waits.noted():
            locks.acquire(name, who)
    try:
        yield
    finally:
        locks.release(name)


class LocalLocks:
    """Locks of the threads of one process.

    Args:
        timeout_s: how long to wait.
        look: called now and then while waiting; raises when the run is over.
    """

    def __init__(self, timeout_s: float, look: Callable[[], None]) -> None:
        self._timeout_s, self._look = timeout_s, look
        self._locks: dict[str, threading.Lock] = {}

    def try_acquire(self, name: str) -> bool:
        """Take it if nobody holds it; returns whether."""
        return self._locks.setdefault(name, threading.Lock()).acquire(blocking=False)

    def acquire(self, name: str, who: str) -> None:
        """Wait for it, and take it.

        Raises:
            WorkerFailed: if that takes too long.
        """
        deadline_s = time.perf_counter() + self._timeout_s
        while not self._locks[name].acquire(timeout=LOOK_S):
            self._look()
            if time.perf_counter() > deadline_s:
                raise _waited_in_vain(who, name, self._timeout_s)

    def release(self, name: str) -> None:
        """Give it back."""
        self._locks[name].release()


class SharedLocks:
    """Locks of processes and their threads: a byte of a file each, which the kernel gives back if its holder is killed.

    They belong to an open file (F_OFD_SETLK, fcntl(2)), not to a process, and every thread has an open file of its own.

    Args:
        segment: common to all processes; its content is of no concern.
        timeout_s: how long to wait.
        tell: called when that has passed, from a thread of its own: the one that waits is asleep in the kernel.
    """

    def __init__(self, segment: Segment, timeout_s: float, tell: Callable[[WorkerFailed], None]) -> None:
        self._timeout_s, self._tell = timeout_s, tell
        self._own = _OwnFile(segment)
        self._waiting: dict[int, tuple[float, str, str]] = {}  # by thread: since when, who, for which lock
        self._watching = threading.Lock()  # held by the watch for as long as it lives

    def try_acquire(self, name: str) -> bool:
        """Take it if nobody holds it; returns whether."""
        try:
            self._call(fcntl.F_OFD_SETLK, fcntl.F_WRLCK, name)
        except BlockingIOError:
            return False
        return True

    def acquire(self, name: str, who: str) -> None:
        """Wait for it, and take it."""
        self._waiting[threading.get_ident()] = time.perf_counter(), who, name
        if self._watching.acquire(blocking=False):
            threading.Thread(target=self._watch, name="watch over locks", daemon=True).start()
        try:
            self._call(fcntl.F_OFD_SETLKW, fcntl.F_WRLCK, name)
        finally:
            del self._waiting[threading.get_ident()]

    def release(self, name: str) -> None:
        """Give it back."""
        self._call(fcntl.F_OFD_SETLK, fcntl.F_UNLCK, name)

    def _call(self, command: int, kind: int, name: str) -> None:
        offset = int.from_bytes(blake2b(name.encode(), digest_size=OFFSET_BYTES).digest(), "little")
        flock = struct.pack("hhqqi", kind, os.SEEK_SET, offset, 1, 0)  # struct flock of 64-bit Linux
        fcntl.fcntl(self._own.file.fd, command, flock)

    def _watch(self) -> None:
        """Look after those that wait, from the first wait on."""
        while True:
            time.sleep(WATCH_S)
            for since_s, who, name in list(self._waiting.values()):
                if time.perf_counter() > since_s + self._timeout_s:
                    self._tell(_waited_in_vain(who, name, self._timeout_s))
                    return


class _OwnFile(threading.local):
    """An open file of each thread."""

    def __init__(self, segment: Segment) -> None:
        self.file = segment.reopen()


def _waited_in_vain(who: str, name: str, timeout_s: float) -> WorkerFailed:
    return WorkerFailed(f"{who} waited for lock {name!r} for more than hardware.timeout_s={timeout_s:g}")
