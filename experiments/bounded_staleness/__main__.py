"""python -m experiments.bounded_staleness: who waits for whom, under jitter and with a permanent straggler."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.sweeping import SEEDS, Case, Experiment, Figures, Row, mean, short, where

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WORKERS, BATCH, STEP = 8, 16, 0.04  # STEP: along the gradient of one batch
SITUATIONS = {"jitter": "hardware.compute.jitter=exponential", "straggler": "hardware.stragglers={3: 5.0}"}
SERVER, AVERAGE = "algorithm=parameter_server", f"algorithm.learning_rate={WORKERS * STEP:g}"
# Whoever averages takes a step as many times as long as it averages batches: a sample moves the model by the same.
METHODS: dict[str, tuple[str, ...]] = {
    f"SSP {staleness}": (
        SERVER,
        "algorithm.consistency=bounded_staleness",
        f"algorithm.staleness={staleness}",
        f"algorithm.learning_rate={STEP:g}",
    )
    for staleness in (0, 1, 3, 10)
}
METHODS |= {
    f"backup {backups}": (
        SERVER,
        "algorithm.consistency=backup_workers",
        f"algorithm.backups={backups}",
        f"algorithm.learning_rate={(WORKERS - backups) * STEP:g}",
    )
    for backups in (1,)
}
METHODS["AD-PSGD"] = ("algorithm=ad_psgd", AVERAGE)
METHODS["all-reduce"] = ("algorithm=all_reduce", AVERAGE)
LENGTH = ("budget.epochs=8", "budget.observations=40", f"algorithm.batch_size={BATCH}")
CASES = [
    Case(
        {"situation": situation, "method": method, "seed": seed},
        (*settings, *LENGTH, hardware, f"hardware.num_workers={WORKERS}", f"seed={seed}"),
    )
    for situation, hardware in SITUATIONS.items()
    for method, settings in METHODS.items()
    for seed in SEEDS
]


def speedup(rows: Sequence[Row], situation: str, method: str) -> float:
    """In time to the target: of servers over BSP, of those who average over all-reduce."""
    base = "all-reduce" if method == "AD-PSGD" else "SSP 0"
    ours, theirs = (mean(rows, "target/time_s", situation=situation, method=name) for name in (method, base))
    return theirs / ours


def figures(rows: Sequence[Row]) -> Figures:
    """Speedups, and epochs to the target over BSP's."""
    found: Figures = {}
    for situation in SITUATIONS:
        found[situation] = {method: speedup(rows, situation, method) for method in METHODS if method[-2:] != " 0"}
    epochs = {name: mean(rows, "stat/epochs_to_target", situation="jitter", method=name) for name in METHODS}
    found["more_updates"] = {name: epochs[name] / epochs["SSP 0"] - 1 for name in ("SSP 1", "SSP 3", "SSP 10")}
    return short(found)


BARS = {
    "BSP (servers, s = 0)": "SSP 0",
    "SSP, s = 1": "SSP 1",
    "SSP, s = 3": "SSP 3",
    "SSP, s = 10": "SSP 10",
    "backup workers, b = 1": "backup 1",
    "all-reduce": "all-reduce",
    "AD-PSGD, ring": "AD-PSGD",
}
TITLES = {
    "jitter": "Every batch's time is drawn anew",
    "straggler": "One worker is always 5 times as slow",
}


def draw(rows: Sequence[Row], panels: Sequence["Axes"]) -> None:
    """Milliseconds to the target: a bar for the mean over seeds, a dot for each."""
    from experiments.drawing import BLUE, GREEN, GREY, ORANGE, bars  # noqa: PLC0415 - matplotlib is optional

    colours = (GREY, BLUE, BLUE, BLUE, ORANGE, GREY, GREEN)
    for axes, (situation, title) in zip(panels, TITLES.items(), strict=True):
        found = {name: where(rows, situation=situation, method=method) for name, method in BARS.items()}
        bars(axes, {name: [1e3 * row["target/time_s"] for row in own] for name, own in found.items()}, colours)
        axes.set_title(title)
        axes.set_xlabel("virtual ms to the target")


EXPERIMENT = Experiment(Path(__file__).parent, CASES, figures, draw, panels=2)

if __name__ == "__main__":
    sys.exit(EXPERIMENT.main(sys.argv[1:]))
