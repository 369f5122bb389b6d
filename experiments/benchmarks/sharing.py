"""Sharing a model between workers: how fast, and what the simulator makes of it.

    python -m experiments.benchmarks.sharing [whole_run | locks | crossover | model | sockets] ...

Prints one JSON line for each part, all of them by default; whatever is compared takes turns within one run.

    whole_run  two workers with replicas merged by delta_sum against the best sequential kernel: throughput, seconds to
               the target, final loss
    locks      two workers, lock-free and with every lock, on sparse rows with many features and on hot ones with few
    crossover  the same as gradients take longer: round robin against lock-free
    model      throughput speedup of two workers, predicted by calibrations within this run, against the real one
               (each as median, least and largest), with the signed error of the prediction
    sockets    simulated machines of two and four sockets, 1 to 64 workers: speedup by sharing; simulated updates/s
"""

import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils import parameters_to_vector

from hardware.base import Execution, Hardware
from hardware.real.topology import read_topology
from harness.build import build
from harness.calibrate import core, files, memory
from harness.cli import composed
from harness.metrics import history, to_target
from harness.place import Observation
from harness.problems.base import Problem
from harness.program import Program
from harness.trial import evaluate
from harness.worker import Worker

Figures = dict[str, Any]
TRIALS = 7  # of each, after one to warm up
CALIBRATIONS = 3  # of each case of `model`
STEADY = (0.2, 0.8)  # shares of a run's samples between which all workers are at work
MAX_STOLEN = 0.02  # share of the workers' time for which others had their cores, in a trial that counts
ATTEMPTS = 6  # at such a trial; then the least disturbed one counts
REPLICAS = ("sharing=replica_per_worker", "merge=delta_sum")
LOCKINGS = ("none", "atomic", "global_spin", "global_mutex", "per_coordinate", "round_robin")
SPARSE, HOT = ("synthetic_features=1000000", "synthetic_popularity=uniform"), ("synthetic_features=1000",)
CORES_OF_32 = (  # of a socket, which share its memory's 113.1 and 34.3 GB/s (conf/hardware/memory/cascade_lake.yaml)
    "hardware.memory.cores_per_socket=32",
    f"hardware.memory.local_bytes_per_s={113.1e9 / 32}",
    f"hardware.memory.remote_bytes_per_s={34.3e9 / 32}",
)
CASES = {  # of `model`: settings of the problem, and of hogwild
    "shared Zipf": ((), ()),
    "shared uniform": (SPARSE, ()),
    "hot adjacent": ((), ("layout=by_heat",)),
    "padded": ((), ("layout=padded",)),
    "replicas": ((), REPLICAS),
    "spin lock": ((), ("locking=global_spin",)),
    "mutex": ((), ("locking=global_mutex",)),
    "atomic": ((), ("locking=atomic",)),
}


@dataclass(frozen=True)
class Watched(Program):
    """A program that notes for how long each of its workers was ready to run, and others had its core.

    Args:
        stolen_s: of the workers, where they are threads of this process.
    """

    stolen_s: list[float] = field(default_factory=list)

    def run(self, worker: Worker) -> None:
        """Do one worker's whole training."""
        before_s = kept_waiting_s()
        super().run(worker)
        self.stolen_s.append(kept_waiting_s() - before_s)


@dataclass(frozen=True)
class Case:
    """An algorithm on a hardware, ready to run.

    Args:
        epochs: passes over the problem's samples in a trial.
        observed: shares of a trial's samples after which the model is copied.
    """

    algorithm: str
    settings: tuple[str, ...]
    hardware: Hardware
    problem: Problem
    epochs: float = 8.0
    observed: Sequence[float] = (*STEADY, 1.0)

    def run(self) -> Execution:
        """Once.

        Raises:
            TwinclockError: if it fails.
        """
        return self.watched()[0]

    def watched(self) -> tuple[Execution, float]:
        """Once; with the share of its workers' time for which others had their cores."""
        program = self.program()
        execution = self.executed(program)
        return execution, sum(program.stolen_s) / (len(execution.workers) * execution.run_s)

    def program(self) -> Watched:
        """What is run."""
        overrides = [f"algorithm={self.algorithm}", *(f"algorithm.{setting}" for setting in self.settings)]
        node = composed([*overrides, f"algorithm.learning_rate={self.problem.learning_rate}"])
        budget = round(self.epochs * self.problem.num_samples)
        milestones = [round(budget * share) for share in self.observed]
        return Watched(
            build(node.algorithm, "algorithm"), self.problem, build(node.data, "data"), 0, budget, milestones
        )

    def executed(self, program: Watched) -> Execution:
        """Run what `program` returned."""
        execution = self.hardware.execute(program, lambda samples: None)
        if execution.failure is not None:
            raise execution.failure
        return execution

    def samples_per_s(self) -> float:
        """In the steady part of a run, of the least disturbed of some attempts."""
        attempts = list[tuple[float, float]]()
        while len(attempts) < ATTEMPTS and min(attempts, default=(1.0, 0.0))[0] > MAX_STOLEN:
            execution, stolen = self.watched()
            attempts.append((stolen, steady(execution)))
        return min(attempts)[1]


