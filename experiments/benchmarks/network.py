"""Host seconds of the simulated network: a ring as flows, random flows on a fat tree, a plan that is alone.

One JSON line. Ratio: solver over shortcut for the same ring, in the same run.

    python -m experiments.benchmarks.network
"""

import json
import statistics
import time

import numpy as np

from hardware.simulated.engine import Engine
from hardware.simulated.network import plans
from hardware.simulated.network.base import Network
from hardware.simulated.network.links import Links
from hardware.simulated.network.plans import Plan
from hardware.simulated.network.topologies import FatTree, Switch

PAYLOAD_BYTES = 1e8
REPEATS = 3
SWITCH = Switch({}, {}, latency_s=50e-6, bandwidth_bytes_per_s=1.25e9)
TREE = FatTree({}, {}, hosts_per_leaf=32, latency_s=1e-5, bandwidth_bytes_per_s=1.25e9, oversubscription=4.0)


def host_s(network: Network, num_devices: int, jobs: list[tuple[Plan, np.ndarray]], shortcuts: bool) -> float:
    """Median over repeats of carrying all of `jobs` from time 0."""
    times = []
    for _ in range(REPEATS):
        engine = Engine()
        links = Links(network, engine, num_devices, shortcuts)
        begin_s = time.perf_counter()
        for plan, devices in jobs:
            links.carry(plan, devices, lambda ranks: None)
        engine.env.run()
        times.append(time.perf_counter() - begin_s)
    return statistics.median(times)


def ring_s(num_ranks: int, shortcuts: bool) -> float:
    """Of one ring all-reduce."""
    return host_s(
        SWITCH, num_ranks, [(plans.ring_all_reduce(num_ranks, PAYLOAD_BYTES), np.arange(num_ranks))], shortcuts
    )


def random_flows_s(num_flows: int, num_hosts: int) -> float:
    """Of flows between random hosts, of random sizes up to 100 MB, that all begin at once."""
    generator = np.random.default_rng(0)
    ends = [generator.choice(num_hosts, 2, replace=False) for _ in range(num_flows)]
    sizes = generator.uniform(1e6, 1e8, num_flows).tolist()
    jobs = [(plans.message(size), pair) for pair, size in zip(ends, sizes, strict=True)]
    return host_s(TREE, num_hosts, jobs, shortcuts=False)


def main() -> None:
    """Print the figures."""
    ring_s(8, shortcuts=False)  # compiled code is loaded
    figures = {
        "ring_256_s": ring_s(256, shortcuts=False),
        "ring_1024_s": ring_s(1024, shortcuts=False),
        "random_1000_flows_512_hosts_s": random_flows_s(1000, 512),
        "ring_16384_alone_s": ring_s(16_384, shortcuts=True),
    }
    ratio = figures["ring_256_s"] / ring_s(256, shortcuts=True)
    print(json.dumps({"benchmark": "network", **figures, "solver_over_shortcut_256": ratio}))


if __name__ == "__main__":
    main()
