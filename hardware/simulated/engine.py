"""The engine: activities take turns, and virtual time passes while they wait.

Every activity of a simulated rank is a thread, and exactly one of them runs at a time: it holds the baton. An activity
that must wait runs the SimPy loop itself until some activity can go on, and wakes that one directly: one hand-off
between threads per wait, none if the waiting activity is itself the next. SimPy owns the clock and the network; at one
instant its events come first, then what the ranks do, by (rank, sequence).

An activity computes ahead of SimPy's clock: `Activity.local_s` is where its own computation has taken it, and it waits
for the rest of the world (`Engine.sync`) only where it can see or touch what others did.

    baton threads                                   main thread
    rank 0  run ── wait ▸ step, step, wake 1        looks in now and then (progress, Ctrl-C), never takes the baton
    rank 1               run ── wait ▸ step, wake 0
"""

import ctypes
import gc
import heapq
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import NoReturn

import simpy

from hardware.simulated.activity import Aborted, Activity, Died, Reason, Signal, TimedOut
from hardware.simulated.code_place import CodePlace, code_place, frames
from harness.errors import TwinclockError, WorkerFailed

STACK_BYTES = 4 * 2**20  # of a baton thread: address space, touched only as far as it is used
USUAL_S = (600.0, 1800.0)  # torch's time-outs where a script asks for none: NCCL's and gloo's
POLL_S = 1e-6  # virtual seconds of a look that finds nothing, so that a loop of them ends; assumed
LOOK_S = 0.25  # host seconds between two looks of the main thread
INTERRUPT_S = 0.5  # host seconds in which they must after Ctrl-C, before the one that runs is interrupted
END_S = 5.0  # host seconds in which some activity must end once the run is over, before the rest is given up
_PROCESSOR = 36  # field of /proc/thread-self/stat behind the name: the CPU it was last on


