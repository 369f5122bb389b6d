"""Simulated hardware: a described machine or cluster on which the same program runs in virtual time."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from hardware.base import Execution, Hardware, WorkerReport
from hardware.simulated import torch_world
from hardware.simulated.compute import Compute
from hardware.simulated.device import HostDevice
from hardware.simulated.engine import Activity, Engine
from hardware.simulated.fabric import Fabric
from hardware.simulated.memory import SharedMemory
from hardware.simulated.network.base import Network
from hardware.simulated.network.protocol import Protocol
from hardware.simulated.place import Machine, SimulatedPlace
from hardware.simulated.shared_models import SharedModels
from harness.errors import TwinclockError, require
from harness.program import Program
from harness.worker import Worker


@dataclass(frozen=True)
class Simulated(Hardware):
    """Workers on a model of a machine.

    Args:
        compute: what computing costs.
        network: what connects the workers.
        protocol: the communication library, which makes plans of collectives.
        memory: cores and caches that workers share, or None where they share no memory.
    """

    kind: ClassVar[str] = "simulated"
    clock_kind: ClassVar[str] = "virtual"

    compute: Compute
    network: Network
    protocol: Protocol
    memory: SharedMemory | None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.memory is not None:
            self.memory.check(self.workers_offered)
        else:
            rule = "must be a number where hardware.memory is null: a cluster has no cores to count"
            require(self.num_workers is not None, "hardware.num_workers", rule, self.num_workers)

    @property
    def shares_memory(self) -> bool:
        """Whether there is a memory model."""
        return self.memory is not None

    @property
    def workers_offered(self) -> int:
        """`num_workers`, or every core of the memory model."""
        if self.num_workers is None and self.memory is not None:
            return self.memory.cores
        assert self.num_workers is not None
        return self.num_workers

    def execute(self, program: Program, progress: Callable[[int], None]) -> Execution:
        """Run the program in virtual time."""
        execution, begin_s = Execution(), time.perf_counter()

        def body(place: SimulatedPlace) -> None:
            program.run(Worker(place, program))

        simulation = self.simulation()
        machine = simulation.machine
        simulation.run(body, program.seed, lambda: progress(machine.counters["samples"]))
        execution.failure = simulation.failure
        if execution.failure is None:
            execution.workers = simulation.reports()
        execution.observations = sorted(machine.observations, key=lambda seen: seen.samples)
        execution.metrics = _metrics(machine, execution.run_s, time.perf_counter() - begin_s)
        if self.memory is not None:
            execution.facts = {"sockets": [self.memory.socket(rank) for rank in range(machine.num_ranks)]}
        return execution

    def simulation(self) -> "Simulation":
        """A fresh machine, idle at virtual time 0."""
        engine, num_ranks = Engine(), self.workers_offered
        fabric = Fabric(engine, self.network, self.protocol, num_ranks)
        models = None
        if self.memory is not None:
            models = SharedModels(engine, self.memory, self.compute.kernel, num_ranks)
        return Simulation(Machine(engine, fabric, self.compute, num_ranks, models))


class Simulation:
    """One run of a machine.

    Attributes:
        places: of the ranks.
        failure: why it did not end well, or None.
    """

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.places = [SimulatedPlace(machine, rank, HostDevice(machine.engine)) for rank in range(machine.num_ranks)]
        self.failure: BaseException | None = None
        self._activities: list[Activity] = []

    def run(self, body: Callable[[SimulatedPlace], None], seed: int, look: Callable[[], None]) -> None:
        """Run `body` on every rank, from virtual time 0 to the end.

        Args:
            look: called now and then in the calling thread.
        """
        engine = self.machine.engine
        for place in self.places:
            life = partial(place.live, partial(body, place))
            self._activities.append(engine.spawn(place.rank, f"rank {place.rank}", life, start_s=0.0))
        try:
            with torch_world.isolated(seed):
                engine.run(look)
        except (TwinclockError, KeyboardInterrupt) as failure:
            self.failure = failure

    def reports(self) -> list[WorkerReport]:
        """Where the time of each rank went."""
        sent_bytes = self.machine.fabric.sent_bytes
        return [
            _report(place, activity, sent_bytes[place.rank])
            for place, activity in zip(self.places, self._activities, strict=True)
        ]


def _report(place: SimulatedPlace, activity: Activity, sent_bytes: int) -> WorkerReport:
    return WorkerReport(
        rank=place.rank,
        finish_s=place.finish_s,
        compute_s=activity.compute_s,
        comm_s=activity.communication_s,
        idle_s=activity.idle_s,
        sent_bytes=sent_bytes,
    )


def _metrics(machine: Machine, run_s: float, host_s: float) -> dict[str, Any]:
    metrics: dict[str, Any] = {"sim/events_per_s": machine.engine.events / host_s}
    if run_s > 0:
        metrics["sim/slowdown"] = host_s / run_s
    return metrics | (machine.models.metrics() if machine.models is not None else {})
