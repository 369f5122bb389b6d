"""Anonymous shared memory that survives nobody.

A `memfd` has no name: nothing appears in /dev/shm, its size limit does not apply, and the kernel frees the memory when
the last process that holds it has gone, killed or not.
"""

import mmap
import os
from multiprocessing.reduction import DupFd
from typing import Any


class Segment:
    """Memory without a name, shared with the worker processes it is sent to.

    Args:
        size_bytes: initial size, zero filled.
    """

    def __init__(self, size_bytes: int = 0) -> None:
        self.fd = -1
        self.fd = os.memfd_create("twinclock", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, size_bytes)

    def __reduce__(self) -> tuple:
        return _receive, (DupFd(self.fd),)

    def grow(self, length_bytes: int) -> int:
        """Append zeros. Returns the offset at which they start, a multiple of the page size."""
        offset = round_up(os.fstat(self.fd).st_size, mmap.PAGESIZE)
        os.ftruncate(self.fd, offset + length_bytes)
        return offset

    def append(self, data: memoryview) -> int:
        """Write bytes at the end. Returns their offset, a multiple of 64. For one writer at a time."""
        offset = written = round_up(os.fstat(self.fd).st_size, 64)
        while data:
            count = os.pwrite(self.fd, data, written)
            written, data = written + count, data[count:]
        return offset

    def map(self, length_bytes: int | None = None, offset: int = 0, shared: bool = True) -> mmap.mmap:
        """Map a part, or all. What is written to a map that is not `shared` is seen by nobody else."""
        length = os.fstat(self.fd).st_size - offset if length_bytes is None else length_bytes
        return mmap.mmap(self.fd, length, flags=mmap.MAP_SHARED if shared else mmap.MAP_PRIVATE, offset=offset)

    def reopen(self) -> "Segment":
        """The same memory through another open file, to which locks belong."""
        segment = Segment.__new__(Segment)
        segment.fd = os.open(f"/proc/self/fd/{self.fd}", os.O_RDWR | os.O_CLOEXEC)
        return segment

    def close(self) -> None:
        """Let go; maps stay valid."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __del__(self) -> None:
        self.close()


def round_up(count: int, multiple: int) -> int:
    """The next multiple.

    >>> round_up(65, 64)
    128
    """
    return -(-count // multiple) * multiple


def _receive(handle: Any) -> Segment:
    segment = Segment.__new__(Segment)
    segment.fd = handle.detach()
    return segment
