"""python -m experiments.splitting_and_bandwidth: gradients, shards or activations on ever slower links."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.sweeping import Case, Experiment, Figures, Row, mean, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WORKERS, GLOBAL_BATCH, LAYERS, WIDTH, HIDDEN, CONTEXT, VOCABULARY = 8, 16, 2, 256, 704, 128, 512
BANDWIDTHS = (1.25e10, 3.75e9, 1.25e9, 3.75e8, 1.25e8, 3.75e7, 1.25e7)  # bytes/s of a port
PAYLOAD_SHARE = 0.941  # of them, without the packets' headers
METHODS: dict[str, tuple[str, ...]] = {
    "DDP": ("algorithm=ddp", f"algorithm.batch_size={GLOBAL_BATCH // WORKERS}", "algorithm.bucket_bytes=1000000"),
    "FSDP": ("algorithm=fsdp", f"algorithm.batch_size={GLOBAL_BATCH // WORKERS}"),
    "tensor": ("algorithm=tensor_parallel", f"algorithm.batch_size={GLOBAL_BATCH}"),
}
METHODS["tensor, sequence"] = (*METHODS["tensor"], "algorithm.sequence_parallel=true")
COMMON = (
    "hardware/compute=cascade_lake_core",
    "hardware.protocol.algorithms={all_reduce: pipelined_ring, reduce_scatter: pipelined_ring}",
    f"hardware.num_workers={WORKERS}",
    "problem=transformer_8b",
    "problem.fake=false",
    "problem.dtype=float32",
    f"problem.layers={LAYERS}",
    f"problem.width={WIDTH}",
    f"problem.hidden={HIDDEN}",
    "problem.heads=8",
    f"problem.context={CONTEXT}",
    f"problem.vocabulary={VOCABULARY}",
    f"problem.samples={3 * GLOBAL_BATCH}",
    "budget.epochs=1",
    "budget.observations=1",
)
CASES = [
    Case(
        {"bandwidth_bytes_per_s": bandwidth, "method": method},
        (*settings, *COMMON, f"hardware.network.bandwidth_bytes_per_s={bandwidth}"),
    )
    for bandwidth in BANDWIDTHS
    for method, settings in METHODS.items()
]


def step_s(rows: Sequence[Row], bandwidth: float, method: str) -> float:
    """Seconds of a step of 16 samples; all methods take the same steps."""
    return GLOBAL_BATCH / mean(rows, "perf/samples_per_s", bandwidth_bytes_per_s=bandwidth, method=method)


def weight_bytes() -> int:
    """Of the model."""
    return 4 * (LAYERS * (4 * WIDTH**2 + 3 * WIDTH * HIDDEN + 2 * WIDTH) + 2 * VOCABULARY * WIDTH + WIDTH)


def token_bytes() -> int:
    """Of one token's activations: reduced 4 times a layer, and before and behind them; numbers in the loss."""
    return 2 * 4 * ((4 * LAYERS + 2) * WIDTH + 3)


def sent_bytes(method: str) -> float:
    """That a ring puts on the link of each worker in a step; but for the gradients of norms, in closed form."""
    times = {"DDP": 2, "FSDP": 3}
    whole = times[method] * weight_bytes() if method in times else GLOBAL_BATCH * CONTEXT * token_bytes()
    return (WORKERS - 1) / WORKERS * whole


def figures(rows: Sequence[Row]) -> Figures:
    """Samples/s by bandwidth; how far the slowest link's step is from bytes / bandwidth."""
    slowest = BANDWIDTHS[-1]
    found: Figures = {
        f"{bandwidth:g} bytes/s": {method: GLOBAL_BATCH / step_s(rows, bandwidth, method) for method in METHODS}
        for bandwidth in BANDWIDTHS
    }
    found["bytes of a step"] = {method: sent_bytes(method) for method in METHODS}
    found["tokens for which tensor sends what DDP does"] = 2 * weight_bytes() / token_bytes()
    found["slowest step x bandwidth / bytes"] = {
        method: step_s(rows, slowest, method) * slowest * PAYLOAD_SHARE / sent_bytes(method) for method in METHODS
    }
    return short(found)


def draw(rows: Sequence[Row], panels: Sequence["Axes"]) -> None:
    """Throughput over bandwidth, and what the slowest link leaves of it in closed form."""
    from experiments.drawing import BLUE, GREEN, ORANGE, RED, beside, bits_per_s, log_ticks  # noqa: PLC0415 - optional

    (axes,) = panels
    log_ticks(axes, "x", BANDWIDTHS[::2], [bits_per_s(bandwidth) for bandwidth in BANDWIDTHS[::2]])
    log_ticks(axes, "y", (5, 10, 20, 50, 100, 200, 500), ["5", "10", "20", "50", "100", "200", "500"])
    for method, colour in zip(METHODS, (BLUE, GREEN, ORANGE, RED), strict=True):
        values = [GLOBAL_BATCH / step_s(rows, bandwidth, method) for bandwidth in BANDWIDTHS]
        limits = [GLOBAL_BATCH * bandwidth * PAYLOAD_SHARE / sent_bytes(method) for bandwidth in BANDWIDTHS]
        axes.plot(BANDWIDTHS, limits, ":", color=colour, linewidth=1)
        axes.plot(BANDWIDTHS, values, "o-", color=colour)
        beside(axes, BANDWIDTHS[0], values[0] * {"DDP": 1.1, "FSDP": 0.95}.get(method, 1), method, colour)
    axes.set_ylim(4, 700)
    axes.set_xlabel("bandwidth of a port")
    axes.set_ylabel("samples/s of 8 workers")
    axes.set_title("Dotted: bandwidth / bytes of a sample")


EXPERIMENT = Experiment(Path(__file__).parent, CASES, figures, draw)

if __name__ == "__main__":
    sys.exit(EXPERIMENT.main(sys.argv[1:]))
