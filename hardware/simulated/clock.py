"""The virtual clock, as the activity that holds the baton reads it."""

from contextlib import AbstractContextManager

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

    def paused(self) -> AbstractContextManager[None]:
        """A block whose computation costs no virtual time."""
        return self._engine.uncharged()
