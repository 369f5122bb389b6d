"""python -m experiments.overlap_limit: links become slower, until computing hides communication no longer."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.sweeping import Case, Experiment, Figures, Row, mean, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WORKERS, STEPS, BATCH = 4, 4, 4
SHAPE = {"layers": 6, "width": 128, "hidden": 384, "heads": 4, "key_value_heads": 4, "context": 64, "vocabulary": 256}
PARAMETERS = 2 * 256 * 128 + 6 * (4 * 128 * 128 + 3 * 128 * 384 + 2 * 128) + 128
BANDWIDTHS = (4e9, 2e9, 1e9, 5e8, 2.5e8, 1.25e8)  # bytes/s
METHODS = {
    "FSDP": ("algorithm=fsdp",),
    "FSDP, not resharded": ("algorithm=fsdp", "algorithm.reshard_after_forward=false"),
    "DDP": ("algorithm=ddp", "algorithm.bucket_bytes=700000"),  # a block of the model
    "FSDP without overlap": ("algorithm=fsdp_plain",),
}
SLOW = (  # of a device on which flops are all that counts, and messages are long
    *("hardware.compute.flops_per_s={float32: 1e11}", "hardware.compute.memory_bytes_per_s=1e30"),
    "hardware.compute.attention_efficiency=0.5",
    *(f"hardware.compute.{name}_s=0" for name in ("operator_overhead", "backward_overhead", "kernel_latency")),
    *(f"hardware.protocol.{name}_below_bytes=0" for name in ("tree", "ll", "ll128")),
)
SETTINGS = (
    *("hardware=sim_dgx", "hardware/compute=h100", f"hardware.num_workers={WORKERS}", *SLOW),
    *("problem=transformer_8b", "problem.fake=false", "problem.dtype=float32"),
    *(f"problem.{name}={size}" for name, size in SHAPE.items()),
    *(f"problem.samples={WORKERS * BATCH * STEPS}", f"algorithm.batch_size={BATCH}"),
    *("budget.epochs=1", "budget.observations=1"),
)
CASES = [
    Case(
        {"method": method, "bandwidth": bandwidth},
        (*SETTINGS, *chosen, f"hardware.network.inside_bandwidth_bytes_per_s={bandwidth}"),
    )
    for method, chosen in METHODS.items()
    for bandwidth in BANDWIDTHS
]


def computing_s(rows: Sequence[Row]) -> float:
    """Of a step, without any communication."""
    step_s = WORKERS * BATCH / mean(rows, "perf/samples_per_s", method="FSDP", bandwidth=BANDWIDTHS[0])
    return step_s * mean(rows, "perf/compute_frac", method="FSDP", bandwidth=BANDWIDTHS[0])


def ratio(rows: Sequence[Row], bandwidth: float) -> float:
    """FSDP's communication over computing: 3 (P - 1) / P of the model's bytes, one after the other."""
    return 3 * (WORKERS - 1) / WORKERS * 4 * PARAMETERS / bandwidth / computing_s(rows)


def stretch(rows: Sequence[Row], method: str, bandwidth: float) -> float:
    """How many times as long as computing a step takes."""
    step_s = WORKERS * BATCH / mean(rows, "perf/samples_per_s", method=method, bandwidth=bandwidth)
    return step_s / computing_s(rows)


def hidden(rows: Sequence[Row], method: str, bandwidth: float) -> float:
    """The share of communication during which there was computing."""
    return round(mean(rows, "perf/overlap_frac", method=method, bandwidth=bandwidth), 3)


def figures(rows: Sequence[Row]) -> Figures:
    """By method and FSDP's communication over computing: steps in units of computing, and what is hidden."""
    ratios = {bandwidth: f"{ratio(rows, bandwidth):.2g}" for bandwidth in BANDWIDTHS}
    found: Figures = {}
    for method in METHODS:
        found[method] = {
            "step": {name: stretch(rows, method, bandwidth) for bandwidth, name in ratios.items()},
            "hidden": {name: hidden(rows, method, bandwidth) for bandwidth, name in ratios.items()},
        }
    return short(found)


def draw(rows: Sequence[Row], panels: Sequence["Axes"]) -> None:
    """Steps in units of computing, between the two bounds; and what is hidden."""
    from experiments.drawing import BLUE, GREEN, GREY, RED, SKY, beside, log_ticks  # noqa: PLC0415 - optional

    steps, hiding = panels
    ratios = [ratio(rows, bandwidth) for bandwidth in BANDWIDTHS]
    fine = [ratios[0] * (ratios[-1] / ratios[0]) ** (step / 40) for step in range(41)]
    for axes in panels:
        log_ticks(axes, "x", (0.125, 0.25, 0.5, 1, 2, 4), ["1/8", "1/4", "1/2", "1", "2", "4"])
        axes.set_xlabel("FSDP's communication / computing")
    log_ticks(steps, "y", (1, 2, 4), ["1", "2", "4"])
    steps.plot(fine, [max(1, each) for each in fine], ":", color=GREY)
    steps.plot(fine, [1 + each for each in fine], ":", color=GREY)
    for method, colour in zip(METHODS, (BLUE, SKY, GREEN, RED), strict=True):
        curve = [stretch(rows, method, bandwidth) for bandwidth in BANDWIDTHS]
        steps.plot(ratios, curve, "o-", color=colour)
        hiding.plot(ratios, [hidden(rows, method, bandwidth) for bandwidth in BANDWIDTHS], "o-", color=colour)
        beside(steps, ratios[-1], curve[-1], method, colour)
    steps.set_ylabel("step / computing")
    steps.set_title("Dotted: all hidden, and nothing")
    hiding.set_ylim(0, 1)
    hiding.set_title("Share of communication that is hidden")


EXPERIMENT = Experiment(Path(__file__).parent, CASES, figures, draw, panels=2)

if __name__ == "__main__":
    sys.exit(EXPERIMENT.main(sys.argv[1:]))
