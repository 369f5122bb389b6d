"""python -m experiments.gossip_crossover: where averaging with two neighbours pays, by latency and by bandwidth.

All methods here are in lockstep, without jitter: every step takes the same time, whatever its values, and values do not
depend on the network. So whole runs tell epochs to the target, short ones samples per second, and time to the target is
their quotient (docs/metrics.md).
"""

import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.sweeping import SEEDS, Case, Experiment, Figures, Row, mean, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LATENCIES_S = (1e-6, 1e-5, 5e-5, 2e-4, 1e-3, 5e-3)
BANDWIDTHS = (1.25e9, 1.25e8, 5e7, 2.5e7, 1.25e7, 5e6, 1.25e6)  # bytes/s of a port
METHODS = {
    "all-reduce": ("algorithm=all_reduce",),
    "D-PSGD": ("algorithm=gossip", "algorithm.overlap=true"),
    "D-PSGD, no overlap": ("algorithm=gossip", "algorithm.overlap=false"),
}
COMMON = (  # operators are charged one by one: with hardware/compute=fixed nothing overlaps
    "hardware/compute=cascade_lake_core",
    "hardware.compute.operator_overhead_s=5e-5",
    "hardware.num_workers=8",
    "algorithm.batch_size=16",
    "algorithm.learning_rate=0.2",
)
SHORT, WHOLE = ("budget.epochs=0.5", "budget.observations=1"), ("budget.epochs=12", "budget.observations=96")


def network(latency_s: float, bandwidth: float) -> tuple[str, str]:
    """Its settings."""
    return f"hardware.network.latency_s={latency_s}", f"hardware.network.bandwidth_bytes_per_s={bandwidth}"


NETWORKS = [*((latency_s, BANDWIDTHS[0]) for latency_s in LATENCIES_S), *((1e-6, width) for width in BANDWIDTHS[1:])]
CASES = [
    Case(
        {"method": method, "latency_s": latency_s, "bandwidth_bytes_per_s": bandwidth},
        (*settings, *COMMON, *SHORT, *network(latency_s, bandwidth)),
    )
    for method, settings in METHODS.items()
    for latency_s, bandwidth in NETWORKS
]
CASES += [
    Case({"method": method, "seed": seed}, (*settings, *COMMON, *WHOLE, f"seed={seed}"))
    for method, settings in METHODS.items()
    for seed in SEEDS
]


def epochs(rows: Sequence[Row], method: str) -> float:
    """To the target, mean over seeds."""
    return sum(mean(rows, "stat/epochs_to_target", method=method, seed=seed) for seed in SEEDS) / len(SEEDS)


def speedup(rows: Sequence[Row], method: str, latency_s: float, bandwidth: float) -> float:
    """Over all-reduce, in time to the target."""
    place = {"latency_s": latency_s, "bandwidth_bytes_per_s": bandwidth}
    rates = [mean(rows, "perf/samples_per_s", method=name, **place) for name in (method, "all-reduce")]
    return rates[0] / rates[1] * epochs(rows, "all-reduce") / epochs(rows, method)


def crossings(places: Sequence[float], gains: Sequence[float]) -> list[float]:
    """Where a curve goes through 1, interpolated between logarithms of places."""
    found = []
    for (left, before), (right, after) in pairwise(zip(places, gains, strict=True)):
        if (before < 1) != (after < 1):
            found.append(left * (right / left) ** ((1 - before) / (after - before)))
    return found


def figures(rows: Sequence[Row]) -> Figures:
    """Epochs to the target, and speedups over all-reduce."""
    found: Figures = {"epochs": {method: epochs(rows, method) for method in METHODS}}
    for method in ("D-PSGD", "D-PSGD, no overlap"):
        found[method] = {
            f"{latency_s:g} s, {bandwidth:g} bytes/s": speedup(rows, method, latency_s, bandwidth)
            for latency_s, bandwidth in NETWORKS
        }
    by_latency = [speedup(rows, "D-PSGD", latency_s, BANDWIDTHS[0]) for latency_s in LATENCIES_S]
    by_bandwidth = [speedup(rows, "D-PSGD", 1e-6, bandwidth) for bandwidth in BANDWIDTHS]
    found["crossover_latency_s"] = crossings(LATENCIES_S, by_latency)
    found["crossover_bandwidth_bytes_per_s"] = crossings(BANDWIDTHS, by_bandwidth)
    return short(found)


def draw(rows: Sequence[Row], panels: Sequence["Axes"]) -> None:
    """Speedups over all-reduce, by latency and by bandwidth."""
    from experiments.drawing import BLUE, GREY, ORANGE, bits_per_s, log_ticks, seconds, times  # noqa: PLC0415 - optional

    by_latency, by_bandwidth = panels
    shown = (1e-6, 1e-5, 1e-4, 1e-3)
    log_ticks(by_latency, "x", shown, [seconds(latency_s) for latency_s in shown])
    shown = (1.25e9, 1.25e8, 1.25e7, 1.25e6)
    log_ticks(by_bandwidth, "x", shown, [bits_per_s(bandwidth) for bandwidth in shown])
    by_bandwidth.invert_xaxis()
    log_ticks(by_latency, "y", (1, 2, 5, 10), ("1x", "2x", "5x", "10x"))
    for method, colour in (("D-PSGD", BLUE), ("D-PSGD, no overlap", ORANGE)):
        gains = [speedup(rows, method, latency_s, BANDWIDTHS[0]) for latency_s in LATENCIES_S]
        by_latency.plot(LATENCIES_S, gains, "o-", color=colour)
        gains = [speedup(rows, method, 1e-6, bandwidth) for bandwidth in BANDWIDTHS]
        by_bandwidth.plot(BANDWIDTHS, gains, "o-", color=colour)
        by_bandwidth.text(BANDWIDTHS[2], gains[2] + 0.015, method, color=colour, ha="center")
    for axes in panels:
        axes.axhline(1, color=GREY, linestyle=":")
    times(by_bandwidth.yaxis)
    by_bandwidth.set_ylim(0.8, 1.35)
    by_latency.set_ylabel("speedup over ring all-reduce")
    by_latency.set_xlabel("latency of a link, at 10 Gb/s")
    by_bandwidth.set_xlabel("bandwidth of a port, at 1 µs")
    by_latency.set_title("A step waits for 1 message, not for 14")
    by_bandwidth.set_title("A port sends 2 models, not 1.75")


EXPERIMENT = Experiment(Path(__file__).parent, CASES, figures, draw, panels=2)

if __name__ == "__main__":
    sys.exit(EXPERIMENT.main(sys.argv[1:]))
