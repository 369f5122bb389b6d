"""After every test: no process, thread, shared-memory file or listening port that was not there before it."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest
from leftovers import shared_memory

SETTLE_S = 2.0  # a process that has been told to end may take this long to be gone
HELPERS = (b"multiprocessing.forkserver", b"multiprocessing.resource_tracker")  # they live as long as pytest, by design
LISTENING = "0A"  # in /proc/net/tcp

if (
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN
):  # a job in the background of a shell, whose children would be deaf
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def leaves_nothing_behind():
    before, affinity = _belongings(), os.sched_getaffinity(0)
    yield
    deadline_s = time.monotonic() + SETTLE_S
    while (left := _belongings() - before) and time.monotonic() < deadline_s:
        time.sleep(0.02)
    assert not left, f"left behind: {sorted(left)}"
    assert os.sched_getaffinity(0) == affinity, "the affinity of the main thread was not restored"


def _belongings():
    processes = list(_descendants(os.getpid()))
    return {
        *(f"process {pid} {command}" for pid, command in processes),
        *(f"thread {thread.ident} {thread.name}" for thread in threading.enumerate()),
        *(f"/dev/shm/{name}" for name in shared_memory(*(pid for pid, _ in processes))),
        *(f"port {port}" for port in _ports([os.getpid(), *(pid for pid, _ in processes)])),
    }


def _descendants(pid):
    for child in _children(pid):
        try:
            command = Path(f"/proc/{child}/cmdline").read_bytes()
        except OSError:  # gone meanwhile
            continue
        # What the fork server forks has the fork server's own command line.
        if not any(helper in command for helper in HELPERS) or command == _command(pid):
            yield child, command.replace(b"\0", b" ").decode(errors="replace").strip()
        yield from _descendants(child)


def _children(pid):
    """Of all threads of a process; a process in the act of ending has none."""
    children = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children += task.read_text().split()
        except OSError:
            continue
    return [int(child) for child in children]


def _command(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return None


def _ports(pids):
    sockets = {}
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        if os.path.exists(table):
            rows = (line.split() for line in Path(table).read_text().splitlines()[1:])
            sockets.update(
                {f"socket:[{row[9]}]": int(row[1].rpartition(":")[2], 16) for row in rows if row[3] == LISTENING}
            )
    return {sockets[link] for pid in pids for link in _links(pid) if link in sockets} if sockets else set()


def _links(pid):
    try:
        entries = list(os.scandir(f"/proc/{pid}/fd"))
    except OSError:
        return
    for entry in entries:
        try:
            yield os.readlink(entry.path)
        except OSError:
            continue
