"""What simulating DistributedDataParallel costs the host, beyond the gradients themselves.

    python -m experiments.benchmarks.ddp

256 ranks train the perceptron on the digits for 20 steps of 32 samples each, on a cluster whose computing costs a fixed
time per sample, and on one whose operators are charged one by one. Ratio: host seconds over those of the same forward
and backward passes in a plain loop, in the same run.
"""

import json
import statistics
import time

import torch
from torch.nn.parallel import DistributedDataParallel

from experiments.benchmarks.engine import COMPUTE, NETWORK, PROTOCOL
from hardware.simulated.compute import Compute, Roofline
from hardware.simulated.machine import Simulated
from hardware.simulated.place import SimulatedPlace
from harness.build import build
from harness.cli import composed

RANKS, STEPS, BATCH, REPEATS = 256, 20, 32, 3
DIGITS = build(composed(["problem=digits_mlp"]).problem, "problem")
ROOFLINE = Roofline("none", False, {"float32": 1e11}, 1e10, operator_overhead_s=5e-6, nonzero_s=None)


def train(rank: int, parallel: bool) -> None:
    """The steps of one rank; without others only its gradients."""
    model = DIGITS.build_model(torch.device("cpu"), seed=0)
    trained = DistributedDataParallel(model) if parallel else model
    for step in range(STEPS):
        DIGITS.loss(trained, torch.arange(BATCH) + (rank + step) % BATCH).backward()
        for parameter in model.parameters():
            parameter.grad = None


def bare_s() -> float:
    """Of the gradients of all ranks, one after the other."""
    begin_s = time.perf_counter()
    for rank in range(RANKS):
        train(rank, parallel=False)
    return time.perf_counter() - begin_s


def simulated_s(compute: Compute) -> float:
    """Of all ranks together."""

    def body(place: SimulatedPlace) -> None:
        train(place.rank, parallel=True)

    hardware = Simulated(RANKS, compute, NETWORK, PROTOCOL, None, stragglers={}, slowdowns={}, deaths={})
    simulation, begin_s = hardware.simulation(seed=0), time.perf_counter()
    simulation.run(body, lambda: None)
    if simulation.failure is not None:
        raise simulation.failure
    return time.perf_counter() - begin_s


def main() -> None:
    """Print one JSON line."""
    torch.set_num_threads(1)
    rows: dict[str, list[float]] = {"bare_s": [], "fixed_s": [], "roofline_s": []}
    bare_s()
    for _ in range(REPEATS):
        rows["bare_s"].append(bare_s())
        rows["fixed_s"].append(simulated_s(COMPUTE))
        rows["roofline_s"].append(simulated_s(ROOFLINE))
    figures = {name: round(statistics.median(values), 3) for name, values in rows.items()}
    ratios = {f"{name}_over_bare": round(figures[f"{name}_s"] / figures["bare_s"], 2) for name in ("fixed", "roofline")}
    print(json.dumps({"benchmark": "ddp", "ranks": RANKS, "steps": STEPS, **figures, **ratios}))


if __name__ == "__main__":
    main()
