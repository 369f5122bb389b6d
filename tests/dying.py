"""A problem during which one rank is killed, or stopped."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import torch.distributed as dist

from harness.problems.base import Problem
from harness.problems.least_squares import LeastSquares
from harness.problems.mlp import DigitsMLP

STEPS = 250  # of worker 0 until then


@dataclass(frozen=True)
class Killing(Problem):
    """A problem whose worker 0 sends a rank a signal in mid-run.

    Args:
        victim: the rank, beyond the workers if it is a server.
        pid_file: where it leaves its process id.
    """

    victim: int
    pid_file: str
    signal: str = "SIGKILL"

    def build_model(self, device, seed):
        if dist.is_initialized() and dist.get_rank() == self.victim:
            Path(self.pid_file).write_text(str(os.getpid()))
        return super().build_model(device, seed)

    def gather(self, samples):  # whatever is done with them
        if dist.is_initialized() and dist.get_rank() == 0:
            steps = self.__dict__["steps"] = self.__dict__.get("steps", 0) + 1
            if steps == STEPS:
                while not (written := Path(self.pid_file)).exists() or not written.read_text():
                    time.sleep(0.01)  # the victim may start late, where others wait for nobody
                os.kill(int(Path(self.pid_file).read_text()), signal.Signals[self.signal])
        return super().gather(samples)


@dataclass(frozen=True)
class Dying(Killing, LeastSquares):
    """Least squares."""


@dataclass(frozen=True)
class DyingLayers(Killing, DigitsMLP):
    """A model of layers."""
