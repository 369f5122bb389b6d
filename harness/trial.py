"""Execute one setup, then evaluate what was observed. Knows nothing of baselines, files or W&B."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from hardware.base import Execution
from harness.compiling import announced
from harness.errors import Diverged, WorkerFailed
from harness.interleaving import FILE, Interleaving, write
from harness.manifest import RunInfo
from harness.metrics import Row, Summary, first_divergence, history, summarise
from harness.problems.base import Problem
from harness.progress import Progress
from harness.record import Record, Status
from harness.setup import Setup
from harness.worker import Observation


@dataclass(frozen=True)
class Outcome:
    """What a run came to.

    Args:
        facts: what happened to the machine, for the manifest.
        tags: marks that belong on every record of this run.
        failure: why it did not finish, or None; rows and summary hold what was observed until then.
        timeline: writes what each worker did when to a file; None where that is not known.
        interleavings: by rank, what timing decided; empty where that does not decide all.
    """

    rows: list[Row]
    summary: Summary
    facts: dict[str, Any]
    tags: list[str]
    failure: BaseException | None
    timeline: Callable[[Path], object] | None = None
    interleavings: Sequence[Interleaving] = ()

    @property
    def status(self) -> Status:
        """In the words of summary.json."""
        if self.failure is None:
            return "finished"
        if isinstance(self.failure, KeyboardInterrupt):
            return "interrupted"
        return "diverged" if isinstance(self.failure, Diverged) else "failed"

    def keep(self, record: Record) -> None:
        """Write rows, summary, facts, tags and timeline to a record that was started."""
        for row in self.rows:
            record.append(row)
        record.amend({"facts": self.facts, "tags": [*record.manifest()["tags"], *self.tags]})
        record.finish(self.summary, self.status, str(self.failure or ""))
        if self.interleavings:
            record.attach(FILE, partial(write, interleavings=self.interleavings))
        if self.timeline is not None:
            record.attach("timeline.pt.trace.json.gz", self.timeline)


def failed(info: RunInfo, failure: BaseException) -> Outcome:
    """The outcome of a run that failed before anything was observed."""
    return Outcome([], _stamp(info, []), {}, [], failure)


def execute(setup: Setup, info: RunInfo, label: str, progress: Progress) -> Outcome:
    """Execute, then evaluate what was observed.

    Args:
        label: what the progress bar says.
    """
    start_host_s = time.perf_counter()
    program, problem = setup.program(), setup.problem
    virtual = setup.hardware.clock_kind == "virtual"
    with announced(progress.say), progress.phase(label, program.budget_samples, virtual) as update:
        execution = setup.machine.execute(program, update)
    seen, spreads = averaged(execution.observations, setup.num_workers)
    observations = [_initial_observation(problem, setup.settings.seed, start_host_s), *seen]
    losses = evaluate(problem, setup.settings.seed, observations)
    evaluations = [values | spread for values, spread in zip(losses, [{}, *spreads], strict=True)]
    rows = history(observations, evaluations, problem.num_samples, start_host_s)
    summary = summarise(execution, rows, problem.num_samples, setup.num_workers, setup.settings.target.loss)
    if setup.num_servers:
        summary["run/num_servers"] = setup.num_servers
    summary |= setup.algorithm.constants(setup.num_workers)
    failure = execution.failure or _silence(execution) or _divergence(observations, evaluations, problem.num_samples)
    summary |= _stamp(info, execution.tags)
    decided = [] if setup.algorithm.needs_shared_memory else execution.interleavings
    asynchronous = any(each.claims or each.sources for each in decided)
    interleavings = decided if asynchronous else []
    return Outcome(rows, summary, execution.facts, execution.tags, failure, execution.timeline, interleavings)


def evaluate(problem: Problem, seed: int, observations: Sequence[Observation]) -> list[dict[str, float]]:
    """The metrics of every observed model, off the clock."""
    model = problem.build_model(torch.device("cpu"), seed)
    evaluations = []
    with torch.no_grad():
        for observation in observations:
            vector_to_parameters(observation.parameters, model.parameters())
            evaluations.append(problem.evaluate(model))
    return evaluations


def averaged(observations: Sequence[Observation], num_workers: int) -> tuple[list[Observation], list[dict[str, float]]]:
    """What was observed of the run's model: as it was, or the average of the workers' own models at each milestone.

    Returns:
        observations in the order of samples, the time of an average being that of the last worker; and of each average
        the consensus distance, 1/P sum_i |w_i - average|^2 (Koloskova et al., ICML 2020, section 3). Milestones that
        some worker did not live to see are left out.
    """
    members: dict[int, list[Observation]] = {}
    for seen in observations:
        if seen.member is not None:
            members.setdefault(seen.milestone, []).append(seen)
    averages: list[Observation] = [seen for seen in observations if seen.member is None]
    spreads: list[dict[str, float]] = [{} for _ in averages]
    for _, own in sorted(members.items()):
        if len(own) == num_workers:
            models = torch.stack([seen.parameters for seen in own])
            last = max(own, key=lambda seen: seen.samples)
            average = models.mean(dim=0)
            time_s, host_s = max(seen.time_s for seen in own), max(seen.host_s for seen in own)
            averages.append(replace(last, time_s=time_s, host_s=host_s, parameters=average, member=None))
            distance = float((models - average).double().square().sum(dim=1).mean())
            spreads.append({"stat/consensus_distance": distance})
    return averages, spreads


def _initial_observation(problem: Problem, seed: int, start_host_s: float) -> Observation:
    model = problem.build_model(torch.device("cpu"), seed)
    return Observation(0.0, start_host_s, 0, 0, parameters_to_vector(model.parameters()).detach().clone())


def _silence(execution: Execution) -> WorkerFailed | None:
    if execution.observations:
        return None
    return WorkerFailed("nothing was observed: `train` must call worker.observe(model, samples) after every update")


def _divergence(
    observations: Sequence[Observation], evaluations: Sequence[Mapping[str, float]], num_samples: int
) -> Diverged | None:
    found = first_divergence(observations, evaluations)
    if found is None:
        return None
    epoch = found.samples / num_samples
    return Diverged(f"the loss is nan or infinite after {epoch:.3g} epochs: lower algorithm.learning_rate")


def _stamp(info: RunInfo, tags: Sequence[str]) -> Summary:
    return {
        "run/id": info.id,
        "run/name": info.name,
        "run/kind": info.kind,
        "run/tags": list(tags),
        "time/clock": info.clock_kind,
    }
