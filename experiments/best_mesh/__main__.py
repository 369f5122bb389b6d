"""python -m experiments.best_mesh: a sweep over meshes of 512 H100s that train 70B parameters, none of which exist."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.sweeping import Case, Experiment, Figures, Row, short, where

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DEVICES, GLOBAL_BATCH = 512, 512  # samples of 8,192 tokens: 4M tokens a step, as in Llama 3's first phase
TENSOR, PIPELINE = (1, 2, 4, 8), (1, 2, 4)
COMMON = (
    "algorithm=parallel_3d",
    "algorithm.sequence_parallel=true",
    "algorithm.shard_data=true",
    "algorithm/optimizer=adamw",
    "hardware=sim_dgx",
    "hardware/compute=h100",
    "hardware.protocol.algorithms={all_reduce: pipelined_ring}",  # ranks of a tree are not alike
    f"hardware.num_workers={DEVICES}",
    "problem=transformer_70b",
    f"problem.samples={GLOBAL_BATCH}",
    "budget.epochs=2",  # two steps, of which the first is left out
    "budget.observations=1",
)


def case(tensor: int, pipeline: int, checkpointing: bool) -> Case:
    """A mesh whose micro-batches are single samples, as many as the batch of a seat along the axis of data has."""
    samples = GLOBAL_BATCH // (DEVICES // (tensor * pipeline))
    chosen = (
        f"algorithm.mesh={{data: null, tensor: {tensor}, pipeline: {pipeline}}}",
        f"algorithm.batch_size={samples}",
        f"algorithm.micro_batches={samples}",
        f"algorithm.checkpointing={str(checkpointing).lower()}",
    )
    return Case({"tensor": tensor, "pipeline": pipeline, "checkpointing": checkpointing}, (*COMMON, *chosen))


CASES = [case(tensor, pipeline, checkpointing=True) for tensor in TENSOR for pipeline in PIPELINE]
CASES += [case(TENSOR[-1], pipeline, checkpointing=False) for pipeline in PIPELINE]  # with fewer they do not fit


def best(rows: Sequence[Row], **labels: object) -> Row | None:
    """The fastest that fits; None where none does."""
    fit = [row for row in where(rows, **labels) if row["run/status"] == "finished"]
    return max(fit, key=lambda row: row["predicted/mfu"], default=None)


def figures(rows: Sequence[Row]) -> Figures:
    """MFU of every mesh that fits, memory of all, and the best one."""
    found: Figures = {}
    for tensor in TENSOR:
        for pipeline in PIPELINE:
            own = {"tensor": tensor, "pipeline": pipeline}
            fastest = best(rows, **own)
            least = min(row["predicted/peak_memory_bytes_max"] for row in where(rows, **own))
            name = f"data {DEVICES // (tensor * pipeline)}, tensor {tensor}, pipeline {pipeline}"
            if fastest is None:
                found[name] = f"does not fit: {least / 1e9:.0f} GB"
            else:
                found[name] = {
                    "mfu": fastest["predicted/mfu"],
                    "GB": fastest["predicted/peak_memory_bytes_max"] / 1e9,
                    "recomputed": fastest["checkpointing"],
                }
    overall = best(rows)
    assert overall is not None
    found["best"] = {key: overall[key] for key in ("tensor", "pipeline", "checkpointing", "predicted/mfu")}
    return short(found)


def draw(rows: Sequence[Row], panels: Sequence["Axes"]) -> None:
    """MFU over stages, a line for each degree of tensor parallelism; hollow where layers are computed again."""
    from experiments.drawing import BLUE, GREEN, ORANGE, RED, beside, log_ticks  # noqa: PLC0415 - optional

    (axes,) = panels
    log_ticks(axes, "x", PIPELINE, [str(stages) for stages in PIPELINE])
    for tensor, colour in zip(TENSOR, (BLUE, GREEN, ORANGE, RED), strict=True):
        fastest = [row for pipeline in PIPELINE if (row := best(rows, tensor=tensor, pipeline=pipeline))]
        stages, mfu = [row["pipeline"] for row in fastest], [row["predicted/mfu"] for row in fastest]
        axes.plot(stages, mfu, "-", color=colour)
        for row in fastest:
            face = "white" if row["checkpointing"] else colour
            axes.plot(row["pipeline"], row["predicted/mfu"], "o", color=colour, markerfacecolor=face)
        if fastest:
            beside(axes, stages[-1], mfu[-1], f"tensor {tensor}", colour)
    axes.set_ylim(0)
    axes.set_xlabel("stages of the pipeline")
    axes.set_ylabel("model FLOPs utilisation")
    axes.set_title("70B on 512 H100s; hollow: recomputed")


EXPERIMENT = Experiment(Path(__file__).parent, CASES, figures, draw)

if __name__ == "__main__":
    sys.exit(EXPERIMENT.main(sys.argv[1:]))
