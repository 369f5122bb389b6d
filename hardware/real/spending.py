"""Run time that a worker lets pass, in place of a slower device or because there is nothing to do.

It sleeps: what it stands in for computes elsewhere, so the core is left to whoever else is on it. A sleep ends late by
the kernel's timer slack, 50 us, so the very last part is spun through.
"""

import time
from collections.abc import Callable

SPIN_S = 2e-4
LOOK_S = 0.25


def spend(seconds: float, look: Callable[[], None]) -> None:
    """Let seconds of host time pass.

    Args:
        look: called now and then; may raise to end it.
    """
    end_s = time.perf_counter() + seconds
    while (left_s := end_s - time.perf_counter()) > 0:
        look()
        if left_s > SPIN_S:
            time.sleep(min(left_s - SPIN_S, LOOK_S))
