"""python -m experiments.local_period: how many local steps pay, by bandwidth.

Workers are in lockstep, without jitter, and values do not depend on the network: as in `gossip_crossover`, whole runs
tell epochs to the target, short ones seconds per epoch, and time to the target is their product. A period is given the
step that suits it.
"""

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.sweeping import SEEDS, Case, Experiment, Figures, Row, mean, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PERIODS = (1, 2, 4, 8, 16, 32, 64, 128)
STEPS = (0.4, 0.8)  # learning rates tried; the best of a period counts
BANDWIDTHS = (1.25e9, 1.25e8, 1.25e7, 1.25e6)  # bytes/s of a port
COMMON = (
    "algorithm=local_sgd",
    "algorithm.batch_size=8",
    "hardware.num_workers=8",
    "hardware.network.latency_s=1e-6",
)
SHORT = (f"budget.epochs={128 * 64 / 1438}", "budget.observations=1")  # 128 steps of every worker: whole periods
WHOLE = ("budget.epochs=16", "budget.observations=128")
CASES = [
    Case(
        {"bandwidth_bytes_per_s": bandwidth, "period": period},
        (*COMMON, *SHORT, f"algorithm.period={period}", f"hardware.network.bandwidth_bytes_per_s={bandwidth}"),
    )
    for bandwidth in BANDWIDTHS
    for period in PERIODS
]
CASES += [
    Case(
        {"period": period, "learning_rate": rate, "seed": seed},
        (*COMMON, *WHOLE, f"algorithm.period={period}", f"algorithm.learning_rate={rate}", f"seed={seed}"),
    )
    for period in PERIODS
    for rate in STEPS
    for seed in SEEDS
]


def by_step(rows: Sequence[Row], period: int) -> dict[float, float]:
    """Epochs to the target, mean over seeds, by learning rate; those that never get there left out."""
    found = {rate: mean(rows, "stat/epochs_to_target", period=period, learning_rate=rate) for rate in STEPS}
    return {rate: epochs for rate, epochs in found.items() if not math.isnan(epochs)}


def time_s(rows: Sequence[Row], bandwidth: float, period: int) -> float:
    """To the target."""
    epoch_s = mean(rows, "perf/time_per_epoch_s", bandwidth_bytes_per_s=bandwidth, period=period)
    return epoch_s * min(by_step(rows, period).values())


def figures(rows: Sequence[Row]) -> Figures:
    """By bandwidth: the best period, and seconds to the target of each; epochs to the target by step and period."""
    found: Figures = {
        f"epochs, step {rate}": {str(period): by_step(rows, period).get(rate) for period in PERIODS} for rate in STEPS
    }
    for bandwidth in BANDWIDTHS:
        seconds = {period: time_s(rows, bandwidth, period) for period in PERIODS}
        best = min(PERIODS, key=lambda period: seconds[period])
        found[f"{bandwidth:g} bytes/s"] = {"best": best, **{str(period): value for period, value in seconds.items()}}
    return short(found)


def draw(rows: Sequence[Row], panels: Sequence["Axes"]) -> None:
    """Seconds to the target by period, the best of each bandwidth marked."""
    from experiments.drawing import BLUE, GREEN, ORANGE, RED, bits_per_s, line, log_ticks  # noqa: PLC0415 - optional

    (axes,) = panels
    log_ticks(axes, "x", PERIODS, [str(period) for period in PERIODS])
    log_ticks(axes, "y", (0.05, 0.1, 0.2, 0.5, 1), ("0.05", "0.1", "0.2", "0.5", "1"))
    for bandwidth, colour in zip(BANDWIDTHS, (BLUE, GREEN, ORANGE, RED), strict=True):
        seconds = [time_s(rows, bandwidth, period) for period in PERIODS]
        line(axes, PERIODS, seconds, colour)
        offset = -12 if bandwidth == BANDWIDTHS[0] else 4
        axes.annotate(bits_per_s(bandwidth), (1, seconds[0]), (5, offset), textcoords="offset points", color=colour)
        best = min(range(len(PERIODS)), key=seconds.__getitem__)
        axes.plot(PERIODS[best], seconds[best], "o", markersize=9, markerfacecolor="none", color=colour)
    axes.set_ylim(0.025, 2)
    axes.set_xlabel("steps between two averages (ring: the best)")
    axes.set_ylabel("virtual s to the target")
    axes.set_title("8 workers, batches of 8, by bandwidth of a port")


EXPERIMENT = Experiment(Path(__file__).parent, CASES, figures, draw)

if __name__ == "__main__":
    sys.exit(EXPERIMENT.main(sys.argv[1:]))
