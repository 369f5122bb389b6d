"""Slices: how long the kernel lets a thread compute before it looks at who else wants its core (EEVDF, sched(7)).

A helper activity shares its worker's core, mostly sleeps, and somebody waits for what it does when it wakes. Behind a
worker that never pauses it would wait for the rest of a slice, of 1.4 ms on two cores: three steps of a small model.
Of two threads with equal claims the kernel lets the one with the shorter slice go first, from Linux 6.12 on; an older
one takes no notice. The core is shared as evenly as before.
"""

import ctypes
import os
import platform
import struct

SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}
SCHED_GETATTR = {"x86_64": 315, "aarch64": 275}
SHORTEST_NS = 100_000  # that the kernel takes
# struct sched_attr: size, policy, flags, nice, priority, runtime (of these policies, the slice), and what is not theirs
LAYOUT = "=IIQiIQQQII"
POLICIES = (os.SCHED_OTHER, os.SCHED_BATCH)  # whose slices can be chosen
POLICY, RUNTIME = 1, 5

_libc = ctypes.CDLL(None, use_errno=True)


def own_ns() -> int | None:
    """This thread's slice; None where there is none to choose."""
    attributes = _own()
    return attributes[RUNTIME] or None if attributes else None


def shorten_own() -> None:
    """Have the shortest slices for this thread, where the kernel gives any; all else about it stays as it is."""
    attributes = _own()
    if attributes and attributes[RUNTIME]:
        wanted = struct.pack(LAYOUT, *attributes[:RUNTIME], SHORTEST_NS, *attributes[RUNTIME + 1 :])
        _libc.syscall(SCHED_SETATTR[platform.machine()], 0, wanted, 0)


def _own() -> tuple[int, ...] | None:
    """What the kernel says of this thread, if its slices can be chosen."""
    if (number := SCHED_GETATTR.get(platform.machine())) is None:
        return None
    told = ctypes.create_string_buffer(struct.calcsize(LAYOUT))
    if _libc.syscall(number, 0, told, len(told), 0) != 0:
        return None
    attributes = struct.unpack(LAYOUT, told.raw)
    return attributes if attributes[POLICY] in POLICIES else None