class Engine:
    """Runs activities in virtual time.

    Args:
        deaths: virtual time at which a rank dies, by rank.
        mortal: whether waits with one of torch's usual time-outs time out too: where a rank or a link may fail.
            Otherwise such a wait without end is a deadlock, and known as such the moment no event is left; one that
            ends late times out all the same.
        named: who a rank is, in words.

    Attributes:
        env: SimPy's environment; whoever runs may schedule events there.
        current: the activity that holds the baton.
        deaths: virtual time at which a rank dies, by rank.
        died: the same of those that did, before they had finished.
        events: what happened: SimPy's events, actions and turns of activities.
    """

    def __init__(
        self,
        deaths: Mapping[int, float] | None = None,
        mortal: bool = False,
        named: Callable[[int], str] = "rank {}".format,
    ) -> None:
        self.env = simpy.Environment()
        self.current: Activity
        self.deaths, self._mortal, self.named = deaths or {}, mortal or bool(deaths), named
        self.died: dict[int, float] = {}
        self.events = 0
        self._activities: list[Activity] = []
        self._alive = 0
        self._agenda: list[tuple[float, int, int, Activity | Callable[[], None]]] = []  # a heap: time, rank, sequence
        self._sequence = count()
        self._failure: BaseException | None = None
        self._stopping = False
        self._over = threading.Event()
        self._core = _core() if hasattr(os, "sched_setaffinity") else set()

    def spawn(self, rank: int, name: str, body: Callable[[], None], start_s: float) -> Activity:
        """Add an activity of `rank` that begins at `start_s`."""
        activity = Activity(rank, name, body, start_s)
        activity.wake = partial(self._make_ready, activity)
        self._activities.append(activity)
        self._alive += 1
        self._put(start_s, rank, activity)
        if rank in self.deaths:
            activity.dies_s = self._put(self.deaths[rank], rank, activity)  # as SimPy's clock will show it
        return activity

    def run(self, look: Callable[[], None]) -> None:
        """Run all activities to their end.

        Args:
            look: called now and then in the calling thread.

        Raises:
            TwinclockError: what an activity raised; WorkerFailed if it was no error of ours, or at a deadlock.
            KeyboardInterrupt: as soon as every thread has ended or been given up; at once at the second.

        A rank that does not come back to the engine is interrupted wherever its Python code is; one that does not come
        back from C cannot be ended: its thread, and those it keeps waiting, are given up. They are daemons, and unwind
        should it ever end.
        """
        with _small_stacks(), _old_objects_at_rest():
            try:
                self._pass_baton(self._next(None))
                while not self._over.wait(LOOK_S) and not self._stopping:
                    look()
            except BaseException as error:
                self._stopping = True
                with _half_made_objects_unmourned():
                    if isinstance(error, KeyboardInterrupt):
                        self._interrupt()  # a second Ctrl-C, here or in what follows, waits for nobody
                    self._join()
                raise
            self._stopping = True
            self._join()
        if self._failure is not None:
            raise self._failure
        look()

    @contextmanager
    def uncharged(self) -> Iterator[None]:
        """A block whose computation costs no virtual time."""
        activity = self.current
        activity.now()
        activity.uncharged += 1
        try:
            yield
        finally:
            if activity.measure is not None:
                activity.measure()
            activity.uncharged -= 1

    def at(self, time_s: float, rank: int, action: Callable[[], None]) -> None:
        """Call `action` on behalf of `rank` at `time_s`, or now if that has passed; whoever waits then calls it."""
        self._put(time_s, rank, action)

    def next_s(self) -> float:
        """Virtual time of the next event."""
        return min(self.env.peek(), self._agenda[0][0] if self._agenda else float("inf"))

    def wait(self, signal: Signal, reason: Reason, timed: bool = True, timeout_s: float = float("inf")) -> None:
        """Suspend the current activity until `signal` has happened.

        Args:
            reason: what it waits for, as a deadlock report would say.
            timed: whether the wait takes virtual time; a rank that only needs its peers' values to go on spends none.
            timeout_s: virtual seconds after which it gives up; see `mortal` for those of `USUAL_S`.

        Raises:
            TimedOut: if it gave up.
            Died: if its rank has died by the end of it.
        """
        activity = self.current
        give_up_s = activity.now() + timeout_s
        if not signal.happened:
            signal.then(activity.wake)
            watched = timeout_s < float("inf") and (self._mortal or timeout_s not in USUAL_S)
            while not signal.happened and (not watched or self.env.now < give_up_s):
                if watched and not self.env.now < activity.alarm_s <= give_up_s:
                    activity.alarm_s = self._put(give_up_s, activity.rank, activity)
                self._suspend(activity, reason)
        if not signal.happened or (timed and signal.at_s > give_up_s):
            activity.local_s = max(give_up_s, self.env.now)
            raise TimedOut
        if timed and activity.local_s < signal.at_s:
            activity.local_s = signal.at_s
            if signal.at_s >= activity.dies_s:
                raise Died

    def fail(self, message: str, placed: bool = False) -> NoReturn:
        """End the run with an error, whatever the current activity catches.

        Args:
            placed: whether the message says where in the user's code; else the current activity's place is added.

        Raises:
            Aborted: always.
        """
        self._fail(WorkerFailed(message if placed else f"{message}{self.place()}"))
        raise Aborted

    def refuse(self, error: TwinclockError) -> NoReturn:
        """End the run with an error, whatever the current activity, or whoever runs events, catches."""
        self._fail(error)
        raise error

    def place(self) -> CodePlace:
        """Where the current activity is."""
        return code_place(sys._getframe())

    def whereabouts(self) -> str:
        """Who has the baton, and where in the user's code: "rank 0, at train.py:5"; may be asked by any thread."""
        return f"{self.current.name}{code_place(frames([self.current]).get(self.current))}"

    def happen(self, signal: Signal) -> None:
        """Let it happen at SimPy's time."""
        signal.happen(self.env.now)

    def poll(self, signal: Signal) -> bool:
        """Whether it has happened by the current activity's time; one that asks in vain has spent `POLL_S`."""
        self.sync()
        if signal.at_s <= self.current.local_s:
            return True
        self.current.charge(POLL_S)
        return False

    def sync(self) -> None:
        """Let the rest of the world catch up with the current activity."""
        self.current.now()
        self.catch_up()

    def catch_up(self) -> None:
        """The same, while the current activity still owes what it owes: before it reads, not after it has computed."""
        activity = self.current
        if activity.local_s > self.env.now:
            until_s = self._put(activity.local_s, activity.rank, activity)
            while self.env.now < until_s:
                self._suspend(activity, "the end of its computation")

    def _put(self, time_s: float, rank: int, entry: Activity | Callable[[], None]) -> float:
        """Put it on the agenda; returns its time as SimPy's clock will show it, which may be a rounding off."""
        now_s = self.env.now
        if time_s > now_s:
            time_s = now_s + (time_s - now_s)  # as SimPy will round it
            self.env.timeout(time_s - now_s)  # so that its clock stops there
        else:
            time_s = now_s
        heapq.heappush(self._agenda, (time_s, rank, next(self._sequence), entry))
        return time_s

    def _make_ready(self, activity: Activity) -> None:
        heapq.heappush(self._agenda, (self.env.now, activity.rank, next(self._sequence), activity))

    def _suspend(self, activity: Activity, reason: Reason) -> None:
        if self._stopping:
            raise Aborted
        activity.waits_for = reason
        activity.uncharged += 1  # the events run here belong to others
        following = self._next(activity)
        activity.uncharged -= 1
        if following is not activity:
            if activity.leave is not None:
                activity.leave()
            self._pass_baton(following)
            activity.baton.acquire()
            if activity.enter is not None and not self._stopping:
                activity.enter()
        if self._stopping:
            raise Aborted
        if activity.measure is not None:
            activity.measure()  # what it spent on the events of others
        if self.env.now >= activity.dies_s:
            activity.local_s = activity.dies_s
            raise Died

    def _next(self, caller: Activity | None) -> Activity | None:
        """Process events until an activity is ready; once the run is stopping, the caller or whoever is still alive."""
        env, agenda = self.env, self._agenda
        while not self._stopping:
            self.events += 1
            try:
                if agenda and agenda[0][0] <= env.now < env.peek():
                    entry = heapq.heappop(agenda)[3]
                    if not isinstance(entry, Activity):
                        entry()
                    elif not entry.finished:
                        return entry
                else:
                    env.step()
            except simpy.core.EmptySchedule:
                self._fail(WorkerFailed(f"deadlock at {env.now:.6g} s of virtual time: {self._who_waits()}"))
            except Exception as error:  # of an event, not of the activity that happens to run it
                self._fail(_as_failure(error, "the simulation failed"))
        return caller or next((a for a in self._activities if a.thread is not None and not a.finished), None)

    def _pass_baton(self, activity: Activity | None) -> None:
        if activity is None:
            self._over.set()
            return
        self.current = activity
        if activity.thread is None:
            activity.thread = threading.Thread(target=self._live, args=(activity,), name=activity.name, daemon=True)
            activity.thread.start()
        else:
            activity.baton.release()

    def _live(self, activity: Activity) -> None:
        """The life of a baton thread."""
        if self._core:
            os.sched_setaffinity(0, self._core)  # a hand-off on one core takes a quarter of one between two
        try:
            if activity.enter is not None:
                activity.enter()
            activity.body()
        except Aborted:
            assert self._stopping
        except Died:
            activity.waits_for = f"nothing: it died at {activity.dies_s:.6g} s"
            self.died[activity.rank] = activity.dies_s
        except BaseException as error:
            self._fail(_as_failure(error, f"{activity.name} failed"))
        else:
            activity.waits_for = "nothing: it has finished"
        activity.finished = True
        self._alive -= 1
        if activity.leave is not None:
            activity.leave()
        self._pass_baton(self._next(None) if self._alive else None)

    def _interrupt(self) -> None:
        """End the activity that runs, where it is, unless it soon comes to an end by itself."""
        if not self._over.wait(INTERRUPT_S) and (thread := self.current.thread) is not None:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(Aborted))

    def _join(self) -> None:
        begun = [activity for activity in self._activities if activity.thread is not None]
        ended = sum(activity.finished for activity in begun)
        while begun and not self._over.wait(END_S):
            before, ended = ended, sum(activity.finished for activity in begun)
            if ended == before:
                self._give_up()
                return
        for activity in begun:
            assert activity.thread is not None
            activity.thread.join()

    def _give_up(self) -> None:
        cause = "" if self._failure is None else f", after {self._failure}"
        self._failure = WorkerFailed(
            f"{self.current.name} does not end: it makes no call that could stop it, and its thread runs on"
            f"{code_place(frames([self.current]).get(self.current))}{cause}"
        )

    def _fail(self, failure: BaseException) -> None:
        self._failure = self._failure or failure
        self._stopping = True

    def _who_waits(self) -> str:
        """What every activity waits for, and where in its code; those who wait alike are named together."""
        at = frames(self._activities)
        waiting: dict[str, list[str]] = {}
        for activity in self._activities:
            reason = activity.waits_for if isinstance(activity.waits_for, str) else activity.waits_for()
            waiting.setdefault(f"{reason}{code_place(at.get(activity))}", []).append(activity.name)
        return "; ".join(
            f"{names[0]} waits for {what}" if len(names) == 1 else f"{', '.join(names)} wait for {what}"
            for what, names in waiting.items()
        )


