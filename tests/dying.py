"""A problem during which one rank is killed."""

import os
import signal
import threading
from dataclasses import dataclass

import torch.distributed as dist

from harness.problems.least_squares import LeastSquares

DELAY_S = 0.3  # from the beginning, some steps later


@dataclass(frozen=True)
class Dying(LeastSquares):
    """Least squares.

    Args:
        victim: the rank that is killed by a signal in mid-run.
    """

    victim: int

    def build_model(self, device, seed):
        if self._is_victim():
            threading.Timer(DELAY_S, os.kill, (os.getpid(), signal.SIGKILL)).start()
        return super().build_model(device, seed)

    def _is_victim(self):
        return dist.is_initialized() and dist.get_rank() == self.victim
