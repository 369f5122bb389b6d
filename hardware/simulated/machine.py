"""Simulated hardware: a described machine or cluster on which the same program runs in virtual time."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from operator import itemgetter
from typing import Any, ClassVar

import numpy as np

from hardware.base import Execution, Hardware, WorkerReport
from hardware.simulated import timeline, torch_world
from hardware.simulated.account import Split
from hardware.simulated.compute import Compute, Roofline
from hardware.simulated.device import Device, HostDevice
from hardware.simulated.engine import Engine
from hardware.simulated.fabric import Fabric
from hardware.simulated.fake_tensors import FakeTensors
from hardware.simulated.memory import SharedMemory
from hardware.simulated.network.base import Network
from hardware.simulated.network.links import Traffic
from hardware.simulated.network.protocol import Protocol
from hardware.simulated.pace import Pace
from hardware.simulated.place import Machine, SimulatedPlace
from hardware.simulated.prediction import Predicted
from hardware.simulated.shared_models import SharedModels
from hardware.simulated.streams import StreamDevice
from hardware.simulated.symmetry import Symmetry
from harness.alike import Axis
from harness.errors import TwinclockError, UserError, require
from harness.measures import so_far
from harness.place import Observation
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
        stragglers: factor of a rank's computing time, by rank: 4 is four times as slow, 0.5 a device twice as fast.
        slowdowns: by rank, further factors, each from a virtual time in seconds on.
        deaths: virtual time in seconds at which a rank dies, by rank.
        collapse: auto, to simulate one rank for all that the algorithm says are alike where tensors are fake; or none.
    """

    kind: ClassVar[str] = "simulated"
    clock_kind: ClassVar[str] = "virtual"

    compute: Compute
    network: Network
    protocol: Protocol
    memory: SharedMemory | None
    stragglers: dict[int, float]
    slowdowns: dict[int, dict[float, float]]
    deaths: dict[int, float]
    collapse: str = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_all(self.stragglers.items(), "stragglers", "must be > 0", lambda factor: factor > 0)
        for rank, changes in self.slowdowns.items():
            _require_all(changes.items(), f"slowdowns.{rank}", "must be > 0", lambda factor: factor > 0)
        require(self.collapse in ("auto", "none"), "hardware.collapse", "must be auto or none", self.collapse)
        _require_all(self.deaths.items(), "deaths", "must be > 0 s", lambda time_s: time_s > 0)
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

    @property
    def why_no_fake_tensors(self) -> str:
        """Costs are those of operators, by their shapes."""
        if not isinstance(self.compute, Roofline):
            return "does not know what an operator costs by the shapes of its tensors (hardware/compute)"
        return "shares memory, whose cost depends on values" if self.shares_memory else ""

    @property
    def runs_kernels(self) -> bool:
        """Whether it is known what a kernel costs."""
        return self.compute.kernel is not None

    def check(self, num_servers: int = 0) -> list[str]:
        """Refuse ranks and links that there are not."""
        self.network.check(self.workers_offered)
        for name in ("stragglers", "slowdowns", "deaths"):
            for rank in getattr(self, name):
                rule = f"must name ranks below hardware.num_workers = {self.workers_offered}"
                require(0 <= rank < self.workers_offered, f"hardware.{name}", rule, rank)
        return []

    def execute(self, program: Program, progress: Callable[[int], None]) -> Execution:
        """Run the program in virtual time."""
        execution, begin_s = Execution(), time.perf_counter()
        workers: list[Worker] = []
        fake = FakeTensors() if program.problem.is_fake else None

        def body(place: SimulatedPlace) -> None:
            if place.rank == 0:  # the first, who would else pay for what all find done, in the first execution only
                with simulation.machine.engine.uncharged():
                    program.touch(place.device)
            with fake or nullcontext():
                workers.append(Worker(place, program))
                program.run(workers[-1])

        named = partial(program.name_of, num_ranks=self.workers_offered, worker="rank")
        simulation = self.simulation(program.seed, named, self._symmetry(program))
        machine = simulation.machine
        machine.fake = fake is not None
        peers = machine.num_ranks - program.data.servers()
        simulation.run(body, lambda: progress(max(machine.counters["samples"], machine.counters["advanced"])), peers)
        execution.failure = simulation.failure
        if execution.failure is None:
            execution.workers = simulation.reports()
        execution.observations = sorted(machine.observations, key=lambda seen: seen.samples)
        execution.metrics = _metrics(simulation, execution.run_s, time.perf_counter() - begin_s)
        if machine.engine.died and execution.failure is None:
            execution.metrics |= _deaths(machine, program.budget_samples)
            if program.algorithm.needs_shared_memory:
                _look_at_the_end(execution, machine, workers)
        measures = [getattr(place, "measures", {}) for place in simulation.places]  # a rank may fail before it has any
        execution.told(measures if execution.failure is None else so_far(measures))
        if execution.failure is None:
            execution.interleavings = [place.interleaving for place in simulation.places]
        if machine.fake and execution.failure is None and any(place.steps.begins for place in simulation.places):
            self._predict(simulation, program, execution)
        accounts = {place.rank: place.timelines.account for place in simulation.places}
        execution.timeline = partial(timeline.write, accounts=[*accounts.values()], ranks=[*accounts])
        if self.memory is not None:
            execution.facts["sockets"] = [self.memory.socket(rank) for rank in range(machine.num_ranks)]
        if placement := {name: machine.placed(each.node) for name, each in machine.tensors.items()} | machine.placement:
            execution.facts["placement"] = placement
        if traffic := simulation.traffic():
            execution.facts["links"] = {name: asdict(carried) for name, carried in traffic.items()}
        return execution

    def _predict(self, simulation: "Simulation", program: Program, execution: Execution) -> None:
        assert isinstance(self.compute, Roofline)
        machine = simulation.machine
        places = [place for place in simulation.places if place.steps.begins]
        samples = machine.counters["samples"] / max(1, machine.counters["updates"])
        steps = {place.rank: place.steps for place in places}
        predicted = Predicted(steps, [place.finish_s for place in places], machine.num_ranks, samples)
        execution.metrics |= predicted.metrics(program, self.compute)
        execution.failure = predicted.shortage(program, self.compute)

    def check_alike(self, axes: Sequence[Axis]) -> None:
        """Refuse settings by which ranks differ, unless all are simulated."""
        if not self._collapses(axes):
            return
        for field_name, differs in {
            "stragglers": self.stragglers,
            "slowdowns": self.slowdowns,
            "deaths": self.deaths,
            "network.background": self.network.background,
            "network.changes": self.network.changes,
            "compute.jitter": self.compute.jitter != "none",
        }.items():
            if differs:
                raise UserError(
                    f"hardware.{field_name} makes ranks differ that would be simulated as one: set "
                    "hardware.collapse=none, or leave it out"
                )

    def _collapses(self, axes: Sequence[Axis]) -> bool:
        return self.collapse == "auto" and any(axis.alike and axis.size > 1 for axis in axes)

    def _symmetry(self, program: Program) -> Symmetry | None:
        """Of the ranks, where one of those that are alike is to stand for all."""
        axes = program.algorithm.alike(self.workers_offered) if program.problem.is_fake else ()
        return Symmetry(axes) if self._collapses(axes) else None

    def simulation(
        self, seed: int, named: Callable[[int], str] = "rank {}".format, symmetry: Symmetry | None = None
    ) -> "Simulation":
        """A fresh machine, idle at virtual time 0.

        Args:
            named: who a rank is, in words.
            symmetry: of its ranks, to simulate the first of each class alone.
        """
        engine, num_ranks = Engine(self.deaths, self.network.breaks, named), self.workers_offered
        fabric = Fabric(engine, self.network, self.protocol, num_ranks, symmetry)
        paces = {rank: self._pace(rank, seed) for rank in fabric.simulated(np.arange(num_ranks)).tolist()}
        models = None
        if self.memory is not None:
            models = SharedModels(engine, self.memory, self.compute.kernel, [*paces.values()])
        return Simulation(Machine(engine, fabric, self.compute, num_ranks, self.memory, models), paces, seed)

    def _pace(self, rank: int, seed: int) -> Pace:
        factor, slowdowns = self.stragglers.get(rank, 1.0), self.slowdowns.get(rank)
        return Pace(factor, slowdowns, self.compute.jitter, (seed, rank))


