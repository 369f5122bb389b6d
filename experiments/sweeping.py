"""What the experiments share: run a list of settings in virtual time, keep what was measured, draw it.

    python -m experiments.<name>           runs every case, writes results.jsonl and picture.svg, prints the figures
    python -m experiments.<name> --draw    draws the picture of results.jsonl again, and prints its figures

Cases are run side by side, one process per core. A row of `results.jsonl` is a case's labels, then keys of
docs/metrics.md from the run's summary, to six digits.
"""

import argparse
import json
import math
import multiprocessing
import os
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.progress import track

from harness.check import check
from harness.cli import MISTAKES, composed, sentence
from harness.errors import Diverged
from harness.progress import Progress
from harness.setup import compose, run_info
from harness.trial import execute

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = dict[str, Any]
Figures = dict[str, Any]
SEEDS = (0, 1, 2)
FIXED = ("hardware=sim_ethernet", "hardware/compute=fixed", "problem=digits_mlp", "tracking=none", "baseline=none")
KEYS = (
    "run/status",
    "run/num_workers",
    "run/num_servers",
    "target/time_s",
    "stat/epochs_to_target",
    "target/samples_per_s",
    "perf/samples_per_s",
    "perf/time_per_epoch_s",
    "perf/compute_frac",
    "perf/comm_frac",
    "perf/idle_frac",
    "perf/overlap_frac",
    "progress/epoch",
    "progress/update",
    "comm/bytes_per_update",
    "mem/parameter_bytes_max",
    "mem/gradient_bytes_max",
    "mem/optimizer_bytes_max",
    "mem/activation_bytes_max",
    "async/staleness_mean",
    "async/dropped_mean",
    "predicted/step_s",
    "predicted/tokens_per_s_per_device",
    "predicted/mfu",
    "predicted/exposed_comm_frac",
    "predicted/bubble_frac",
    "predicted/peak_memory_bytes_max",
    "predicted/simulated_ranks",
    "pipeline/bubble_frac",
)


@dataclass(frozen=True)
class Case:
    """One run.

    Args:
        labels: what tells it from the others.
        overrides: as of run.py, beyond `FIXED`.
    """

    labels: Row
    overrides: tuple[str, ...]

    def row(self, *overrides: str) -> Row:
        """Run it, in this process, with further overrides; a run that diverges has a row without target.

        A prediction that does not fit into memory has a row too, with the memory that it would need.

        Raises:
            TwinclockError: if it fails in another way.
        """
        torch.set_num_threads(1)
        setup, _ = check(compose(composed([*FIXED, *self.overrides, *overrides], as_hydra=True)))
        outcome = execute(setup, run_info(setup, {}, None), "", Progress(Console(quiet=True)))
        foreseen = isinstance(outcome.failure, Diverged) or "predicted/peak_memory_bytes_max" in outcome.summary
        if outcome.failure is not None and not foreseen:
            raise outcome.failure
        found = outcome.summary | {"run/status": outcome.status}
        return self.labels | {key: _short(found[key]) for key in KEYS if key in found}


@dataclass(frozen=True)
class Experiment:
    """A published behaviour, as runs, numbers and a picture.

    Args:
        folder: where its files are.
        cases: all that is run.
        figures: of all rows, the numbers that its README quotes.
        draw: all rows into the picture's axes.
        panels: axes side by side.
    """

    folder: Path
    cases: Sequence[Case]
    figures: Callable[[Sequence[Row]], Figures]
    draw: Callable[[Sequence[Row], Sequence["Axes"]], None]
    panels: int = 1

    @property
    def results(self) -> Path:
        """A row per case."""
        return self.folder / "results.jsonl"

    @property
    def picture(self) -> Path:
        """Of the results."""
        return self.folder / "picture.svg"

    def rows(self) -> list[Row]:
        """Of the last run of all cases."""
        return [json.loads(line) for line in self.results.read_text(encoding="utf-8").splitlines()]

    def main(self, arguments: Sequence[str]) -> int:
        """Run the command; returns the exit status."""
        parser = argparse.ArgumentParser(f"python -m experiments.{self.folder.name}", allow_abbrev=False)
        parser.add_argument("--draw", action="store_true", help="run nothing: draw results.jsonl again")
        try:
            if not parser.parse_args(arguments).draw:
                rows = run(self.cases)
                self.results.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
            self.save(self.picture)
        except MISTAKES as error:
            print(f"error: {sentence(error)}", file=sys.stderr)
            return 1
        print(json.dumps(self.figures(self.rows())))
        return 0

    def save(self, path: Path) -> None:
        """Draw the results into a file, whose name says of which kind."""
        from experiments.drawing import canvas  # noqa: PLC0415 - matplotlib is an optional dependency

        with canvas(path, self.panels) as axes:
            self.draw(self.rows(), axes)


def run(cases: Sequence[Case]) -> list[Row]:
    """The rows of all cases, side by side."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with ProcessPoolExecutor(cores, multiprocessing.get_context("spawn")) as pool:
        return list(track(pool.map(Case.row, cases), "runs", len(cases), console=Console(stderr=True)))


def where(rows: Iterable[Row], **labels: object) -> list[Row]:
    """The rows with these labels."""
    return [row for row in rows if all(row.get(name) == value for name, value in labels.items())]


def mean(rows: Iterable[Row], key: str, **labels: object) -> float:
    """Of a key over the rows with these labels, such as all seeds; nan where one of them has no such value."""
    values = [row.get(key, math.nan) for row in where(rows, **labels)]
    assert values, f"no row with {labels}"
    return statistics.fmean(values)


def short(figures: Any) -> Any:
    """Numbers to three digits, however deep."""
    if isinstance(figures, dict):
        return {name: short(value) for name, value in figures.items()}
    if isinstance(figures, list):
        return [short(value) for value in figures]
    return float(f"{figures:.3g}") if isinstance(figures, float) else figures


def _short(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value
