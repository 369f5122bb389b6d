"""What the harness costs: `algorithm=all_reduce` through the harness against a hand-written torch gloo loop.

    python -m experiments.benchmarks.overhead

Same model, data, batches, processes and number of steps: pinned processes with one thread each, an MLP on digits, one
all-reduce per step. The two take turns; each pair gives a ratio of seconds per step, set-up outside both clocks. Two
processes are the real thing; one process, whose all-reduce is free, hides nothing of what the harness costs.
"""

import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy

from algorithms.all_reduce import AllReduce
from algorithms.common.optimizers import PlainSGD
from algorithms.common.schedules import Constant
from algorithms.compression.compressor import Uncompressed
from hardware.real.machine import RealMachine
from harness.data import Partitioned
from harness.problems.mlp import DigitsMLP
from harness.program import Program

BATCH, STEPS, PAIRS = 32, 2000, 9
LEARNING_RATE = 0.05
PROBLEM: dict[str, Any] = {"hidden_sizes": [64], "test_fraction": 0.2, "seed": 0, "dtype": "float32"}
HINTS: dict[str, Any] = {"learning_rate": 0.1, "minibatch_size": 32, "minibatch_learning_rate": 0.1, "target_loss": 0.1}


def by_hand(rank: int, workers: int, store: str, seconds: Any) -> None:
    """One process of the hand-written loop; rank 0 puts its seconds."""
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[rank]})
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=workers)
    pixels, digits = load_digits(return_X_y=True)
    x, y = torch.tensor(pixels / 16.0, dtype=torch.float32), torch.tensor(digits)
    count = len(y) * 4 // 5
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    parameters = list(model.parameters())
    order = torch.cat([torch.randperm(count) for _ in range(STEPS * BATCH * workers // count + 2)])
    dist.barrier()
    begin_s = time.perf_counter()
    for step in range(STEPS):
        start = (step * workers + rank) * BATCH
        samples = order[start : start + BATCH]
        cross_entropy(model(x[samples]), y[samples]).backward()
        gradient = torch.cat([p.grad.reshape(-1) for p in parameters])  # type: ignore[union-attr]
        dist.all_reduce(gradient)
        gradient /= workers
        offset = 0
        with torch.no_grad():
            for p in parameters:
                p.sub_(gradient[offset : offset + p.numel()].view_as(p), alpha=LEARNING_RATE)
                offset += p.numel()
                p.grad = None
    if rank == 0:
        seconds.put(time.perf_counter() - begin_s)
    dist.destroy_process_group()


def hand_written_s(workers: int) -> float:
    """Seconds of `STEPS` steps of the hand-written loop."""
    context = mp.get_context("spawn")
    seconds = context.SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(by_hand, (workers, str(Path(folder, "store")), seconds), nprocs=workers)
    return float(seconds.get())


def harness_s(problem: DigitsMLP, workers: int) -> float:
    """Seconds of the same steps through the harness, as it reports them."""
    budget = STEPS * BATCH * workers
    milestones = [budget * (i + 1) // 40 for i in range(40)]
    algorithm = AllReduce(
        LEARNING_RATE,
        BATCH,
        linear_scaling=False,
        accumulate=1,
        compression=Uncompressed(),
        optimizer=PlainSGD(0.0),
        schedule=Constant(warmup_epochs=0.0, warmup_start=1.0),
    )
    program = Program(algorithm, problem, Partitioned("index"), 0, budget, milestones)
    execution = machine(workers).execute(program, lambda samples: None)
    if execution.failure is not None:
        raise execution.failure
    return execution.run_s


def machine(workers: int) -> RealMachine:
    """Pinned workers with one thread each."""
    return RealMachine(
        num_workers=workers,
        num_nodes=None,
        strict=False,
        pinning=True,
        pin_policy="spread",
        memory_policy="first_touch",
        intra_op_threads=1,
        simd=None,
        timeout_s=300.0,
    )


def measure(problem: DigitsMLP, workers: int) -> dict[str, float]:
    """Medians over `PAIRS` pairs, after one to warm up."""
    pairs = [(harness_s(problem, workers), hand_written_s(workers)) for _ in range(PAIRS + 1)][1:]
    ratios = sorted(harness / hand for harness, hand in pairs)
    return {
        "ratio": round(statistics.median(ratios), 4),
        "ratio_min": round(ratios[0], 4),
        "ratio_max": round(ratios[-1], 4),
        "harness_us_per_step": round(1e6 * statistics.median(h for h, _ in pairs) / STEPS, 1),
        "by_hand_us_per_step": round(1e6 * statistics.median(b for _, b in pairs) / STEPS, 1),
    }


def main() -> None:
    """Print one JSON line."""
    problem = DigitsMLP(**PROBLEM, **HINTS)
    figures = {f"{workers}_workers": measure(problem, workers) for workers in (1, 2)}
    print(json.dumps({"benchmark": "overhead", "steps": STEPS, "pairs": PAIRS, **figures}))


if __name__ == "__main__":
    main()
