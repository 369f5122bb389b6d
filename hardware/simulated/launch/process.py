"""What each rank of a script has of its own, as if it were a process: changed over whenever the baton changes hands.

That is its environment, its arguments, the modules of the script's folder, the locks under which it imports them, the
generators of random numbers of torch, numpy and Python, torch's default dtype and the working directory. Where a script
seeds nothing a fresh process would draw from the system; a rank draws numbers of its own that repeat.

C's environment is one: what `subprocess` starts is handed the rank's (patches.py); `os.system`, `multiprocessing` by
spawn and C's `getenv` see the launcher's, and what any rank has assigned since.
"""
# mypy: disable-error-code="attr-defined"

import os
import random
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from harness.errors import TwinclockError, UserError, WorkerFailed

_MODULE_LOCKS: dict[str, Any] = sys.modules["_frozen_importlib"]._module_locks  # Python's, by name: weak references
_INSTALLED = {"site-packages", "dist-packages"}
_SIMULATOR = str(Path(__file__).parents[1]) + os.sep


class Exited(WorkerFailed):
    """A rank has left by `sys.exit`.

    Attributes:
        status: its exit status, not 0.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class RankProcess:
    """One rank's share of what a process has once.

    Args:
        rank: of the world.
        seed: of the random numbers, with the rank.
        environment: whole.
        script: which it runs.
        arguments: of the script.
    """

    def __init__(
        self, rank: int, seed: int, environment: Mapping[str, str], script: Path, arguments: Sequence[str]
    ) -> None:
        self._rank, self._script, self._folder = rank, script.absolute(), script.resolve().parent
        self._environment = {os.fsencode(key): os.fsencode(value) for key, value in environment.items()}
        self._arguments = [str(script), *arguments]
        self._main = ModuleType("__main__")
        vars(self._main).update(__file__=str(self._script), __builtins__=__builtins__)
        self._modules: dict[str, ModuleType] = {"__main__": self._main}
        self._importing: dict[str, Any] = {}  # locks of modules of which it is in the middle
        number = int(np.random.SeedSequence((seed, rank)).generate_state(1)[0])
        self._random = random.Random(number).getstate()
        self._numpy = np.random.RandomState(number).get_state()
        self._torch = torch.Generator().manual_seed(number).get_state()
        self._dtype, self._directory = torch.get_default_dtype(), os.getcwd()

    def enter(self) -> None:
        """Put its own in place of what is there."""
        os.environ._data = os.environb._data = self._environment
        sys.argv = self._arguments
        sys.modules.pop("__main__", None)
        sys.modules.update(self._modules)  # behind all others, `__main__` first
        _MODULE_LOCKS.update(self._importing)
        random.setstate(self._random)
        np.random.set_state(self._numpy)
        torch.set_rng_state(self._torch)
        if torch.get_default_dtype() != self._dtype:
            torch.set_default_dtype(self._dtype)
        if os.getcwd() != self._directory:
            os.chdir(self._directory)

    def leave(self) -> None:
        """Keep what there is now."""
        self._random, self._numpy, self._torch = random.getstate(), np.random.get_state(), torch.get_rng_state()
        self._dtype, self._directory = torch.get_default_dtype(), os.getcwd()
        self._modules = self._own_modules()
        me = threading.get_ident()
        self._importing = {name: ref for name, ref in [*_MODULE_LOCKS.items()] if getattr(ref(), "owner", None) == me}
        for name in self._importing:
            del _MODULE_LOCKS[name]
        for name in self._modules:
            sys.modules.pop(name, None)

    def run(self) -> None:
        """Run the script, as the module `__main__`.

        Raises:
            Exited: if it leaves with another status than 0.
            WorkerFailed: if it raises; the details are the script's part of the traceback.
        """
        try:
            code = compile(self._script.read_bytes(), str(self._script), "exec")
            exec(code, vars(self._main))
        except SystemExit as request:
            if request.code not in (None, 0):
                status = request.code if isinstance(request.code, int) else 1
                words = "" if isinstance(request.code, int) else f": {request.code}"
                raise Exited(f"rank {self._rank} exited with status {status}{words}", status) from None
        except WorkerFailed as error:
            raise WorkerFailed(str(error), _details(error)) from error
        except UserError as error:
            raise UserError(f"{error}{self._place(error)}") from error
        except TwinclockError:
            raise
        except Exception as error:
            raise WorkerFailed(f"rank {self._rank} failed: {type(error).__name__}: {error}", _details(error)) from error

    def names(self) -> set[bytes]:
        """Of its environment's variables."""
        return {*self._environment}

    def _place(self, error: Exception) -> str:
        """Where in the script's folder it was raised."""
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if Path(frame.filename).resolve().is_relative_to(self._folder)]
        return f", at {os.path.relpath(own[-1].filename)}:{own[-1].lineno}" if own else ""

    def _own_modules(self) -> dict[str, ModuleType]:
        """Those of the script that were there, or have come, since it began to run; in their order."""
        since = list(takewhile("__main__".__ne__, reversed(sys.modules)))  # no Python code: other threads may import
        found = {name: sys.modules[name] for name in reversed(since)}
        own = {name: it for name, it in found.items() if self._modules.get(name) is it or self._is_own(it)}
        return {"__main__": sys.modules.get("__main__", self._main)} | own

    def _is_own(self, module: ModuleType) -> bool:
        """Whether all of a module lies in the script's folder, and nothing in packages installed there."""
        file = getattr(module, "__file__", None)
        places = [file] if file else [*getattr(module, "__path__", ())]  # a folder without __init__.py has no file
        paths = [Path(place).resolve() for place in places]
        return bool(paths) and all(
            path.is_relative_to(self._folder) and not _INSTALLED & {*path.parts} for path in paths
        )


@contextmanager
def processes(folder: Path, ranks: Sequence[RankProcess]) -> Iterator[None]:
    """A block in which ranks may change over; everything is as before afterwards.

    Args:
        folder: of the script.
        ranks: all of them.
    """
    environment, arguments, main = os.environ._data, sys.argv, sys.modules["__main__"]
    random_state, numpy_state = random.getstate(), np.random.get_state()
    dtype, directory, path = torch.get_default_dtype(), os.getcwd(), [*sys.path]
    sys.path.insert(0, str(folder.resolve()))
    try:
        yield
    finally:
        os.chdir(directory)
        os.environ._data = os.environb._data = environment
        _put_back(environment, set().union(*(rank.names() for rank in ranks)))
        sys.argv, sys.modules["__main__"], sys.path[:] = arguments, main, path
        random.setstate(random_state)
        np.random.set_state(numpy_state)
        torch.set_default_dtype(dtype)


def _put_back(environment: Mapping[bytes, bytes], names: set[bytes]) -> None:
    """Make C's environment what it was: what ranks assigned went there too."""
    for name in names - {*environment}:
        os.unsetenv(name)
    for name, value in environment.items():
        os.putenv(name, value)


def _details(error: Exception) -> str:
    """The traceback below the line that runs the script, down to where the simulator begins."""
    report = traceback.TracebackException.from_exception(error)
    frames = report.stack[1:]
    ours = (i for i, frame in enumerate(frames) if frame.filename.startswith(_SIMULATOR))
    report.stack = traceback.StackSummary.from_list(frames[: next(ours, None)])
    return "".join(report.format())
