"""Where in the user's code an activity is, for messages."""

import os
import sys
import sysconfig
from collections.abc import Iterable
from functools import cache
from types import FrameType
from typing import NamedTuple

from hardware.simulated.activity import Activity
from harness import worker as harness_worker

_OURS = (os.path.dirname(__file__), harness_worker.__file__)
_NOT_THE_USERS = (sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"), *_OURS, "<")


class CodePlace(NamedTuple):
    """A line of the user's code; in words ", at <file>:<line>", or nothing if there is none."""

    path: str = ""
    line: int = 0

    def __str__(self) -> str:
        return f", at {os.path.relpath(self.path)}:{self.line}" if self.path else ""


def code_place(frame: FrameType | None) -> CodePlace:
    """Where in the user's code a frame is: the innermost line that is neither torch's, Python's nor ours."""
    while frame is not None:
        path = frame.f_code.co_filename
        if _is_the_users(path):
            return CodePlace(path, frame.f_lineno)
        frame = frame.f_back
    return CodePlace()


@cache
def _is_the_users(path: str) -> bool:
    return not path.startswith(_NOT_THE_USERS)


def frames(activities: Iterable[Activity]) -> dict[Activity, FrameType]:
    """Where those that run or wait are."""
    known = sys._current_frames()
    alive = {a: a.thread.ident or 0 for a in activities if a.thread is not None and not a.finished}
    return {activity: known[ident] for activity, ident in alive.items() if ident in known}
