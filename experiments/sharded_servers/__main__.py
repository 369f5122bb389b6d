"""python -m experiments.sharded_servers: two messages in a row against 2 (P - 1) of a ring."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.sweeping import Case, Experiment, Figures, Row, mean, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LATENCIES_S = (1e-5, 1e-4, 1e-3, 1e-2)
SERVERS = (1, 2, 4, 8)
METHODS: dict[str, tuple[str, ...]] = {
    "ring": ("algorithm=all_reduce",),
    "halving-doubling": ("algorithm=all_reduce", "hardware.protocol.algorithms={all_reduce: halving_doubling}"),
}
METHODS |= {
    f"{count} server{'s' * (count > 1)}": (
        "algorithm=parameter_server",
        "algorithm.consistency=synchronous",
        f"algorithm.num_servers={count}",
    )
    for count in SERVERS
}
COMMON = (
    "algorithm.batch_size=16",
    "hardware.num_workers=8",
    "hardware.network.bandwidth_bytes_per_s=1.25e8",
    "budget.epochs=1",
    "budget.observations=1",
)
CASES = [
    Case(
        {"latency_s": latency_s, "method": method},
        (*settings, *COMMON, f"hardware.network.latency_s={latency_s}"),
    )
    for latency_s in LATENCIES_S
    for method, settings in METHODS.items()
]


def step_s(rows: Sequence[Row], latency_s: float, method: str) -> float:
    """Seconds of a step of 8 x 16 samples; all methods take the same steps."""
    return 8 * 16 / mean(rows, "perf/samples_per_s", latency_s=latency_s, method=method)


def figures(rows: Sequence[Row]) -> Figures:
    """Throughput over the ring's, by latency."""
    return short(
        {
            f"{latency_s:g} s": {
                method: step_s(rows, latency_s, "ring") / step_s(rows, latency_s, method) for method in METHODS
            }
            for latency_s in LATENCIES_S
        }
    )


def draw(rows: Sequence[Row], panels: Sequence["Axes"]) -> None:
    """Throughput over the ring's, by latency."""
    from experiments.drawing import BLUE, GREY, ORANGE, SKY, log_ticks, seconds, times  # noqa: PLC0415 - optional

    (axes,) = panels
    gains = figures(rows)
    log_ticks(axes, "x", LATENCIES_S, [seconds(latency_s) for latency_s in LATENCIES_S])
    for method, colour in {"ring": GREY, "halving-doubling": ORANGE, "1 server": SKY, "8 servers": BLUE}.items():
        curve = [found[method] for found in gains.values()]
        axes.plot(LATENCIES_S, curve, "o-", color=colour)
        va, ha = ("top", "left") if method == "1 server" else ("bottom", "right")
        axes.text(LATENCIES_S[2], curve[2], f" {method} ", color=colour, va=va, ha=ha)
    times(axes.yaxis)
    axes.set_ylim(0, 6.8)
    axes.set_xlabel("latency of a link, at 1 Gb/s")
    axes.set_ylabel("throughput over that of ring all-reduce")
    axes.set_title("8 workers, batches of 16, the same steps")


EXPERIMENT = Experiment(Path(__file__).parent, CASES, figures, draw)

if __name__ == "__main__":
    sys.exit(EXPERIMENT.main(sys.argv[1:]))
