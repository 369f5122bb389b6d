"""Execute one setup, then evaluate what was observed. Knows nothing of baselines, files or W&B."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from hardware.base import Execution
from hardware.real.signals import deferred
from harness.compiling import announced
from harness.errors import Diverged, TwinclockError, Unexpected, WorkerFailed
from harness.interleaving import FILE, Interleaving, write
from harness.manifest import RunInfo
from harness.metrics import Row, Summary, first_divergence, history, retarget, summarise
from harness.place import Observation
from harness.problems.base import Problem
from harness.progress import Progress
from harness.record import Record, Status
from harness.setup import Setup


@dataclass(frozen=True)
class Outcome:
    """What a run came to.

    Args:
        facts: what happened to the machine, for the manifest.
        tags: marks that belong on every record of this run.
        failure: why it did not finish, or None; rows and summary hold what was observed until then.
        timeline: writes what each worker did when to a file; None where that is not known.
        interleavings: by rank, what timing decided; empty where that does not decide all.
        unevaluated: the last rows, which have no losses, since the run ended while they were evaluated.
    """

    rows: list[Row]
    summary: Summary
    facts: dict[str, Any]
    tags: list[str]
    failure: BaseException | None
    timeline: Callable[[Path], object] | None = None
    interleavings: Sequence[Interleaving] = ()
    unevaluated: int = 0

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
    rate = "samples/s (host)" if setup.hardware.clock_kind == "virtual" else "samples/s"
    with announced(progress.say), progress.phase(label, program.budget_samples, rate=rate) as update:
        execution = setup.machine.execute(program, update)
    trains, seed = setup.algorithm.trains and not problem.is_fake, setup.settings.seed
    with deferred() as heard:  # until there is something to keep
        seen, spreads = averaged(execution.observations, setup.num_workers)
        observations = [_initial_observation(problem, setup.algorithm.seeds(seed), start_host_s), *seen]
    losses, cut = _evaluated(problem, seed, observations, label, progress, heard) if trains else ([], None)
    unevaluated = len(observations) - len(losses) if trains else 0
    losses += [{} for _ in observations[len(losses) :]]
    evaluations = [values | spread for values, spread in zip(losses, [{}, *spreads], strict=True)]
    rows = history(observations, evaluations, problem.num_samples, start_host_s)
    target = setup.settings.target.loss if trains else None
    summary = summarise(execution, rows, problem.num_samples, setup.num_workers, target)
    if unevaluated and not summary.get("target/reached"):
        summary = retarget(summary, rows, None)  # nobody knows
    if setup.num_servers:
        summary["run/num_servers"] = setup.num_servers
    summary |= setup.algorithm.constants(setup.num_workers)
    if rose := _rise(rows):
        summary["run/warning"] = f"{rose}: try {', or '.join(setup.algorithm.steadies())}"
    if problem.is_fake:
        summary |= setup.presumed()
    silence = (_silence(execution) or missing(execution.observations, setup.num_workers)) if trains else None
    diverged = _divergence(observations, evaluations, problem.num_samples) or _fruitless(setup, summary)
    failure = execution.failure or cut or silence or diverged
    if isinstance(failure, Diverged):  # its rows have losses of before
        summary = {key: value for key, value in summary.items() if not key.startswith(("train/", "eval/"))}
    summary |= _stamp(info, execution.tags)
    decided = [] if setup.algorithm.needs_shared_memory else execution.interleavings
    asynchronous = any(each.claims or each.sources or each.times for each in decided)
    interleavings = decided if asynchronous else []
    if asynchronous and setup.num_workers > 1 and any(batches := [len(each.claims) for each in decided]):
        summary["async/worker_batches"] = batches[: setup.num_workers]
    facts, tags, timeline = execution.facts, execution.tags, execution.timeline
    return Outcome(rows, summary, facts, tags, failure, timeline, interleavings, unevaluated)


def evaluate(problem: Problem, seed: int, observations: Sequence[Observation]) -> list[dict[str, float]]:
    """The metrics of every observed model, off the clock; of the mean of their predictions where there are several."""
    return list(_evaluations(problem, seed, observations))


def _evaluated(
    problem: Problem,
    seed: int,
    observations: Sequence[Observation],
    label: str,
    progress: Progress,
    heard: Sequence[int],
) -> tuple[list[dict[str, float]], BaseException | None]:
    """The metrics of the observed models in their order; and what kept the last ones from being had, or None.

    Args:
        heard: signals that came before.
    """
    done: list[dict[str, float]] = []
    with progress.phase(label, len(observations), of="models evaluated", rate="") as update:
        update(0)
        try:
            if heard:
                raise KeyboardInterrupt
            for values in _evaluations(problem, seed, observations):
                done.append(values)
                update(len(done))
        except KeyboardInterrupt:
            return done, KeyboardInterrupt("while the observed models were evaluated")
        except TwinclockError as error:
            return done, error
        except Exception as error:
            return done, Unexpected.of(error)
    return done, None


def _evaluations(problem: Problem, seed: int, observations: Sequence[Observation]) -> Iterator[dict[str, float]]:
    models = [problem.build_model(torch.device("cpu"), seed)]
    for observation in observations:
        rows = torch.atleast_2d(observation.parameters)  # (models, parameters)
        models += [problem.build_model(torch.device("cpu"), seed) for _ in rows[len(models) :]]
        with torch.no_grad(), nullcontext() if problem.kernel is None else _one_thread():
            for row, model in zip(rows, models, strict=True):
                vector_to_parameters(row, model.parameters())
            values = problem.evaluate(models[0]) if len(models) == 1 else _together(problem, models)
        yield values


@contextmanager
def _one_thread() -> Iterator[None]:
    """A block without torch's other threads: beside native code they have little to do, and on a busy machine each
    operation would wait for them to get a core, many times as long as it takes.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _together(problem: Problem, models: Sequence[nn.Module]) -> dict[str, float]:
    """Of the mean prediction, and the mean of the members' own."""
    alone = [problem.evaluate(model) for model in models]
    own = {f"ensemble/member_{key.replace('/', '_')}": fmean(each[key] for each in alone) for key in alone[0]}
    return problem.evaluate_ensemble(models) | own


