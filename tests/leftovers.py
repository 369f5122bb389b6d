"""What a test may leave behind on a machine where others work too."""

import os
import re

LOKY = re.compile(r"sem\.loky-(\d+)-")  # scikit-learn's helper names its semaphores by the process that made them


def shared_memory(*makers):
    """The names of shared memory, but for semaphores that were made by processes other than these and this one."""
    own = {os.getpid(), *makers}
    found = {name: LOKY.match(name) for name in os.listdir("/dev/shm")}
    return {name for name, maker in found.items() if maker is None or int(maker[1]) in own}
