"""python -m experiments.sharding_memory: what a worker keeps of a model that more and more workers share out."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.sweeping import Case, Experiment, Figures, Row, mean, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WORKERS = (1, 2, 4, 8, 16)
SHAPE = {"layers": 4, "width": 128, "hidden": 384, "heads": 4, "key_value_heads": 4, "context": 64, "vocabulary": 512}
BLOCK = 4 * 128 * 128 + 3 * 128 * 384 + 2 * 128
PARAMETERS = 2 * 512 * 128 + 4 * BLOCK + 128
METHODS = {
    "replicated": ("algorithm=fsdp", "algorithm.shard_size=1"),
    "ZeRO-1": ("algorithm=zero1_plain",),
    "FSDP": ("algorithm=fsdp",),
    "FSDP, checkpointing": ("algorithm=fsdp", "algorithm.checkpointing=true"),
}
PARTS = ("parameter", "gradient", "optimizer", "activation")
SETTINGS = (
    *("problem=transformer_8b", "problem.fake=false", "problem.dtype=float32", "problem.samples=32"),
    *(f"problem.{name}={size}" for name, size in SHAPE.items()),
    *("algorithm/optimizer=adamw", "algorithm.batch_size=2", "budget.epochs=1", "budget.observations=1"),
)
CASES = [
    Case({"method": method, "workers": workers}, (*SETTINGS, *chosen, f"hardware.num_workers={workers}"))
    for method, chosen in METHODS.items()
    for workers in WORKERS
]


def kept_bytes(rows: Sequence[Row], method: str, workers: int, part: str) -> float:
    """What the worker that keeps most keeps, as measured."""
    return mean(rows, f"mem/{part}_bytes_max", method=method, workers=workers)


def states_bytes(rows: Sequence[Row], method: str, workers: int) -> float:
    """Of parameters, gradients and the optimiser's state."""
    return sum(kept_bytes(rows, method, workers, part) for part in PARTS[:3])


def predicted_bytes(method: str, workers: float) -> float:
    """The same in closed form: float32 and Adam take 4 + 4 + 8 bytes for a parameter, and 1/N of what is sharded."""
    sharded = {"replicated": 0, "ZeRO-1": 8}.get(method, 16)
    return PARAMETERS * (16 - sharded + sharded / workers)


def figures(rows: Sequence[Row]) -> Figures:
    """Bytes for a parameter by method and workers, what activations take, and the closed form's largest error."""
    found: Figures = {"parameters": PARAMETERS}
    errors = []
    for method in METHODS:
        states = {workers: states_bytes(rows, method, workers) for workers in WORKERS}
        found[method] = {str(workers): states[workers] / PARAMETERS for workers in WORKERS}
        found[method]["activation_bytes"] = kept_bytes(rows, method, WORKERS[-1], "activation")
        errors += [abs(states[workers] / predicted_bytes(method, workers) - 1) for workers in WORKERS]
    return short(found | {"closed_form_error": max(errors)})


def draw(rows: Sequence[Row], panels: Sequence["Axes"]) -> None:
    """Measured points on the curves of the closed form; and all that 16 workers keep each."""
    from experiments.drawing import BLUE, GREEN, GREY, ORANGE, RED, SKY, beside, log_ticks  # noqa: PLC0415 - optional

    by_degree, by_part = panels
    log_ticks(by_degree, "x", WORKERS, [str(workers) for workers in WORKERS])
    log_ticks(by_degree, "y", (1, 2, 4, 8, 16), ["1", "2", "4", "8", "16"])
    for method, colour in zip(list(METHODS)[:3], (RED, BLUE, GREEN), strict=True):
        fine = [2 ** (step / 8) for step in range(4 * 8 + 1)]
        by_degree.plot(fine, [predicted_bytes(method, each) / PARAMETERS for each in fine], color=colour, linewidth=1)
        measured = [states_bytes(rows, method, workers) / PARAMETERS for workers in WORKERS]
        by_degree.plot(WORKERS, measured, "o", color=colour)
        beside(by_degree, WORKERS[-1], measured[-1], method, colour)
    by_degree.set_xlabel("workers that share a model out")
    by_degree.set_ylabel("bytes of a worker for a parameter")
    by_degree.set_title("Parameters, gradients and Adam's state")
    for height, method in enumerate(METHODS):
        begin = 0.0
        for part, colour in zip(PARTS, (BLUE, SKY, GREEN, ORANGE), strict=True):
            mebibytes = kept_bytes(rows, method, WORKERS[-1], part) / 2**20
            by_part.barh(height, mebibytes, left=begin, color=colour, height=0.7, label=part if height == 0 else None)
            begin += mebibytes
        by_part.text(begin, height, f"  {method}", va="center", color=GREY)
    by_part.set_yticks([])
    by_part.invert_yaxis()
    by_part.margins(x=0.35)
    by_part.legend(frameon=False, loc="lower right")
    by_part.set_xlabel("MiB of a worker")
    by_part.set_title("Of 16 workers, with activations")


EXPERIMENT = Experiment(Path(__file__).parent, CASES, figures, draw, panels=2)

if __name__ == "__main__":
    sys.exit(EXPERIMENT.main(sys.argv[1:]))
