"""Runs `python run.py ...` and other commands as a user would, each in a process of its own."""

import atexit
import functools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def command(*arguments, runs_dir=None, **how):
    """The finished process of `python run.py *arguments`, with its output as text."""
    here = [f"runs_dir={runs_dir}"] if runs_dir else []
    return module("run", *arguments, *here, **how)


def module(name, *arguments, timeout_s=240, **environment):
    """The finished process of `python -m <name> *arguments`, with its output as text."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB", "HYDRA", "TWINCLOCK"))}
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "stdout"), Path(folder, "stderr")
        request = {
            "module": name,
            "arguments": arguments,
            "environment": {**clean, "COLUMNS": "160", **environment},
            "directory": os.getcwd(),
            "stdout": str(out),
            "stderr": str(err),
            "timeout_s": timeout_s,
        }
        status = _answer(request)
        done = subprocess.CompletedProcess(arguments, status, out.read_text(), err.read_text())
    assert status is not None, f"not done after {timeout_s} s: {done}"
    return done


def _answer(request):
    server = _server()
    print(json.dumps(request), file=server.stdin, flush=True)
    return json.loads(server.stdout.readline())


@functools.cache
def _server():
    """It ends once its standard input is closed."""
    server = [sys.executable, str(Path(__file__).with_name("command_server.py"))]
    started = subprocess.Popen(server, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    atexit.register(started.communicate)
    return started