class Simulation:
    """One run of a machine.

    Args:
        machine: at virtual time 0.
        paces: of the ranks that are simulated, by rank.
        seed: of torch's global random numbers.

    Attributes:
        places: of the ranks that are simulated.
        failure: why it did not end well, or None.
    """

    def __init__(self, machine: Machine, paces: Mapping[int, Pace], seed: int) -> None:
        self.machine = machine
        self.places = [SimulatedPlace(machine, rank, _device(machine, pace)) for rank, pace in paces.items()]
        for place in self.places:
            place.timelines.account.exchanges_kept = max(64, timeline.MAX_EVENTS // len(self.places))
        self.failure: BaseException | None = None
        self._seed = seed

    def run(
        self,
        body: Callable[[SimulatedPlace], None],
        look: Callable[[], None],
        num_peers: int | None = None,
    ) -> None:
        """Run `body` on every rank, from virtual time 0 to the end.

        Args:
            look: called now and then in the calling thread.
            num_peers: ranks, the first ones, that find a default process group of theirs; None for all.
        """
        engine = self.machine.engine
        for place in self.places:
            num_ranks = self.machine.num_ranks
            life = partial(place.live, partial(body, place), num_ranks if num_peers is None else num_peers)
            engine.spawn(place.rank, engine.named(place.rank), life, start_s=0.0)
        try:
            with torch_world.isolated(self._seed, self.machine.fake):
                engine.run(look)
        except (TwinclockError, KeyboardInterrupt) as failure:
            self.failure = failure
        if self.failure is None and (doubt := self.machine.fabric.links.verdict()):
            self.failure = UserError(doubt)

    def reports(self) -> list[WorkerReport]:
        """Where the time of each rank went; ranks that are not simulated are as the first of their class."""
        symmetry = self.machine.fabric.symmetry
        simulated = {report.rank: report for report in self._simulated_reports()}
        if symmetry is None:
            return [*simulated.values()]
        return [replace(simulated[first], rank=rank) for rank, first in enumerate(symmetry.classes.tolist())]

    def _simulated_reports(self) -> list[WorkerReport]:
        sent_bytes = self.machine.fabric.sent_bytes
        return [
            WorkerReport(
                rank=place.rank,
                finish_s=place.finish_s,
                compute_s=split.compute_s,
                comm_s=split.exposed_s,
                idle_s=split.idle_s,
                sent_bytes=sent_bytes[place.rank],
            )
            for place, split in zip(self.places, self.splits(), strict=True)
        ]

    def splits(self) -> list[Split]:
        """Where the time of each rank went, hidden communication too."""
        return [place.timelines.account.split(place.finish_s) for place in self.places]

    def overlap_frac(self) -> float | None:
        """Communication hidden behind computation over all communication, of all ranks; None where there was none."""
        splits = self.splits()
        hidden_s = sum(split.hidden_s for split in splits)
        communication_s = hidden_s + sum(split.exposed_s for split in splits)
        return hidden_s / communication_s if communication_s else None

    def traffic(self) -> dict[str, Traffic]:
        """What each link has carried, those that carried something, the busiest first."""
        links = self.machine.fabric.links.traffic()
        busiest = sorted(links, key=lambda name: -links[name].busy_s)
        return {name: links[name] for name in busiest if links[name].wire_bytes}


def _device(machine: Machine, pace: Pace) -> Device:
    if machine.compute.streams:
        return StreamDevice(machine.engine, pace, machine.compute.launch_s)
    return HostDevice(machine.engine, pace)


def _require_all(items: Iterable[tuple[object, float]], name: str, rule: str, holds: Callable[[float], bool]) -> None:
    for key, value in items:
        require(holds(value), f"hardware.{name}.{key}", rule, value)


def _deaths(machine: Machine, budget_samples: int) -> dict[str, Any]:
    """Who died, and what of the budget nobody has said to have processed."""
    died = sorted(machine.engine.died.items(), key=itemgetter(1, 0))
    return {
        "run/deaths": [{"rank": rank, "time_s": time_s} for rank, time_s in died],
        "run/lost_samples": max(0, budget_samples - machine.counters["samples"]),
    }


def _look_at_the_end(execution: Execution, machine: Machine, workers: Sequence[Worker]) -> None:
    """Observe the shared model as the survivors leave it: short of the last milestone, which is of the whole budget."""
    samples, updates = machine.counters["samples"], machine.counters["updates"]
    models = (worker.last_observed() for worker in workers)
    model = next((each for each in models if each is not None), None)
    if model is not None and samples > max((seen.samples for seen in execution.observations), default=0):
        execution.observations.append(Observation(execution.run_s, time.perf_counter(), samples, updates, model))


def _metrics(simulation: Simulation, run_s: float, host_s: float) -> dict[str, Any]:
    machine, overlap_frac = simulation.machine, simulation.overlap_frac()
    metrics: dict[str, Any] = {"sim/events_per_s": machine.engine.events / host_s}
    if overlap_frac is not None:
        metrics["perf/overlap_frac"] = overlap_frac
    if run_s > 0:
        metrics["sim/slowdown"] = host_s / run_s
        for name, carried in [*simulation.traffic().items()][:1]:
            metrics |= {"sim/busiest_link": name, "sim/busiest_link_frac": carried.busy_s / run_s}
    return metrics | (machine.models.metrics() if machine.models is not None else {})
