"""python -m experiments.pipeline_depth: pipelines of more stages, in more micro-batches, in other orders of passes."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.sweeping import Case, Experiment, Figures, Row, mean, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WORKERS = (1, 2, 4, 8)
BATCH, WIDTH = 1024, 256
LATENCY_S, BYTES_PER_S = 5e-5, 0.941 * 3.125e9  # of a link; of a port at 25 Gb/s, without the packets' headers
MICRO_BATCHES = (1, 2, 4, 8, 16, 32, 64)
COMMON = (
    "hardware/compute=cascade_lake_core",  # operators are charged one by one: hardware/compute=fixed knows no stages
    f"problem.hidden_sizes={[WIDTH] * 17}",  # 16 equal products, between a small first one and a small last one
    f"algorithm.batch_size={BATCH}",
    "algorithm.learning_rate=0.01",
    "hardware.network.bandwidth_bytes_per_s=3.125e9",
    "budget.observations=1",
)
FEW = "budget.epochs=1.4"  # two batches
MANY = "budget.epochs=28"  # forty, for which PipeDream fills and drains the pipeline once
DEEPEST, BUSY = 8, 16
ORDERS = {
    "model parallel": ("algorithm=model_parallel", FEW),
    "GPipe": ("algorithm/pipeline_schedule=gpipe", FEW),
    "1F1B": ("algorithm/pipeline_schedule=one_f_one_b", FEW),
    "interleaved": ("algorithm/pipeline_schedule=interleaved", FEW),
    "ZB-H1": ("algorithm/pipeline_schedule=zero_bubble", FEW),
    "ZB-V": ("algorithm/pipeline_schedule=zero_bubble_v", FEW),
    "PipeDream": ("algorithm=pipedream", MANY),
}
CASES = [
    Case(
        {"workers": workers, "micro_batches": micro_batches},
        (
            "algorithm=pipeline",
            "algorithm/pipeline_schedule=gpipe",
            f"algorithm.micro_batches={micro_batches}",
            f"hardware.num_workers={workers}",
            FEW,
            *COMMON,
        ),
    )
    for workers in WORKERS
    for micro_batches in MICRO_BATCHES
] + [
    Case(
        {"order": order},
        (
            *(() if chosen[0].startswith("algorithm=") else ("algorithm=pipeline", f"algorithm.micro_batches={BUSY}")),
            *chosen,
            f"hardware.num_workers={DEEPEST}",
            *COMMON,
        ),
    )
    for order, chosen in ORDERS.items()
]


def speedup(rows: Sequence[Row], workers: int, micro_batches: int) -> float:
    """In throughput, over one worker that does a batch in one piece."""
    pace = mean(rows, "perf/samples_per_s", workers=workers, micro_batches=micro_batches)
    return pace / mean(rows, "perf/samples_per_s", workers=1, micro_batches=1)


def predicted(rows: Sequence[Row], workers: int, micro_batches: int) -> float:
    """The same in closed form: m + p - 1 turns, each a p-th of one worker's passes, and two messages."""
    alone_s, pieces_s = (
        BATCH / mean(rows, "perf/samples_per_s", workers=1, micro_batches=m) for m in (1, micro_batches)
    )
    message_s = (LATENCY_S + BATCH / micro_batches * 4 * WIDTH / BYTES_PER_S) if workers > 1 else 0
    turn_s = pieces_s / micro_batches / workers + 2 * message_s
    return alone_s / ((micro_batches + workers - 1) * turn_s)


def figures(rows: Sequence[Row]) -> Figures:
    """Speedups by workers and micro-batches; of each order, the share of time not spent computing, and its bubble."""
    found: Figures = {}
    for workers in WORKERS:
        curve = {str(m): speedup(rows, workers, m) for m in MICRO_BATCHES}
        found[f"{workers} workers"] = curve
        if workers > 1:
            errors = [abs(predicted(rows, workers, m) / speedup(rows, workers, m) - 1) for m in MICRO_BATCHES]
            curve["closed_form_error"] = max(errors)
    alone = mean(rows, "perf/samples_per_s", workers=1, micro_batches=1)
    for order in ORDERS:
        found[order] = {
            "speedup": mean(rows, "perf/samples_per_s", order=order) / alone,
            "not_computing": 1 - mean(rows, "perf/compute_frac", order=order),
            "bubble": mean(rows, "pipeline/bubble_frac", order=order),
        }
    return short(found)


def draw(rows: Sequence[Row], panels: Sequence["Axes"]) -> None:
    """Speedups over micro-batches, with the closed form; waits of each order, beside its bubble."""
    from experiments.drawing import BLUE, GREEN, GREY, RED, beside, log_ticks  # noqa: PLC0415 - optional

    left, right = panels
    log_ticks(left, "x", MICRO_BATCHES, [str(m) for m in MICRO_BATCHES])
    for workers, colour in zip(WORKERS, (GREY, BLUE, GREEN, RED), strict=True):
        left.plot(MICRO_BATCHES, [predicted(rows, workers, m) for m in MICRO_BATCHES], color=colour, linewidth=1)
        measured = [speedup(rows, workers, m) for m in MICRO_BATCHES]
        left.plot(MICRO_BATCHES, measured, "o", color=colour)
        beside(left, MICRO_BATCHES[-1], measured[-1], f"{workers}", colour)
    left.set_xlabel("micro-batches of a batch of 1,024")
    left.set_ylabel("speedup in throughput")
    left.set_title("GPipe: dots simulated, lines in closed form")
    left.text(64, left.get_ylim()[1], "workers", color=GREY, ha="left", va="top")
    found = figures(rows)
    for height, order in enumerate(ORDERS):
        own = found[order]
        right.barh(height, own["not_computing"], color=BLUE, height=0.7)
        right.plot([own["bubble"]] * 2, [height - 0.35, height + 0.35], color=RED)
        right.text(max(own["not_computing"], own["bubble"]), height, f"  {own['speedup']:.2g}x", va="center")
        right.text(0, height, f"{order}  ", va="center", ha="right")
    right.set_yticks([])
    right.invert_yaxis()
    right.set_xlim(0, 1)
    right.set_xlabel("share of time in which a worker does not compute")
    right.set_title(f"{DEEPEST} workers, {BUSY} micro-batches; red: the bubble")


EXPERIMENT = Experiment(Path(__file__).parent, CASES, figures, draw, panels=2)

if __name__ == "__main__":
    sys.exit(EXPERIMENT.main(sys.argv[1:]))
