"""Ctrl-C while native kernels compile: said before, one line after, exit status 130."""

import os
import signal
import subprocess
import sys

import pytest
from commands import ROOT

KERNEL = """
from harness.problems.logistic_regression import LogisticRegression
import harness.kernels.loop as loop
from numba import njit

loop.run = njit(nogil=True)(loop.run.py_func)  # compiled anew, whatever numba's cache has

class Fresh(LogisticRegression):
    pass
"""


@pytest.mark.parametrize("tracking", ["files", "none"])
def test_an_interrupt_while_kernels_compile_says_what_is_kept(tmp_path, tracking):
    (tmp_path / "fresh.py").write_text(KERNEL)
    few = ["problem._target_=fresh.Fresh", "problem.synthetic_samples=1000", "hardware=cpu", "baseline=none"]
    chosen = ["--config-dir", str(tmp_path), *few, f"tracking={tracking}", f"runs_dir={tmp_path}/runs"]
    command = [sys.executable, str(ROOT / "run.py"), *chosen]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "COLUMNS": "400"}
    with subprocess.Popen(command, stdout=-1, stderr=-1, text=True, env=environment) as process:
        while (line := process.stdout.readline()) and "compiling native kernels" not in line:
            pass
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert "compiling" in line and process.returncode == 130
    (directory,) = [path.parent for path in tmp_path.rglob("summary.json")] or [None]
    where = "tracking=none keeps nothing" if tracking == "none" else f"the settings alone are in {directory}"
    assert said == f"interrupted before anything was observed: {where}\n"
