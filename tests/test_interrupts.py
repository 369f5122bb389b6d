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
MEASURES = """
import os
import signal
from dataclasses import dataclass

from algorithms.primitives import Primitives


@dataclass(frozen=True)
class Measures(Primitives):
    def __post_init__(self):
        super().__post_init__()
        os.environ["PARENT"] = str(os.getpid())

    def train(self, worker, problem):
        super().train(worker, problem)
        worker.meet()
        if worker.rank == 0:
            os.kill(int(os.environ["PARENT"]), signal.SIGINT)
            while True:
                worker.clock.now()
        worker.meet()
"""
EVALUATES = """
import os
import signal
from dataclasses import dataclass

from harness.problems.mlp import DigitsMLP

evaluated = 0


@dataclass(frozen=True)
class Evaluates(DigitsMLP):
    def evaluate(self, model):
        global evaluated
        evaluated += 1
        if evaluated == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().evaluate(model)
"""
SEARCHES = """
import os
import signal
from dataclasses import dataclass

from algorithms.hyperparameter_search import HyperparameterSearch


@dataclass(frozen=True)
class Searches(HyperparameterSearch):
    def settings(self, seed, trial):
        if trial == 2:
            os.kill(os.getpid(), signal.SIGINT)
            while True:
                pass
        return super().settings(seed, trial)
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


WAYS = [THREADS, PROCESSES, [*THREADS, *MULTIRUN]]


@pytest.mark.parametrize("workers", [*WAYS, pytest.param([*PROCESSES, "tracking=wandb"], marks=pytest.mark.slow)])
def test_an_interrupt_while_kernels_compile_says_what_is_kept(tmp_path, workers):
    status, said = interrupted_while_compiling(tmp_path, *workers)
    assert status == 130 and said == SETTINGS_ALONE.format(directory(tmp_path))


def test_an_interrupt_while_kernels_compile_says_that_nothing_is_kept(tmp_path):
    status, said = interrupted_while_compiling(tmp_path, *THREADS, "tracking=none")
    assert status == 130 and list(tmp_path.rglob("summary.json")) == []
    assert said == "interrupted before any progress was recorded: tracking=none keeps nothing\n"


def in_mid_run(tmp_path, *overrides):
    """A run that interrupts itself at the 500th of the batches of rank 0."""
    (tmp_path / "interrupted.py").write_text(INTERRUPTED)
    (tmp_path / "algorithm").mkdir()
    settings = "_target_: interrupted.Interrupted\nlearning_rate: 0.1\nbatch_size: 10\n"
    (tmp_path / "algorithm/interrupted.yaml").write_text(settings)
    chosen = ["algorithm=interrupted", "problem=digits_mlp", "hardware=sim_ethernet", "tracking=files"]
    return command("--config-dir", str(tmp_path), *chosen, "baseline=none", *overrides, runs_dir=tmp_path / "runs")


def rows(where):
    return [json.loads(line) for line in (where / "history.jsonl").read_text().splitlines()]


def test_an_interrupt_in_mid_run_says_what_is_kept(tmp_path):
    done = in_mid_run(tmp_path)
    where = directory(tmp_path)
    seen = rows(where)[1:]
    what = f"what was observed up to epoch {seen[-1]['progress/epoch']:.3g} ({len(seen)} times)"
    assert done.returncode == 130 and len(seen) > 1
    assert done.stderr == f"interrupted in mid-run: {what} is in {where}\n"


def test_an_interrupt_before_anything_was_observed_says_that_the_initial_model_is_kept(tmp_path):
    done = in_mid_run(tmp_path, "budget.observations=1")
    where = directory(tmp_path)
    (initial,) = rows(where)
    assert done.returncode == 130 and initial["progress/sample"] == 0 and "train/loss" in initial
    kept = f"the settings and the row of the initial model are in {where}"
    assert done.stderr == f"interrupted before any progress was recorded: {kept}\n"


def test_an_interrupt_in_the_evaluation_keeps_what_was_evaluated_and_when_all_was_observed(tmp_path):
    (tmp_path / "evaluates.py").write_text(EVALUATES)
    chosen = ["algorithm=sgd", "problem=digits_mlp", "hardware=sim_ethernet", "tracking=files", "baseline=none"]
    chosen += ["problem._target_=evaluates.Evaluates", "budget.epochs=1", "budget.observations=9"]
    done = command("--config-dir", str(tmp_path), *chosen, runs_dir=tmp_path / "runs")
    where = directory(tmp_path)
    seen, summary = rows(where), json.loads((where / "summary.json").read_text())
    assert done.returncode == 130 and ["train/loss" in row for row in seen] == [True] * 3 + [False] * 7
    kept = f"what was observed up to epoch 1 (9 times) is in {where}, the last 7 without losses"
    assert done.stderr == f"interrupted while the observed models were evaluated: {kept}\n"
    assert summary["run/status"] == "interrupted" and summary["perf/samples_per_s"] > 0
    assert not {"train/loss", "target/reached"}.intersection(summary)


def test_an_interrupt_before_the_run_leaves_nothing(tmp_path):
    (tmp_path / "slow_import.py").write_text("raise KeyboardInterrupt\n")
    runs = tmp_path / "runs"
    done = command("--config-dir", str(tmp_path), "algorithm._target_=slow_import.Slow", runs_dir=runs)
    assert (done.returncode, done.stderr) == (130, "interrupted before the run began: nothing is kept\n")
    assert not [*runs.rglob(".hydra")]


@pytest.mark.parametrize("hardware", [pytest.param("cpu", marks=pytest.mark.slow), "sim_ethernet"])
def test_what_primitives_have_measured_before_an_interrupt_is_kept(tmp_path, hardware):
    (tmp_path / "measures.py").write_text(MEASURES)
    chosen = ["experiment=primitives", "algorithm._target_=measures.Measures", f"hardware={hardware}"]
    sizes = ["algorithm.sizes_bytes=[4]", "algorithm.repetitions=1", "hardware.num_workers=2", "tracking=files"]
    done = command("--config-dir", str(tmp_path), *chosen, *sizes, runs_dir=tmp_path / "runs")
    where = directory(tmp_path)
    kept = f"what was measured until then is in {where}"
    assert (done.returncode, done.stderr) == (130, f"interrupted before any progress was recorded: {kept}\n")
    summary = json.loads((where / "summary.json").read_text())
    assert summary["primitives/all_reduce/4_bytes/sync_s_max"] > 0


@pytest.mark.parametrize(("observations", "seen"), [(1, ""), (2, "what was observed up to epoch 2 (1 time) and ")])
def test_trials_that_have_finished_before_an_interrupt_are_counted(tmp_path, observations, seen):
    (tmp_path / "searches.py").write_text(SEARCHES)
    chosen = ["algorithm=hyperparameter_search", "algorithm._target_=searches.Searches", "problem=digits_mlp"]
    chosen += ["hardware=sim_ethernet", "hardware.num_workers=1", "tracking=files", "baseline=none"]
    chosen += ["algorithm.trials=3", f"budget.observations={observations}", "budget.epochs=3"]
    done = command("--config-dir", str(tmp_path), *chosen, runs_dir=tmp_path / "runs")
    kept = f"{seen}2 finished trials are in {directory(tmp_path)}"
    assert (done.returncode, done.stderr) == (130, f"interrupted in mid-run: {kept}\n")
