"""An activity: a thread of a simulated rank that takes turns with others; and a signal, for which it can wait."""

import threading
from collections.abc import Callable


class Aborted(BaseException):
    """Ends an activity because the run is over; no `except Exception` of a user catches it."""


class Died(BaseException):
    """Ends an activity whose rank has died."""


class TimedOut(Exception):
    """What was waited for did not happen in time."""

    def sentence(self) -> str:
        """For a user who has not written what waited."""
        return str(self)


Reason = str | Callable[[], str]  # words, or what makes them


class Signal:
    """Something that happens once, at `at_s` of virtual time; infinite until then."""

    __slots__ = ("_followers", "at_s", "happened")

    def __init__(self) -> None:
        self.happened, self.at_s = False, float("inf")
        self._followers: list[Callable[[], None]] = []

    def happen(self, at_s: float) -> None:
        """Call, in their order, the actions that follow."""
        self.happened, self.at_s = True, at_s
        followers, self._followers = self._followers, []
        for action in followers:
            action()

    def then(self, action: Callable[[], None]) -> None:
        """Call `action` when it happens, or now if it has."""
        if self.happened:
            action()
        else:
            self._followers.append(action)


class Activity:
    """A thread of one rank that runs while it holds the baton.

    Attributes:
        enter, leave: called in its thread when it gets the baton and before another gets it.
        local_s: virtual time up to which it has computed; never behind SimPy's clock while it runs.
        waits_for: what it waits for.
        alarm_s: virtual time at which it will next be woken to see whether it has waited too long.
        dies_s: virtual time at which its rank dies.
    """

    def __init__(self, rank: int, name: str, body: Callable[[], None], start_s: float) -> None:
        self.rank, self.name, self.body, self.local_s = rank, name, body, start_s
        self.waits_for: Reason = "its start"
        self.finished = False
        self.dies_s = self.alarm_s = float("inf")
        self.pay: Callable[[float], None] = self.charge  # how it computes what it owes
        self.measure: Callable[[], float] | None = None  # seconds it has computed since last asked
        self.enter: Callable[[], None] | None = None
        self.leave: Callable[[], None] | None = None
        self.wake = lambda: None
        self.uncharged = 0  # depth of blocks that cost nothing
        self.thread: threading.Thread | None = None  # begins when it first gets the baton
        self.baton = threading.Lock()
        self.baton.acquire()
        self._owed_s = 0.0

    def charge(self, seconds: float) -> None:
        """Let `seconds` of virtual time pass."""
        if not self.uncharged:
            self.local_s += seconds

    def owe(self, seconds: float) -> None:
        """Compute for `seconds` before the activity next looks at the time; 0 forgives what was owed."""
        self._owed_s = seconds

    def now(self) -> float:
        """The activity's virtual time in seconds.

        Raises:
            Died: if its rank has died by then.
        """
        if self._owed_s:
            owed_s, self._owed_s = self._owed_s, 0.0
            self.pay(owed_s)
        if self.measure is not None:
            self.pay(self.measure())
        if self.local_s >= self.dies_s:
            raise Died
        return self.local_s
