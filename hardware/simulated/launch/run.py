"""Runs a script as all ranks of a simulated machine, and says what became of it."""

import os
import time
from math import inf
from pathlib import Path

import numpy as np
from rich.console import Console

from hardware.base import Hardware
from hardware.simulated import timeline
from hardware.simulated.compute import Fixed, Measured
from hardware.simulated.engine import Engine
from hardware.simulated.launch.options import Options
from hardware.simulated.launch.output import OutputClosed
from hardware.simulated.launch.patches import as_rank, patched
from hardware.simulated.launch.process import RankProcess, processes
from hardware.simulated.launch.virtual_time import RankClock
from hardware.simulated.machine import Simulated, Simulation
from hardware.simulated.place import SimulatedPlace
from harness.errors import UserError

PATIENCE_S = 60.0  # host seconds that a rank may take between two events before it is talked of


def run(hardware: Hardware, options: Options) -> int:
    """Run a script in virtual time; returns the exit status.

    Raises:
        UserError: if the hardware is not simulated.
        WorkerFailed: if a rank failed.
    """
    if not isinstance(hardware, Simulated):
        raise UserError("--hardware must be simulated, such as sim_ethernet: for real machines there is torchrun")
    if isinstance(hardware.compute, Fixed):
        raise UserError(
            "hardware/compute=fixed is a cost of samples, which a script does not say it works on: choose one of "
            "operators, such as cascade_lake_core or measured"
        )
    hardware.check()
    _check(options, hardware.workers_offered)
    simulation = hardware.simulation(options.seed)
    engine, machine = simulation.machine.engine, simulation.machine
    ranks = [  # before any of them runs, and changes what the next one would find
        RankProcess(rank, options.seed, environment, options.script, options.arguments)
        for rank, environment in enumerate(_environments(machine.fabric.hosts))
    ]

    def body(place: SimulatedPlace) -> None:
        process, activity = ranks[place.rank], engine.current
        activity.enter, activity.leave = process.enter, process.leave
        with as_rank(place.rank, clock):
            process.enter()
            process.run()

    began_s = time.perf_counter()
    clock = RankClock(engine, time.time())
    patches = patched(machine.store, machine.num_ranks, options.log_rank, isinstance(hardware.compute, Measured))
    with processes(options.script.parent, ranks), patches:
        simulation.run(body, Watch(engine).look, num_peers=0)
    host_s = time.perf_counter() - began_s
    if isinstance(simulation.failure, OutputClosed):
        raise simulation.failure
    _show(simulation, host_s)
    if options.timeline:
        _write_timeline(simulation, Path(options.timeline))
    if simulation.failure is not None:
        raise simulation.failure
    return 0


class Watch:
    """Says, once each time, that a rank keeps all others waiting."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self._events, self._since_s, self._told = engine, -1, 0.0, False

    def look(self) -> None:
        """Called now and then."""
        if self._engine.events != self._events:
            self._events, self._since_s, self._told = self._engine.events, time.perf_counter(), False
        elif not self._told and time.perf_counter() > self._since_s + PATIENCE_S:
            self._told = True
            _console().print(
                f"note: {self._engine.whereabouts()}, has kept all others waiting for {PATIENCE_S:.0f} s of the host's "
                "time: it computes, or waits for what only another rank could do"
            )


def _check(options: Options, num_ranks: int) -> None:
    if options.log_rank != "all" and int(options.log_rank) >= num_ranks:
        raise UserError(f"--log-rank must be below the number of ranks, {num_ranks}, or all, got {options.log_rank}")
    path = Path(options.timeline).resolve()
    if options.timeline and (path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK)):
        raise UserError(f"--timeline {options.timeline} cannot be written: name a file in a folder that is writable")


def _write_timeline(simulation: Simulation, path: Path) -> None:
    """Write it, or say that it could not be."""
    try:
        written = timeline.write(path, [place.timelines.account for place in simulation.places])
    except OSError as error:
        failure = UserError(
            f"--timeline {path} cannot be written ({error.strerror}): free disk space, or choose another"
        )
        simulation.failure = simulation.failure or failure
        return
    part = "" if written.until_s == inf else f", only those that begin before {written.until_s:.6g} s"
    _console().print(f"  timeline    {path}: {written.events} events{part}, for ui.perfetto.dev")


def _console() -> Console:
    return Console(stderr=True, highlight=False, soft_wrap=True)


def _environments(hosts: np.ndarray) -> list[dict[str, str]]:
    """What torchrun would put into the environment, by rank."""
    names = {host: index for index, host in enumerate(dict.fromkeys(hosts.tolist()))}
    environments, seen = [], dict.fromkeys(names, 0)
    for rank, host in enumerate(hosts.tolist()):
        local_world = int((hosts == host).sum())
        values = {
            "RANK": rank,
            "LOCAL_RANK": seen[host],
            "WORLD_SIZE": len(hosts),
            "LOCAL_WORLD_SIZE": local_world,
            "GROUP_RANK": names[host],
            "NODE_RANK": names[host],
            "GROUP_WORLD_SIZE": len(names),
            "ROLE_RANK": rank,
            "ROLE_WORLD_SIZE": len(hosts),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": 29500,
            "OMP_NUM_THREADS": 1,
            "TORCHELASTIC_RUN_ID": "simulated",
        }
        environments.append(dict(os.environ) | {name: str(value) for name, value in values.items()})
        seen[host] += 1
    return environments


def _show(simulation: Simulation, host_s: float) -> None:
    """What it took, in words."""
    reports, traffic = simulation.reports(), simulation.traffic()
    virtual_s = max(report.finish_s for report in reports)
    total_s = sum(report.finish_s for report in reports) or 1.0
    shares = {
        "compute": sum(report.compute_s for report in reports) / total_s,
        "communication not hidden behind it": sum(report.comm_s for report in reports) / total_s,
        "issuing": sum(split.issuing_s for split in simulation.splits()) / total_s,
        "idle": sum(report.idle_s for report in reports) / total_s,
    }
    overlap_frac = simulation.overlap_frac()
    wire_bytes = sum(carried.wire_bytes for carried in traffic.values())
    console = _console()
    console.print(f"{len(reports)} ranks: {virtual_s:.6g} virtual s in {host_s:.3g} host s")
    if said := [f"{share:.0%} {name}" for name, share in shares.items() if share >= 0.005]:
        console.print(f"  time        {', '.join(said)}")
    if overlap_frac is not None:
        console.print(f"  overlap     {overlap_frac:.0%} of communication is hidden behind computation")
    console.print(
        f"  bytes       {sum(report.sent_bytes for report in reports):.4g} handed in, {wire_bytes:.4g} on links"
    )
    for report in reports:
        if report.finish_s >= (dies_s := simulation.machine.engine.deaths.get(report.rank, inf)):
            console.print(f"  died        rank {report.rank} at {dies_s:.6g} s")
    for name, busiest in [*traffic.items()][:1]:
        busy = busiest.busy_s / virtual_s if virtual_s else 0.0
        console.print(
            f"  busiest     {name}: {busiest.busy_s:.4g} s, {busy:.0%} of the run, {busiest.wire_bytes:.4g} bytes"
        )
