"""Runs plain functions as the ranks of a simulated machine."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import ClassVar

import torch

from algorithms.base import Algorithm
from hardware.simulated.compute import Fixed, Roofline
from hardware.simulated.machine import Simulated
from hardware.simulated.memory import SharedMemory
from hardware.simulated.network.protocol import Gloo, Nccl
from hardware.simulated.network.topologies import Switch
from harness.data import Partitioned
from harness.program import Program

SECOND = Fixed("none", streams=False, seconds_per_sample=1.0)
SWITCH = Switch({}, {}, latency_s=0.5, bandwidth_bytes_per_s=8.0)  # one float64 a second
RING = {"all_reduce": "ring", "reduce_scatter": "ring", "reduce": "tree"}
GLOO = Gloo(RING, segment_bytes=2**20, segments=1, in_flight=1, setup_s=0.0, overhead_s=0.0, efficiency=1.0)
NONE = dict.fromkeys(Nccl.WIRE_PROTOCOLS, 0.0)
NCCL = Nccl(RING, 2**20, 1, 1, 0.0, 0.0, 0.0, 0.0, NONE, NONE, NONE, dict.fromkeys(Nccl.WIRE_PROTOCOLS, 1.0))


def samples(number):
    """A problem that bodies do not look at."""
    return SimpleNamespace(
        num_samples=number,
        is_fake=False,
        build_model=lambda device, seed: torch.nn.Linear(1, 1),
        loss=lambda model, samples: model.weight.sum(),
    )


@dataclass(frozen=True)
class Ranks(Algorithm):
    """Calls `body` on every rank."""

    synchronous: ClassVar[bool] = False

    body: Callable

    def train(self, worker, problem):
        self.body(worker)


def program(body, budget=1, milestones=(1,), seed=0):
    """A program whose every worker runs `body(worker)`."""
    return Program(Ranks(0.1, 1, body), samples(1), Partitioned("storage"), seed, budget, milestones)


def machine(num_workers, compute=SECOND, network=SWITCH, protocol=GLOO, memory=None, **mess):
    """A simulated hardware."""
    mess = {"stragglers": {}, "slowdowns": {}, "deaths": {}, **mess}
    return Simulated(num_workers, compute, network, protocol, memory, **mess)


def shared_memory(**settings):
    """Two sockets of 32 cores on which nothing costs anything, overlaps or is forgotten, unless told."""
    free = {
        "sockets": 2,
        "cores_per_socket": 32,
        "line_bytes": 64,
        "cache_bytes": 2**30,
        "same_socket_s": 0.0,
        "cross_socket_s": 0.0,
        "shared_cache_s": 0.0,
        "local_memory_s": 0.0,
        "remote_memory_s": 0.0,
        "outstanding_misses": 1,
        "outstanding_clashes": 1,
        "outstanding_atomics": 1,
        "migrates": False,
        "atomic_s": 0.0,
        "lock_s": 0.0,
        "spin_s": 0.0,
        "yield_s": 0.0,
        "wake_s": 0.0,
        "sleep_s": 0.0,
        "doze_s": 0.0,
        "futex_s": 0.0,
        "pin_policy": "spread",
        "memory_policy": "first_touch",
        "local_bytes_per_s": 1e10,
        "remote_bytes_per_s": 1e10,
        "sequential_rows": 1.0,
    }
    return SharedMemory(**(free | settings))


def execute(body, num_workers, budget=1, milestones=(1,), seed=0, **options):
    """Run `body(worker)` on every rank and return the execution."""
    run = program(body, budget, milestones, seed)
    return machine(num_workers, **options).execute(run, lambda samples: None)


def results(body, num_workers, **options):
    """What `body(worker)` returned on each rank.

    Raises:
        TwinclockError: what failed.
    """
    returned = {}

    def keep(worker):
        returned[worker.rank] = body(worker)

    done = execute(keep, num_workers, **options)
    if done.failure is not None:
        raise done.failure
    return [returned[rank] for rank in range(num_workers)]


def compute_for(worker, seconds):
    """Spend virtual time, with `SECOND` as compute."""
    worker._place.dealt(seconds)
    worker.clock.now()


NUMA = shared_memory(
    cores_per_socket=8,
    same_socket_s=50e-9,
    cross_socket_s=120e-9,
    local_memory_s=80e-9,
    remote_memory_s=140e-9,
    outstanding_misses=4,
)
NUMA_WITH_LOCKS = replace(NUMA, atomic_s=7e-9, wake_s=1e-6, sleep_s=5e-6, doze_s=2e-7, futex_s=4e-7)
KERNELS_ALONE = Roofline("none", False, {"float32": 1e30, "float64": 1e30}, 1e30, 0.0, 1e-9)  # operators are free