def averaged(observations: Sequence[Observation], num_workers: int) -> tuple[list[Observation], list[dict[str, float]]]:
    """What was observed of the run's model: as it was, or the average of the workers' own models at each milestone.

    Where each worker observed its part, all of them together are the model. Where a worker's own are several, in rows
    of one tensor, all of them together are what was observed: an ensemble.

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
            own.sort(key=_rank)
            parameters, spread = _of_all(own)
            last = max(own, key=lambda seen: seen.samples)
            time_s, host_s = max(seen.time_s for seen in own), max(seen.host_s for seen in own)
            averages.append(replace(last, time_s=time_s, host_s=host_s, parameters=parameters, member=None, part=None))
            spreads.append(spread)
    return averages, spreads


def _joined(own: Sequence[Observation]) -> torch.Tensor:
    """The flat parameters of a model that was observed in parts."""
    parts = [(seen.part, seen.parameters) for seen in own if seen.part is not None]
    joined = parts[0][1].new_full((1 + max(int(part.max()) for part, _ in parts if len(part)),), torch.nan)
    for part, parameters in parts:
        joined[part] = parameters
    return joined


def _of_all(own: Sequence[Observation]) -> tuple[torch.Tensor, dict[str, float]]:
    """The parts of a model joined, all of an ensemble, or the average of models and how far they are from it."""
    if own[0].part is not None:
        return _joined(own), {}
    if own[0].parameters.dim() == 2:
        return torch.cat([seen.parameters for seen in own]), {}
    models = torch.stack([seen.parameters for seen in own])
    average = models.mean(dim=0)
    return average, {"stat/consensus_distance": float((models - average).double().square().sum(dim=1).mean())}


def _rank(seen: Observation) -> int:
    assert seen.member is not None
    return seen.member


def _initial_observation(problem: Problem, seeds: Sequence[int], start_host_s: float) -> Observation:
    if problem.is_fake:
        return Observation(0.0, start_host_s, 0, 0, torch.Tensor())
    models = [problem.build_model(torch.device("cpu"), seed) for seed in seeds]
    rows = torch.stack([parameters_to_vector(model.parameters()).detach() for model in models])
    return Observation(0.0, start_host_s, 0, 0, rows if len(rows) > 1 else rows[0])


def _silence(execution: Execution) -> WorkerFailed | None:
    if execution.observations:
        return None
    return WorkerFailed("nothing was observed: `train` must call worker.observe(model, samples) after every update")


def missing(observations: Sequence[Observation], num_workers: int) -> WorkerFailed | None:
    """Where workers have models of their own, one that died and that nobody waited for: its model is not there."""
    last = max((seen.milestone for seen in observations), default=0)
    there = {seen.member for seen in observations if seen.milestone == last}
    gone = sorted({*range(num_workers)} - there)
    if None in there or not gone:
        return None
    return WorkerFailed(f"worker {gone[0]} died: its model was not seen to the end, and those of all are the run's")


def _rise(rows: Sequence[Row]) -> str:
    """Of the loss, in words; empty where it did not."""
    first, last = rows[0].get("train/loss"), rows[-1].get("train/loss")
    return f"train/loss rose from {first:.4g} to {last:.4g}" if first is not None and last and last > first else ""


def _divergence(
    observations: Sequence[Observation], evaluations: Sequence[Mapping[str, float]], num_samples: int
) -> Diverged | None:
    found = first_divergence(observations, evaluations)
    if found is None:
        return None
    epoch = found.samples / num_samples
    return Diverged(f"the loss is nan or infinite after {epoch:.3g} epochs: lower algorithm.learning_rate")


def _fruitless(setup: Setup, summary: Summary) -> Diverged | None:
    """Of a search that has found nothing."""
    trials = summary.get("search/trials", 0)
    if not trials or trials > summary["search/diverged"]:
        return None
    return Diverged(f"all {trials} trials of the search diverged: try {', or '.join(setup.algorithm.steadies())}")


def _stamp(info: RunInfo, tags: Sequence[str]) -> Summary:
    return {
        "run/id": info.id,
        "run/name": info.name,
        "run/kind": info.kind,
        "run/tags": list(tags),
        "time/clock": info.clock_kind,
    }
