"""python -m experiments.large_batches: one step of a large batch, or as many local steps, between two messages."""

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.sweeping import SEEDS, Case, Experiment, Figures, Row, mean, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WORKERS, BATCH = 8, 8
PERIODS = (1, 2, 4, 8, 16)  # batches of a worker between two messages
STEPS = {"all-reduce": (0.4, 0.8, 1.13, 1.6), "local SGD": (0.4, 0.8)}  # learning rates tried; the best one counts
METHODS = {
    "all-reduce": lambda period: (
        "algorithm=all_reduce",
        f"algorithm.batch_size={BATCH * period}",
        f"budget.epochs={4 + 2 * period}",
        f"budget.observations={8 * (4 + 2 * period)}",
    ),
    "local SGD": lambda period: (
        "algorithm=local_sgd",
        f"algorithm.batch_size={BATCH}",
        f"algorithm.period={period}",
        "budget.epochs=6",
        "budget.observations=48",
    ),
}
CASES = [
    Case(
        {"method": method, "period": period, "learning_rate": rate, "seed": seed},
        (*settings(period), f"hardware.num_workers={WORKERS}", f"algorithm.learning_rate={rate}", f"seed={seed}"),
    )
    for method, settings in METHODS.items()
    for period in PERIODS
    for rate in STEPS[method]
    for seed in SEEDS
]


def best(rows: Sequence[Row], method: str, period: int) -> tuple[float, float]:
    """The fewest epochs to the target, mean over seeds, and the learning rate that did it."""
    found = {
        rate: mean(rows, "stat/epochs_to_target", method=method, period=period, learning_rate=rate)
        for rate in STEPS[method]
    }
    reached = {rate: epochs for rate, epochs in found.items() if not math.isnan(epochs)}
    return min((epochs, rate) for rate, epochs in reached.items())


def efficiency(rows: Sequence[Row], method: str, period: int) -> float:
    """Epochs to the target of all-reduce at every batch, over those of this method."""
    return best(rows, "all-reduce", 1)[0] / best(rows, method, period)[0]


def figures(rows: Sequence[Row]) -> Figures:
    """Epochs and learning rate by method and period, and efficiencies."""
    found: Figures = {}
    for method in METHODS:
        found[method] = {}
        for period in PERIODS:
            epochs, rate = best(rows, method, period)
            kept = efficiency(rows, method, period)
            found[method][str(period)] = {"epochs": epochs, "learning_rate": rate, "efficiency": kept}
    return short(found)


def draw(rows: Sequence[Row], panels: Sequence["Axes"]) -> None:
    """Statistical efficiency, by samples of all workers between two messages."""
    from experiments.drawing import BLUE, GREEN, line, log_ticks  # noqa: PLC0415 - matplotlib is optional

    (axes,) = panels
    samples = [WORKERS * BATCH * period for period in PERIODS]
    log_ticks(axes, "x", samples, [str(count) for count in samples])
    for method, colour in zip(METHODS, (BLUE, GREEN), strict=True):
        line(axes, samples, [efficiency(rows, method, period) for period in PERIODS], colour, method)
    axes.set_ylim(0, 1.05)
    axes.set_xlabel("samples of all 8 workers between two messages")
    axes.set_ylabel("statistical efficiency")
    axes.set_title("1 is all-reduce with batches of 64")


EXPERIMENT = Experiment(Path(__file__).parent, CASES, figures, draw)

if __name__ == "__main__":
    sys.exit(EXPERIMENT.main(sys.argv[1:]))
