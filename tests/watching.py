"""A program that measures what its workers import while they train."""

import sys
from dataclasses import dataclass

from harness.program import Program


@dataclass(frozen=True)
class Watching(Program):
    """A program, whose workers measure `imports`, the number of modules."""

    def run(self, worker):
        before = set(sys.modules)
        super().run(worker)
        worker.measure("imports", len(set(sys.modules) - before))
