"""What can go wrong in a user's hands.

    TwinclockError
    ├── UserError (ValueError)   a setting that cannot work: the message names field, value, rule and fix
    │   └── Unfit                a problem that an algorithm cannot do; the command line names both, and those it can
    ├── Diverged                 the loss or the model is no longer finite
    └── WorkerFailed             a worker raised, was killed or hung; what was observed until then is kept
        ├── WaitedInVain         it waited for others, who did not come, or have given up
        └── Unexpected           anything else went wrong: a bug of ours, or of a user's own component

The command line prints their message, and before it the traceback that the last two carry.
"""

import errno
import traceback

REMEDIES = {
    errno.ENOSPC: "free disk space, or ",
    errno.EDQUOT: "free disk space, or ",
    errno.EFBIG: "raise the limit of file sizes (`ulimit -f`), or ",
}


class TwinclockError(Exception):
    """Base of every error that reaches a user as one sentence."""


class UserError(TwinclockError, ValueError):
    """A setting that cannot work. The message names the field, the value, the rule and the fix."""


class Unfit(UserError):
    """A problem that an algorithm cannot do with these settings. The message says why, without their names."""


class Diverged(TwinclockError):
    """The loss or the model is nan or infinite."""


class WorkerFailed(TwinclockError):
    """A worker raised, was killed or hung.

    Args:
        message: one sentence that names the worker.
        details: the worker's own traceback, or "".
    """

    def __init__(self, message: str, details: str = "") -> None:
        super().__init__(message)
        self.details = details

    def __reduce__(self) -> tuple:
        return type(self), (str(self), self.details)


class WaitedInVain(WorkerFailed):
    """A worker waited for others in vain: whoever is to blame is another one."""


class LostConnection(WaitedInVain):
    """A worker whose connection to another one has ended: so has that one, most likely."""


class Unexpected(WorkerFailed):
    """An error that nobody expected, in the parent process; it carries its traceback."""

    @classmethod
    def of(cls, error: Exception) -> "Unexpected":
        """From any error."""
        return cls(f"unexpected {type(error).__name__}: {error}", "".join(traceback.format_exception(error)))


def require(condition: bool, field: str, rule: str, value: object) -> None:
    """Refuse a setting.

    >>> require(False, "algorithm.batch_size", "must be >= 1", 0)
    Traceback (most recent call last):
    ...
    harness.errors.UserError: algorithm.batch_size must be >= 1, got 0

    Raises:
        UserError: if `condition` is false.
    """
    if not condition:
        raise UserError(f"{field} {rule}, got {'null' if value is None else repr(value)}")


def unwritable(path: object, error: OSError) -> str:
    """One sentence about a file or folder of a run that cannot be written."""
    return f"{path} cannot be written ({error.strerror}): {REMEDIES.get(error.errno or 0, '')}choose another runs_dir"
