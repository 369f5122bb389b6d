"""Where worker processes come from: a server that has imported torch and forks them, instead of an interpreter each.

`multiprocessing` keeps the server for as long as this process lives. Two things it leaves to us: the server must find
the modules this process finds, and the folder of the server's socket must go even if this process is killed.
"""

import multiprocessing
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import forkserver, spawn, util
from types import ModuleType
from typing import Any

from harness.errors import UserError, WorkerFailed

FOLDER_VARIABLE = "TWINCLOCK_FORK_SERVER_FOLDER"
INDUCTOR_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"  # torch's optimizers import its compiler, which makes a folder


def start_fork_server(modules: Sequence[str]) -> Any:
    """Start the server, unless it runs.

    Args:
        modules: imported before its first fork, so that no worker has to import them.

    Returns:
        its `multiprocessing` context.

    Raises:
        UserError: where the path of its socket would be too long for the system.
        RuntimeError: in a worker, where the main script starts a run whenever it is imported.
    """
    spawn.get_preparation_data("fork server")  # raises if this is a worker that is still importing the main script
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["hardware.real.fork_server_preload", *_imported_by_main(), *modules])
    folder = util.get_temp_dir()
    with _environment(
        {
            FOLDER_VARIABLE: folder,
            INDUCTOR_VARIABLE: os.environ.get(INDUCTOR_VARIABLE, folder),
            "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path)),
        }
    ):
        try:
            forkserver.ensure_running()
        except OSError as error:
            if "AF_UNIX" not in str(error):
                raise
            folder = tempfile.gettempdir()
            raise UserError(f"TMPDIR={folder} is too long for the path of a socket: set a shorter one") from None
    return context


@contextmanager
def explained() -> Iterator[None]:
    """Say what it means when the server is gone."""
    try:
        yield
    except (EOFError, ConnectionError) as error:
        raise WorkerFailed(
            "the process that starts workers has ended: see what it printed, or run again if it was killed"
        ) from error


def _imported_by_main() -> list[str]:
    """Where the names in the main script come from: every worker imports it again, and finds its imports done."""
    values = vars(sys.modules["__main__"]).values()
    origins = {
        value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None) for value in values
    }
    return sorted(name for name in origins if isinstance(name, str) and name in sys.modules and name != "__main__")


@contextmanager
def _environment(extra: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in extra}
    os.environ.update(extra)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
