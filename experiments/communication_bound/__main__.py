"""python -m experiments.communication_bound: more workers share one batch, until their messages cost more than it."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.sweeping import Case, Experiment, Figures, Row, mean, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GLOBAL_BATCH, SAMPLE_S = 256, 1e-4
PARAMETER_BYTES, BYTES_PER_S = 4 * 4810, 0.941 * 1.25e9  # of digits_mlp; of a port, without the packets' headers
WORKERS = (1, 2, 4, 8, 16, 32, 64)
LATENCIES_S = (1e-5, 5e-5, 2e-4)
LENGTH = ("budget.epochs=14", "budget.observations=70", "algorithm.learning_rate=0.8")
CASES = [
    Case(
        {"latency_s": latency_s, "workers": workers},
        (
            "algorithm=all_reduce",
            f"algorithm.batch_size={GLOBAL_BATCH // workers}",
            f"hardware.num_workers={workers}",
            f"hardware.network.latency_s={latency_s}",
            *LENGTH,
        ),
    )
    for latency_s in LATENCIES_S
    for workers in WORKERS
]


def speedup(rows: Sequence[Row], latency_s: float, workers: int) -> float:
    """In time to the target over one worker with the same global batch, which takes the same steps."""
    alone, together = (mean(rows, "target/time_s", latency_s=latency_s, workers=count) for count in (1, workers))
    return alone / together


def predicted(latency_s: float, workers: float) -> float:
    """The same in closed form: computing is divided by P, a ring takes 2 (P - 1) messages of 1/P of the gradient."""
    batch_s = GLOBAL_BATCH * SAMPLE_S
    message_s = latency_s + PARAMETER_BYTES / workers / BYTES_PER_S
    return batch_s / (batch_s / workers + 2 * (workers - 1) * message_s)


def figures(rows: Sequence[Row]) -> Figures:
    """Speedups by latency and workers, where they peak, and the closed form's largest error."""
    found: Figures = {}
    for latency_s in LATENCIES_S:
        curve = {workers: speedup(rows, latency_s, workers) for workers in WORKERS}
        peak = max(WORKERS, key=lambda workers: curve[workers])
        error = max(abs(predicted(latency_s, workers) / curve[workers] - 1) for workers in WORKERS)
        found[f"{latency_s:g} s"] = {"peak": peak, **{str(workers): gain for workers, gain in curve.items()}}
        found[f"{latency_s:g} s"]["closed_form_error"] = error
    return short(found)


def draw(rows: Sequence[Row], panels: Sequence["Axes"]) -> None:
    """Simulated points on the curves of the closed form."""
    from experiments.drawing import BLUE, GREEN, GREY, RED, beside, log_ticks, seconds  # noqa: PLC0415 - optional

    (axes,) = panels
    log_ticks(axes, "x", WORKERS, [str(workers) for workers in WORKERS])
    log_ticks(axes, "y", WORKERS[:6], [f"{gain}x" for gain in WORKERS[:6]])
    axes.plot([1, 26], [1, 26], ":", color=GREY)
    axes.text(20, 25, "ideal ", color=GREY, ha="right")
    fine = [2 ** (step / 8) for step in range(6 * 8 + 1)]
    for latency_s, colour in zip(LATENCIES_S, (BLUE, GREEN, RED), strict=True):
        axes.plot(fine, [predicted(latency_s, workers) for workers in fine], color=colour, linewidth=1)
        axes.plot(WORKERS, [speedup(rows, latency_s, workers) for workers in WORKERS], "o", color=colour)
        beside(axes, WORKERS[-1], speedup(rows, latency_s, WORKERS[-1]), seconds(latency_s), colour)
    axes.set_ylim(0.7, 28)
    axes.set_xlabel("workers that share a batch of 256")
    axes.set_ylabel("speedup to the target")
    axes.set_title("Dots simulated, lines in closed form")
    axes.text(64, 21, "latency of\na link", color=GREY, ha="left")


EXPERIMENT = Experiment(Path(__file__).parent, CASES, figures, draw)

if __name__ == "__main__":
    sys.exit(EXPERIMENT.main(sys.argv[1:]))
