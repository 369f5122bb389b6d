"""python -m experiments.buffered_federated: rounds wait for their slowest client, a buffer does not."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.sweeping import SEEDS, Case, Experiment, Figures, Row, mean, short, where

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COMMON = (
    "algorithm.num_clients=100",
    "algorithm.local_epochs=3",
    "algorithm.batch_size=14",
    "algorithm.learning_rate=0.2",
    "algorithm/partition=dirichlet",
    "hardware.num_workers=10",
    "budget.epochs=20",
    "budget.observations=80",
)
METHODS = {  # ten clients at a time, and a server's step along ten changes or five
    "FedAvg": ("algorithm=federated", "algorithm.participation=0.1"),
    "FedBuff, K = 10": ("algorithm=fedbuff", "algorithm.buffer_size=10"),
    "FedBuff, K = 5": ("algorithm=fedbuff", "algorithm.buffer_size=5"),
}
DEVICES = ("equal", "classes")
CASES = [
    Case(
        {"devices": devices, "method": method, "seed": seed},
        (*settings, *COMMON, f"algorithm/devices={devices}", f"seed={seed}"),
    )
    for devices in DEVICES
    for method, settings in METHODS.items()
    for seed in SEEDS
]


def rounds(rows: Sequence[Row], devices: str, method: str) -> float:
    """Steps of the server to the target: of the whole run, by the share of its samples that this took."""
    found = where(rows, devices=devices, method=method)
    return sum(row["progress/update"] * row["stat/epochs_to_target"] / row["progress/epoch"] for row in found) / len(
        found
    )


def time_s(rows: Sequence[Row], devices: str, method: str) -> float:
    """To the target."""
    return mean(rows, "target/time_s", devices=devices, method=method)


def figures(rows: Sequence[Row]) -> Figures:
    """Rounds and seconds to the target, mean over seeds, and those of FedBuff over FedAvg's."""
    found: Figures = {}
    for devices in DEVICES:
        many = {method: rounds(rows, devices, method) for method in METHODS}
        long_s = {method: time_s(rows, devices, method) for method in METHODS}
        found[devices] = {method: {"rounds": many[method], "time_s": long_s[method]} for method in METHODS}
        for method in ("FedBuff, K = 10", "FedBuff, K = 5"):
            found[devices][method] |= {"more_rounds": many[method] / many["FedAvg"]}
            found[devices][method] |= {"speedup": long_s["FedAvg"] / long_s[method]}
    return short(found)


def draw(rows: Sequence[Row], panels: Sequence["Axes"]) -> None:
    """Rounds and seconds to the target, where devices differ: a bar for the mean over seeds, a dot for each."""
    from experiments.drawing import BLUE, GREY, SKY, bars  # noqa: PLC0415 - matplotlib is optional

    found = {method: where(rows, devices="classes", method=method) for method in METHODS}
    many = {name: [rounds([row], "classes", name) for row in own] for name, own in found.items()}
    long_ms = {name: [1e3 * row["target/time_s"] for row in own] for name, own in found.items()}
    for axes, values, words in zip(panels, (many, long_ms), ("server's steps", "virtual ms"), strict=True):
        bars(axes, values, (GREY, BLUE, SKY))
        axes.set_xlabel(f"{words} to the target")
    panels[0].set_title("More rounds")
    panels[1].set_title("Less time")


EXPERIMENT = Experiment(Path(__file__).parent, CASES, figures, draw, panels=2)

if __name__ == "__main__":
    sys.exit(EXPERIMENT.main(sys.argv[1:]))