@contextmanager
def _small_stacks() -> Iterator[None]:
    previous = threading.stack_size(STACK_BYTES)
    try:
        yield
    finally:
        threading.stack_size(previous)


@contextmanager
def _old_objects_at_rest() -> Iterator[None]:
    """A block in which what was there before is not searched for garbage: a fifth of the time of a blocking call."""
    others_froze = gc.get_freeze_count() > 0
    gc.freeze()
    try:
        yield
    finally:
        if not others_froze:
            gc.unfreeze()


@contextmanager
def _half_made_objects_unmourned() -> Iterator[None]:
    """A block in which nobody hears of destructors that fail, as they do on what an interrupted thread was making."""
    before, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        yield
    finally:
        sys.unraisablehook = before


def _core() -> set[int]:
    """The core that the calling thread runs on: simulations side by side are on different ones."""
    stat = Path("/proc/thread-self/stat").read_text()
    return {int(stat.rpartition(")")[2].split()[_PROCESSOR])}


def _as_failure(error: BaseException, what: str) -> TwinclockError:
    if isinstance(error, TwinclockError):
        return error
    if isinstance(error, TimedOut):
        return WorkerFailed(f"{what}: {error.sentence()}")
    details = "".join(traceback.format_exception(error))
    return WorkerFailed(f"{what}: {type(error).__name__}: {error}", details)