def kept_waiting_s() -> float:
    """For how long this thread was ready to run, and others had its core, since it began."""
    return 1e-9 * int(Path("/proc/thread-self/schedstat").read_text().split()[1])


def steady(execution: Execution) -> float:
    """Samples per second between its first two observations: neither starting nor ending is part of it."""
    begin, end = execution.observations[:2]
    return (end.samples - begin.samples) / (end.time_s - begin.time_s)


def problem_of(*settings: str) -> Problem:
    """Logistic regression, with some settings changed."""
    return build(composed([f"problem.{setting}" for setting in ("dtype=float32", *settings)]).problem, "problem")


def hardware_of(name: str, workers: int, *overrides: str, config_dir: Path | None = None) -> Hardware:
    """A hardware of conf/, with some settings changed."""
    chosen = [f"hardware={name}", *overrides, f"hardware.num_workers={workers}"]
    return build(composed(chosen, config_dir).hardware, "hardware")


def in_turn(cases: dict[str, Case], trials: int = TRIALS) -> dict[str, list[float]]:
    """Samples per second of each, in trials that take turns, after one to warm up."""
    speeds: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(trials + 1):
        for name, case in cases.items():
            speeds[name].append(case.samples_per_s())
    return {name: speed[1:] for name, speed in speeds.items()}


def whole_run() -> Figures:
    """Ten epochs; seconds to the target as every run has them (`metrics.to_target`: between two snapshots)."""
    problem, often = problem_of(), [(turn + 1) / 100 for turn in range(100)]
    cases = {
        "sequential": Case("sgd", (), hardware_of("cpu", 1), problem, epochs=10.0, observed=often),
        "replicas": Case("hogwild", REPLICAS, hardware_of("cpu", 2), problem, epochs=10.0, observed=often),
    }
    weights = parameters_to_vector(problem.build_model(torch.device("cpu"), 0).parameters()).detach()
    start = Observation(0.0, 0.0, 0, 0, weights)
    initial = evaluate(problem, 0, [start])
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in cases}
    for _ in range(TRIALS + 1):
        for name, case in cases.items():
            done = case.run()
            rows = history([start, *done.observations], initial + evaluate(problem, 0, done.observations), 1, 0.0)
            to_target_s = to_target(rows, problem.target_loss).get("target/time_s", math.nan)
            found[name].append((done.run_s, to_target_s, rows[-1]["train/loss"]))
    ratios = [
        (alone[0] / both[0], alone[1] / both[1], both[2] / alone[2])
        for alone, both in list(zip(found["sequential"], found["replicas"], strict=True))[1:]
    ]
    names = ("throughput_speedup", "time_to_target_speedup", "final_loss_ratio")
    return {
        name: round(statistics.median(ratio), 3) for name, ratio in zip(names, zip(*ratios, strict=True), strict=True)
    }


def locks() -> Figures:
    """Throughput speedup over the best sequential kernel."""
    return {
        name: speedups(
            problem_of(*settings, "synthetic_samples=40000"), {lock: (f"locking={lock}",) for lock in LOCKINGS}
        )
        for name, settings in (("sparse", SPARSE), ("hot", HOT))
    }


def crossover() -> Figures:
    """Round robin over lock-free throughput, by seconds that a gradient takes longer."""
    ratios = {}
    for delay_s, samples in ((0.0, 20_000), (1e-6, 20_000), (1e-5, 10_000), (1e-4, 2_000), (1e-3, 400)):
        problem = problem_of(f"synthetic_samples={samples}")
        ways = {lock: (f"locking={lock}", f"gradient_delay_s={delay_s}") for lock in ("none", "round_robin")}
        cases = {name: Case("hogwild", how, hardware_of("cpu", 2), problem, epochs=1.0) for name, how in ways.items()}
        speed = in_turn(cases, trials=5)
        ratios[f"{delay_s:g}"] = round(statistics.median(over(speed["round_robin"], speed["none"])), 3)
    return {"round_robin_over_lock_free": ratios}


def over(speeds: Sequence[float], others: Sequence[float]) -> list[float]:
    """Ratios of trials that took turns."""
    return [speed / other for speed, other in zip(speeds, others, strict=True)]


