"""What a simulated rank costs the host: all-reduces of many ranks, blocking calls, memory.

    python -m experiments.benchmarks.engine

Ratio: host seconds per blocking call at 1,024 ranks over those at 256, in the same run.
"""

import json
import resource
import statistics
import time

import torch
import torch.distributed as dist

from hardware.simulated.compute import Fixed
from hardware.simulated.machine import Simulated
from hardware.simulated.network.protocol import Gloo
from hardware.simulated.network.topologies import Switch
from hardware.simulated.place import SimulatedPlace

ELEMENTS, REPEATS = 10, 3
NETWORK = Switch({}, {}, latency_s=50e-6, bandwidth_bytes_per_s=1.25e9)
PROTOCOL = Gloo({}, segment_bytes=2**20, segments=2, in_flight=2, setup_s=0.0, overhead_s=0.0, efficiency=1.0)
COMPUTE = Fixed("none", streams=False, seconds_per_sample=1e-6)


def host_s(num_ranks: int, num_calls: int) -> float:
    """Of so many all-reduces by all ranks, values moved."""

    def body(place: SimulatedPlace) -> None:
        x = torch.ones(ELEMENTS)
        for _ in range(num_calls):
            dist.all_reduce(x, dist.ReduceOp.MAX)

    hardware = Simulated(num_ranks, COMPUTE, NETWORK, PROTOCOL, None, stragglers={}, slowdowns={}, deaths={})
    simulation = hardware.simulation(seed=0)
    begin_s = time.perf_counter()
    simulation.run(body, lambda: None)
    elapsed_s = time.perf_counter() - begin_s
    assert simulation.failure is None
    return elapsed_s


def main() -> None:
    """Print one JSON line."""
    host_s(8, 8)  # warm
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rows: dict[str, list[float]] = {"ranks_1024_calls_50_s": [], "call_256_us": [], "call_1024_us": []}
    for repeat in range(REPEATS):
        few_s = {ranks: host_s(ranks, 2) for ranks in (256, 1024)}
        if repeat == 0:
            grown_kib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib) / 1024
        many_s = {ranks: host_s(ranks, 50) for ranks in (256, 1024)}
        rows["ranks_1024_calls_50_s"].append(many_s[1024])
        for ranks in (256, 1024):
            rows[f"call_{ranks}_us"].append((many_s[ranks] - few_s[ranks]) / (48 * ranks) * 1e6)
    figures = {name: round(statistics.median(values), 3) for name, values in rows.items()}
    ratio = round(figures["call_1024_us"] / figures["call_256_us"], 3)
    print(json.dumps({"benchmark": "engine", **figures, "kib_per_rank": round(grown_kib), "call_1024_over_256": ratio}))


if __name__ == "__main__":
    main()
