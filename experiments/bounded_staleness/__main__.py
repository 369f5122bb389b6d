"""python -m experiments.bounded_staleness: who waits for whom, under jitter and with a permanent straggler."""

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.sweeping import SEEDS, Case, Experiment, Figures, Row, mean, short, where

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WORKERS, BATCH = 8, 16
STEPS = (0.07, 0.1, 0.14, 0.2, 0.28)  # along the gradient of one batch; under jitter everyone has its best
SAME = 0.1  # with a straggler
SITUATIONS = {"jitter": "hardware.compute.jitter=exponential", "straggler": "hardware.stragglers={3: 5.0}"}
SERVER = "algorithm=parameter_server"
METHODS: dict[str, tuple[str, ...]] = {
    f"SSP {staleness}": (SERVER, "algorithm.consistency=bounded_staleness", f"algorithm.staleness={staleness}")
    for staleness in (0, 3, 10)
}
METHODS["backup 1"] = (SERVER, "algorithm.consistency=backup_workers", "algorithm.backups=1")
METHODS["AD-PSGD"] = ("algorithm=ad_psgd",)
METHODS["all-reduce"] = ("algorithm=all_reduce",)
# Whoever averages takes a step as many times as long as it averages batches: a sample moves the model by the same.
AVERAGED = {"backup 1": WORKERS - 1, "AD-PSGD": WORKERS, "all-reduce": WORKERS}
EPOCHS, LONGER = 6, 24


def case(situation: str, method: str, step: float, seed: int, epochs: int = EPOCHS) -> Case:
    """One run."""
    length = (f"budget.epochs={epochs}", "budget.observations=40", f"algorithm.batch_size={BATCH}")
    step_size = f"algorithm.learning_rate={AVERAGED.get(method, 1) * step:g}"
    workers = SITUATIONS[situation], f"hardware.num_workers={WORKERS}", f"seed={seed}"
    labels = {"situation": situation, "method": method, "step": step, "seed": seed, "epochs": epochs}
    return Case(labels, (*METHODS[method], step_size, *length, *workers))


CASES = [case("jitter", method, step, seed) for method in METHODS for step in STEPS for seed in SEEDS]
CASES += [case("straggler", method, SAME, seed) for method in METHODS for seed in SEEDS]
CASES += [case("straggler", method, SAME, 0, LONGER) for method in ("SSP 0", "SSP 3", "SSP 10")]


def chosen(rows: Sequence[Row], situation: str, method: str) -> list[Row]:
    """All seeds' rows: under jitter those of the step that reaches the target first, in the mean."""
    found = where(rows, situation=situation, method=method, epochs=EPOCHS)
    reached = {step: mean(found, "target/time_s", step=step) for step in {row["step"] for row in found}}
    best = min((step for step in reached if math.isfinite(reached[step])), key=lambda step: reached[step])
    return where(found, step=best)


def speedup(rows: Sequence[Row], situation: str, method: str) -> float:
    """In time to the target: of servers over BSP, of those who average over all-reduce."""
    base = "all-reduce" if method == "AD-PSGD" else "SSP 0"
    ours, theirs = (mean(chosen(rows, situation, name), "target/time_s") for name in (method, base))
    return theirs / ours


def throughput(rows: Sequence[Row], situation: str, method: str, epochs: int = EPOCHS) -> float:
    """Over BSP's."""
    ours, theirs = (
        mean(rows, "perf/samples_per_s", situation=situation, method=name, step=SAME, seed=0, epochs=epochs)
        for name in (method, "SSP 0")
    )
    return ours / theirs


def figures(rows: Sequence[Row]) -> Figures:
    """Speedups, each one's best step and its updates over BSP's, all under jitter; what is left of a head start."""
    found: Figures = {}
    for situation in SITUATIONS:
        found[situation] = {method: speedup(rows, situation, method) for method in METHODS if method != "SSP 0"}
    best = {method: chosen(rows, "jitter", method) for method in METHODS}
    found["best_step"] = {method: own[0]["step"] for method, own in best.items()}
    epochs = {method: mean(own, "stat/epochs_to_target") for method, own in best.items()}
    found["updates"] = {name: epochs[name] / epochs["SSP 0"] for name in ("SSP 3", "SSP 10")}
    same = {name: mean(rows, "stat/epochs_to_target", situation="jitter", method=name, step=SAME) for name in METHODS}
    found["updates_same_step"] = {name: same[name] / same["SSP 0"] for name in ("SSP 3", "SSP 10")}
    found["jitter_throughput"] = {name: throughput(rows, "jitter", name) for name in ("SSP 3", "SSP 10")}
    found["straggler_throughput"] = {
        method: {f"{epochs} epochs": throughput(rows, "straggler", method, epochs) for epochs in (EPOCHS, LONGER)}
        for method in ("SSP 3", "SSP 10")
    }
    return short(found)


BARS = {
    "BSP (servers, s = 0)": "SSP 0",
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

    colours = (GREY, BLUE, BLUE, ORANGE, GREY, GREEN)
    for axes, (situation, title) in zip(panels, TITLES.items(), strict=True):
        found = {name: chosen(rows, situation, method) for name, method in BARS.items()}
        bars(axes, {name: [1e3 * row["target/time_s"] for row in own] for name, own in found.items()}, colours)
        axes.set_title(title)
        axes.set_xlabel("virtual ms to the target")


EXPERIMENT = Experiment(Path(__file__).parent, CASES, figures, draw, panels=2)

if __name__ == "__main__":
    sys.exit(EXPERIMENT.main(sys.argv[1:]))