def speedups(problem: Problem, ways: dict[str, tuple[str, ...]]) -> dict[str, float]:
    """Of two real workers over the best sequential kernel, in throughput."""
    cases = {name: Case("hogwild", settings, hardware_of("cpu", 2), problem) for name, settings in ways.items()}
    speed = in_turn({"sequential": Case("sgd", (), hardware_of("cpu", 1), problem), **cases})
    return {name: round(statistics.median(over(speed[name], speed["sequential"])), 3) for name in ways}


def model() -> Figures:
    """Predicted and real speedups, medians and ranges, and the signed error of the first.

    Calibrations take turns with real runs: a shared machine changes by the minute.
    """
    figures: dict[str, Figures] = {}
    for name, (problem_settings, settings) in CASES.items():
        problem = problem_of(*problem_settings, "synthetic_samples=60000")
        alone, together = pair(problem, settings, [hardware_of("cpu", 1), hardware_of("cpu", 2)], epochs=8.0)
        real, predicted = list[float](), list[float]()
        for _ in range(CALIBRATIONS):
            speed = in_turn({"alone": alone, "together": together}, trials=3)
            real += over(speed["together"], speed["alone"])
            model_alone, model_together = pair(problem, settings, calibrated(), epochs=2.0)
            predicted.append(steady(model_together.run()) / steady(model_alone.run()))
        error = statistics.median(predicted) / statistics.median(real) - 1
        figures[name] = {"predicted": middle_and_range(predicted), "real": middle_and_range(real)}
        figures[name]["error"] = round(error, 3)
        print(f"{name:16s}{figures[name]}", file=sys.stderr, flush=True)
    return figures


def middle_and_range(ratios: Sequence[float]) -> list[float]:
    """Median, least and largest."""
    return [round(ratio, 3) for ratio in (statistics.median(ratios), min(ratios), max(ratios))]


def calibrated() -> list[Hardware]:
    """Models of this machine as it is now, with one worker and with two."""
    topology = read_topology()
    machine = "sim_cpu" if topology.num_sockets == 1 else "sim_numa2"
    chosen = ("hardware/memory=here", "hardware/compute=here")
    with tempfile.TemporaryDirectory() as folder:
        found = [*memory.constants(topology), *core.constants(topology.cores[0].cpus[0])]
        files.write(Path(folder), "here", "this machine", found)
        return [hardware_of(machine, count, *chosen, config_dir=Path(folder)) for count in (1, 2)]


def pair(problem: Problem, settings: tuple[str, ...], machines: Sequence[Hardware], epochs: float) -> tuple[Case, Case]:
    """Sequential SGD on the first machine, and Hogwild on the second."""
    alone = Case("sgd", (), machines[0], problem, epochs)
    return alone, Case("hogwild", settings, machines[1], problem, epochs)


def sockets() -> Figures:
    """Simulated speedups over one worker, and simulated updates per second of host time."""
    problem, figures = problem_of("synthetic_samples=20000"), Figures()
    for machine in ("sim_numa2", "sim_numa4"):
        alone = steady(Case("sgd", (), hardware_of(machine, 1), problem).run())
        for sharing in ("shared", "replica_per_node", "replica_per_worker"):
            curve = {}
            for workers in (1, 2, 4, 8, 16, 32, 64):
                hardware = hardware_of(machine, workers, *CORES_OF_32)
                case = Case("hogwild", (f"sharing={sharing}", "merge_every=1024"), hardware, problem)
                curve[workers] = round(steady(case.run()) / alone, 2)
            figures[f"{machine} {sharing}"] = curve
    figures["updates_per_s"] = {f"{nonzeros} nonzeros": rate(nonzeros) for nonzeros in (10, 75)}
    return figures


def rate(nonzeros: int) -> float:
    """Simulated updates per second of host time, of four workers on a shared model."""
    problem = problem_of("synthetic_samples=100000", f"synthetic_nonzeros_per_sample={nonzeros}")
    case, rates = Case("hogwild", (), hardware_of("sim_numa2", 4), problem, epochs=1.0), []
    for _ in range(4):
        program, begin_s = case.program(), time.perf_counter()
        case.executed(program)
        rates.append(problem.num_samples / (time.perf_counter() - begin_s))
    return round(statistics.median(rates[1:]))


PARTS: dict[str, Callable[[], Figures]] = {
    part.__name__: part for part in (whole_run, locks, crossover, model, sockets)
}


def main(names: list[str]) -> None:
    """Print one JSON line for each part."""
    for name in names or PARTS:
        print(json.dumps({"benchmark": "sharing", "part": name, **PARTS[name]()}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
