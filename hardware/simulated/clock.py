"""The virtual clock, as the activity that holds the baton reads it."""

from collections.abc import Iterator
from contextlib import contextmanager

from hardware.simulated.engine import Engine
from harness.clock import Clock


class VirtualClock(Clock):
    """Seconds of virtual time since training began."""

    kind = "virtual"

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def now(self) -> float:
        """The virtual time of the calling activity, with all it has computed so far."""
        return self._engine.current.now()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """A block whose computation costs no virtual time."""
        activity = self._engine.current
        activity.now()
        activity.uncharged += 1
        try:
            yield
        finally:
            activity.uncharged -= 1
