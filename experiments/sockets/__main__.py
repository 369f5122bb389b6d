"""python -m experiments.sockets: workers on four sockets share one model, or a replica each socket, or one each."""

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.sweeping import Case, Experiment, Figures, Row, mean, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WORKERS = (1, 2, 4, 8, 16, 32, 64)
SHARINGS = {"shared": "one model", "replica_per_node": "one a socket", "replica_per_worker": "one a worker"}
MACHINE = (
    "hardware=sim_numa4",
    "hardware/compute=cascade_lake_core",
    "hardware.memory.cores_per_socket=16",
    f"hardware.memory.local_bytes_per_s={113.1e9 / 16}",  # cores share their socket's bandwidth
    f"hardware.memory.remote_bytes_per_s={34.3e9 / 16}",
    "data=sharded_per_node",
)
RUN = (
    "problem=logistic_regression",
    "problem.synthetic_samples=20000",
    "algorithm=hogwild",
    "algorithm.merge_every=1024",
    "budget.epochs=15",
    "budget.observations=150",
)
CASES = [
    Case(
        {"sharing": sharing, "workers": workers},
        (*MACHINE, *RUN, f"algorithm.sharing={sharing}", f"hardware.num_workers={workers}"),
    )
    for sharing in SHARINGS
    for workers in WORKERS
]


def speedup(rows: Sequence[Row], key: str, sharing: str, workers: int) -> float:
    """Over one worker: of a key that is a rate, or a time."""
    alone, together = (mean(rows, key, sharing=sharing, workers=count) for count in (1, workers))
    return alone / together if key.endswith("time_s") else together / alone


def figures(rows: Sequence[Row]) -> Figures:
    """Speedups by sharing and workers; nan where the target was not reached."""
    return short(
        {
            name: {
                sharing: {str(workers): speedup(rows, key, sharing, workers) for workers in WORKERS}
                for sharing in SHARINGS
            }
            for name, key in (("throughput", "perf/samples_per_s"), ("to the target", "target/time_s"))
        }
    )


def draw(rows: Sequence[Row], panels: Sequence["Axes"]) -> None:
    """Throughput, and time to the target, by workers."""
    from experiments.drawing import BLUE, GREEN, GREY, RED, line, log_ticks  # noqa: PLC0415 - optional

    colours = dict(zip(SHARINGS, (RED, GREEN, BLUE), strict=True))
    for axes, (title, curves) in zip(panels, figures(rows).items(), strict=True):
        log_ticks(axes, "x", WORKERS, [str(workers) for workers in WORKERS])
        log_ticks(axes, "y", (0.5, *WORKERS), [f"{gain:g}x" for gain in (0.5, *WORKERS)])
        axes.plot(WORKERS, WORKERS, ":", color=GREY)
        for sharing, curve in curves.items():
            reached = {int(workers): gain for workers, gain in curve.items() if not math.isnan(gain)}
            line(axes, [*reached], [*reached.values()], colours[sharing], SHARINGS[sharing])
        axes.set_xlabel("workers on four sockets")
        axes.set_title(f"Speedup: {title}")


EXPERIMENT = Experiment(Path(__file__).parent, CASES, figures, draw, panels=2)

if __name__ == "__main__":
    sys.exit(EXPERIMENT.main(sys.argv[1:]))
