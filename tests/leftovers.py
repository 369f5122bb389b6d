"""What a test may leave behind on a machine where others work too."""

import os
import re
from pathlib import Path

LOKY = re.compile(r"sem\.loky-(\d+)-")  # scikit-learn's helper names its semaphores by the process that made them
MAPPED = re.compile(r"/dev/shm/(\S+)$", re.M)


def shared_memory(*makers):
    """The names of shared memory, but for semaphores that were made by processes other than these and this one."""
    own = {os.getpid(), *makers}
    found = {name: LOKY.match(name) for name in os.listdir("/dev/shm")}
    return {name for name, maker in found.items() if maker is None or int(maker[1]) in own}


def of_others(*makers):
    """The names of shared memory that processes other than these and this one have mapped."""
    own = {os.getpid(), *makers}
    return {
        name for maps in Path("/proc").glob("[0-9]*/maps") if int(maps.parent.name) not in own for name in _in(maps)
    }


def _in(maps):
    try:
        return MAPPED.findall(maps.read_text())
    except OSError:  # the process is gone meanwhile
        return []
