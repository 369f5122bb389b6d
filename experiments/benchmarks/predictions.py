"""What predicting a step of a model that does not fit costs the host: 8B to 405B parameters on 8 to 16,384 H100s.

    python -m experiments.benchmarks.predictions            # all cases
    python -m experiments.benchmarks.predictions fsdp_8b_8  # one of them

One JSON line: per case host seconds, and what was predicted. Absolute times, since nothing else does the same; compare
them on an idle machine alone. Aimed at, on two cores: 60 s for 8B on up to 1,024 devices, 300 s for 405B on 16,384.
"""

import json
import sys
import time

from harness.check import check
from harness.cli import composed
from harness.setup import Setup, compose

SHARDED = ("algorithm=fsdp", "algorithm.checkpointing=true", "algorithm/optimizer=adamw", "problem=transformer_8b")
MESH = ("algorithm=parallel_3d", "algorithm.sequence_parallel=true", "algorithm/optimizer=adamw")
CASES: dict[str, tuple[str, ...]] = {
    "fsdp_8b_8": (*SHARDED, "hardware.num_workers=8"),
    "fsdp_8b_64": (*SHARDED, "hardware.num_workers=64"),
    "hsdp_8b_64": (*SHARDED, "hardware.num_workers=64", "algorithm.shard_size=8"),
    "fsdp_8b_1024": (*SHARDED, "hardware.num_workers=1024"),
    "hsdp_8b_1024": (*SHARDED, "hardware.num_workers=1024", "algorithm.shard_size=8"),
    "tensor_8b_8": ("algorithm=tensor_parallel", "problem=transformer_8b", "hardware.num_workers=8"),
    "mesh_405b_16384": (
        *MESH,
        "problem=transformer_405b",
        "hardware.num_workers=16384",
        "algorithm.mesh.tensor=8",
        "algorithm.mesh.pipeline=16",
        "algorithm.checkpointing=true",  # without, 177 GB a device
        "algorithm.shard_data=true",
        "algorithm.batch_size=16",
        "algorithm.micro_batches=16",
        "budget.epochs=1",  # 2,048 samples are one step: the state of optimizers is made in it
    ),
}


def setup_of(overrides: tuple[str, ...]) -> Setup:
    """Composed and checked, as `run.py` does."""
    return check(compose(composed(["hardware=sim_dgx", "tracking=none", *overrides], as_hydra=True)))[0]


def predicted(setup: Setup) -> dict[str, object]:
    """What one run says, and how long the host takes."""
    begin_s = time.perf_counter()
    execution = setup.machine.execute(setup.program(), lambda samples: None)
    host_s = round(time.perf_counter() - begin_s, 1)
    said = {key.removeprefix("predicted/"): each for key, each in execution.metrics.items() if "predicted/" in key}
    rounded = {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in said.items()}
    failure = {} if execution.failure is None else {"failure": str(execution.failure)}
    return {"host_s": host_s, **rounded, **failure}


def main() -> None:
    """Print one JSON line."""
    names = sys.argv[1:] or [*CASES]
    print(json.dumps({"benchmark": "predictions", **{name: predicted(setup_of(CASES[name])) for name in names}}))


if __name__ == "__main__":
    main()
