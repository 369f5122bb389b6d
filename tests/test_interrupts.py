"""Ctrl-C while native kernels compile, and in mid-run: one line, exit status 130, at once."""

import json
import os
import signal
import subprocess
import sys

import pytest
from commands import ROOT, command

COMPILES = """
import hashlib

from numba import njit

from algorithms.hogwild import Hogwild


class Compiles(Hogwild):
    def warm_up(self, problem):
        njit(lambda x: x)(1)
        hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)  # native code for minutes
"""
INTERRUPTED = """
import os
import signal
from dataclasses import dataclass

from algorithms.base import Algorithm


@dataclass(frozen=True)
class Interrupted(Algorithm):
    synchronous = False

    def train(self, worker, problem):
        model = problem.build_model(worker.device, worker.seed)
        for step, batch in enumerate(worker.batches(problem, self.batch_size), start=1):
            worker.observe(model, samples=len(batch))
            if worker.rank == 0 and step == 500:
                os.kill(os.getpid(), signal.SIGINT)
                while True:
                    worker.clock.now()
"""
SETTINGS_ALONE = "interrupted before any progress was recorded: the settings alone are in {}\n"


def interrupted_while_compiling(tmp_path, *arguments):
    """Exit status and last words of a run whose compiler takes minutes, and hears no signal."""
    (tmp_path / "compiles.py").write_text(COMPILES)
    chosen = ["--config-dir", str(tmp_path), "algorithm._target_=compiles.Compiles", "hardware=cpu", *arguments]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "COLUMNS": "400"}
    started = [sys.executable, str(ROOT / "run.py"), *chosen, "baseline=none", f"runs_dir={tmp_path}/runs"]
    with subprocess.Popen(started, stdout=-1, stderr=-1, text=True, env=environment) as process:
        try:
            while (line := process.stdout.readline()) and "compiling native kernels" not in line:
                pass
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=20)
        finally:
            process.kill()
    assert "compiling" in line
    return process.returncode, said


def directory(tmp_path):
    (summary,) = tmp_path.rglob("summary.json")
    return summary.parent


THREADS, PROCESSES = ["problem.synthetic_samples=1000"], ["problem=digits_mlp"]
MULTIRUN = ["-m", "seed=0,1", "tracking=files"]


@pytest.mark.parametrize("workers", [THREADS, PROCESSES, [*THREADS, *MULTIRUN], [*PROCESSES, "tracking=wandb"]])
def test_an_interrupt_while_kernels_compile_says_what_is_kept(tmp_path, workers):
    status, said = interrupted_while_compiling(tmp_path, *workers)
    assert status == 130 and said == SETTINGS_ALONE.format(directory(tmp_path))


def test_an_interrupt_while_kernels_compile_says_that_nothing_is_kept(tmp_path):
    status, said = interrupted_while_compiling(tmp_path, *THREADS, "tracking=none")
    assert status == 130 and list(tmp_path.rglob("summary.json")) == []
    assert said == "interrupted before any progress was recorded: tracking=none keeps nothing\n"


def test_an_interrupt_in_mid_run_says_what_is_kept(tmp_path):
    (tmp_path / "interrupted.py").write_text(INTERRUPTED)
    (tmp_path / "algorithm").mkdir()
    settings = "_target_: interrupted.Interrupted\nlearning_rate: 0.1\nbatch_size: 10\n"
    (tmp_path / "algorithm/interrupted.yaml").write_text(settings)
    chosen = ["algorithm=interrupted", "problem=digits_mlp", "hardware=sim_ethernet", "tracking=files"]
    done = command("--config-dir", str(tmp_path), *chosen, "baseline=none", runs_dir=tmp_path / "runs")
    where = directory(tmp_path)
    seen = [json.loads(line) for line in (where / "history.jsonl").read_text().splitlines()][1:]
    what = f"what was observed up to epoch {seen[-1]['progress/epoch']:.3g} ({len(seen)} times)"
    assert done.returncode == 130 and len(seen) > 1
    assert done.stderr == f"interrupted in mid-run: {what} is in {where}\n"
