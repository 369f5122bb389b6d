"""Runs commands for `commands.command`: imports once what they would import each, and forks a process for each."""

import atexit
import gc
import importlib
import json
import os
import runpy
import select
import signal
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
IMPORTED = ("harness.run", "harness.tracking", "numba", "numba.np.arraymath", "sklearn.datasets", "wandb")


def serve():
    """Fork a process per request, and say how it ended; it returns its request, and this process None in the end."""
    sys.path[0] = str(ROOT)
    for module in IMPORTED:
        importlib.import_module(module)
    gc.freeze()  # so that no collection touches, and copies, what is shared with this process
    for line in iter(sys.stdin.readline, ""):
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            return request
        print(json.dumps(status(pid, request["timeout_s"])), flush=True)
    return None


def status(pid, timeout_s):
    """As `subprocess` has it, once the process has ended; None if it had to be killed."""
    process = os.pidfd_open(pid)
    in_time, _, _ = select.select([process], [], [], timeout_s)
    os.close(process)
    if not in_time:
        os.kill(pid, signal.SIGKILL)
    ended = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return ended if in_time else None


def become(request):
    """This process is `python -m module *arguments` from here on; a script of the root is started by its path."""
    for descriptor, path in enumerate((os.devnull, request["stdout"], request["stderr"])):
        opened = os.open(path, os.O_RDWR | os.O_CREAT)
        os.dup2(opened, descriptor)
        os.close(opened)
    os.chdir(request["directory"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = [str(ROOT / f"{request['module']}.py"), *request["arguments"]]
    try:
        if os.path.exists(sys.argv[0]):
            runpy.run_path(sys.argv[0], run_name="__main__")
        else:
            runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        os._exit(ended.code or 0)  # it takes longer to take the interpreter apart


if __name__ == "__main__" and (request := serve()):
    become(request)
