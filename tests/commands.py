"""Runs `python run.py ...` as a user would, in a folder of its own."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def command(*arguments, runs_dir=None, timeout_s=240, **environment):
    """The finished process of `python run.py *arguments`, with its output as text."""
    here = [f"runs_dir={runs_dir}"] if runs_dir else []
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB", "HYDRA", "TWINCLOCK"))}
    return subprocess.run(
        [sys.executable, str(ROOT / "run.py"), *arguments, *here],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env={**clean, "COLUMNS": "160", **environment},
        stdin=subprocess.DEVNULL,
    )
