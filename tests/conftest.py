"""After every test: no process, thread, shared-memory file or listening port that was not there before it."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest
from leftovers import of_others, shared_memory

SETTLE_S = 2.0  # a process that has been told to end may take this long to be gone
HELPERS = (
    b"multiprocessing.forkserver",
    b"multiprocessing.resource_tracker",
    b"command_server",
)  # live as long as pytest
SHARED = "/dev/shm/"
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
    while (left := _left(before)) and time.monotonic() < deadline_s:
        time.sleep(0.02)
    assert not left, f"left behind: {sorted(left)}"
    assert os.sched_getaffinity(0) == affinity, "the affinity of the main thread was not restored"


def _left(before):
    """What was not there before; of sockets those that listen, by their ports; of shared memory not what others use."""
    left = _belongings() - before
    sockets = {each for each in left if each.startswith("socket:")}
    listening = _listening() if sockets else {}
    left = left - sockets | {f"port {listening[each]}" for each in sockets & listening.keys()}
    if any(each.startswith(SHARED) for each in left):
        left -= {f"{SHARED}{name}" for name in of_others(*(pid for pid, _ in _descendants(os.getpid())))}
    return left


def _belongings():
    processes = list(_descendants(os.getpid()))
    pids = [os.getpid(), *(pid for pid, _ in processes)]
    return {
        *(f"process {pid} {command}" for pid, command in processes),
        *(f"thread {thread.ident} {thread.name}" for thread in threading.enumerate()),
        *(f"{SHARED}{name}" for name in shared_memory(*pids)),
        *(
            link
            for pid in (os.getpid(), *(pid for pid, _ in processes))
            for link in _links(pid)
            if link[:7] == "socket:"
        ),
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


def _listening():
    """The ports of sockets that listen, in this network namespace."""
    ports = {}
    for table in filter(os.path.exists, ("/proc/net/tcp", "/proc/net/tcp6")):
        rows = (line.split() for line in Path(table).read_text().splitlines()[1:])
        ports |= {f"socket:[{row[9]}]": int(row[1].rpartition(":")[2], 16) for row in rows if row[3] == LISTENING}
    return ports


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
