"""What a run is compared with: sequential SGD with its own step and batches, and the same algorithm with one worker.

Both are found in the index of runs or run first. A run is found only if everything that decides its result is equal:
settings, code, library versions and, for real hardware, the host. With baseline=fresh both are run again.
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from algorithms.common.optimizers import PlainSGD
from algorithms.common.schedules import Constant
from algorithms.sgd import SGD
from harness.build import class_path
from harness.errors import TwinclockError, UserError, WorkerFailed, require
from harness.index import RunIndex, code_digest, key
from harness.manifest import host, manifest, versions
from harness.metrics import Row, Summary, compare, retarget, time_to_best
from harness.progress import Progress
from harness.record import Record
from harness.setup import Setup, run_info
from harness.trial import Outcome, execute

PACKAGES = ("algorithms", "harness", "hardware")
FOUND = ("auto", "fresh")  # a baseline that the harness finds; others are named
CONSTANT = Constant(warmup_epochs=0.0, warmup_start=0.1)  # as in its YAML file


@dataclass(frozen=True)
class Reference:
    """A run to compare with."""

    rows: Sequence[Row]
    summary: Summary


@dataclass(frozen=True)
class References:
    """What one run is compared with.

    Args:
        baseline: the sequential run; None where it is the run itself.
        alone: the same algorithm with one worker; None where it is the run itself.
    """

    baseline: Reference | None
    alone: Reference | None

    def compare(self, outcome: Outcome, target_loss: float | None) -> Summary:
        """Speedups and statistical efficiency against both, at the run's own target."""
        own = Reference(outcome.rows, outcome.summary)
        baseline, alone = (retarget(r.summary, r.rows, target_loss) for r in (self.baseline or own, self.alone or own))
        found = compare(outcome.summary, baseline, alone)
        if "search/trials" in outcome.summary:
            found |= time_to_best(own.rows, (self.baseline or own).rows)
        return found


def sequential(setup: Setup) -> Setup:
    """The baseline's setup: the fastest sequential code, on one worker with one thread of the same hardware.

    That is per-sample SGD where the problem has a native kernel that the hardware can run, else SGD with the run's own
    step and batches, good or bad: a better one can be named (`baseline=<run id>`). The step of a method that is not SGD
    is none of SGD's. Data servers are left out: it has the rows.
    """
    own, problem = setup.algorithm, setup.problem
    if problem.kernel is not None and setup.hardware.runs_kernels and (own.batch_size != 1 or not own.is_sgd):
        best = SGD(problem.learning_rate, batch_size=1, accumulate=1, optimizer=PlainSGD(0.0), schedule=CONSTANT)
    else:
        optimizer, schedule = getattr(own, "optimizer", PlainSGD(0.0)), getattr(own, "schedule", CONSTANT)
        best = SGD(own.learning_rate, own.batch_size, accumulate=1, optimizer=optimizer, schedule=schedule)
    return replace(in_sequence(setup), algorithm=best, choices=setup.choices | {"algorithm": "sgd"})


def in_sequence(setup: Setup) -> Setup:
    """The same algorithm on one worker, with nothing parallel in it or beside it."""
    return replace(alone(setup), hardware=setup.hardware.sequential(), data=setup.data.at_hand())


def alone(setup: Setup) -> Setup:
    """The same algorithm, with one worker."""
    return replace(setup.with_workers(1), settings=replace(setup.settings, replay=None))


def find_references(setup: Setup, index: RunIndex, progress: Progress) -> References | None:
    """Find or run what `setup` is compared with, as `baseline=auto|fresh|none|<run id>` says.

    Returns:
        None for `baseline=none`.

    Raises:
        UserError: if there is no such run id, or its run cannot be compared with.
        WorkerFailed: if a baseline does not finish.
    """
    wanted = setup.settings.baseline
    if wanted == "none" or not setup.algorithm.trains or setup.problem.is_fake:
        return None
    if wanted in FOUND and setup.algorithm.own_baseline:
        itself = _find_or_run(in_sequence(setup), setup, index, progress)
        return References(itself, _find_or_run(alone(setup), setup, index, progress))
    if wanted not in FOUND:
        return References(_given(wanted, setup, index), _find_or_run(alone(setup), setup, index, progress))
    return References(
        _find_or_run(sequential(setup), setup, index, progress), _find_or_run(alone(setup), setup, index, progress)
    )


def run_key(setup: Setup) -> str:
    """A hash of everything that decides the result of a run, but for its target."""
    components = (setup.algorithm, setup.problem, setup.data, setup.hardware)
    return key(
        {
            "components": [[class_path(component), asdict(component)] for component in components],
            "data": setup.problem.data_version(),
            "settings": [setup.settings.seed, asdict(setup.settings.budget), setup.settings.replay],
            "code": code_digest(_sources(components)),
            "versions": versions(),
            "host": host() if setup.hardware.kind == "real" else None,
        }
    )


def _find_or_run(wanted: Setup, setup: Setup, index: RunIndex, progress: Progress) -> Reference | None:
    if run_key(wanted) == run_key(setup):
        return None
    found = None if setup.settings.baseline == "fresh" else index.find(run_key(wanted))
    return _reference(found) if found else _run(wanted, index, progress)


def _run(setup: Setup, index: RunIndex, progress: Progress) -> Reference:
    info = run_info(setup, _described(setup), None)
    outcome = execute(setup, info, f"first {info.name}, to compare with", progress)
    if setup.tracking.writes_files:
        record = Record(index.root / "baselines" / info.id)
        record.start(manifest(info, []))
        outcome.keep(record)
        index.add(run_key(setup), record)
    if isinstance(outcome.failure, TwinclockError):
        details = getattr(outcome.failure, "details", "")
        raise WorkerFailed(f"the baseline {info.name} failed: {outcome.failure} (baseline=none does without)", details)
    if outcome.failure is not None:
        raise outcome.failure
    return Reference(outcome.rows, outcome.summary)


def _given(run_id: str, setup: Setup, index: RunIndex) -> Reference:
    record = index.get(run_id)
    if record is None:
        rule = "there is no such run in"
        raise UserError(f"baseline={run_id}: {rule} {index.path}; use baseline=auto, fresh, none or an id of it")
    reference, manifest, info = _reference(record), record.manifest(), run_info(setup, {}, None)
    field, status = f"baseline={run_id}", reference.summary["run/status"]
    require(status == "finished", field, "must name a run that finished: use baseline=auto", status)
    require(manifest["kind"] == info.kind, field, f"must name a {info.kind} run: use baseline=auto", manifest["kind"])
    rule = "must name a run of the same problem, data and seed: use baseline=auto"
    require(manifest.get("problem_id") == info.problem_id, field, rule, manifest["name"])
    return reference


def _described(setup: Setup) -> dict[str, Any]:
    """The settings of a run that was never on a command line."""
    parts = ("algorithm", "hardware", "problem", "data", "settings")
    return {part: {"_target_": class_path(getattr(setup, part)), **asdict(getattr(setup, part))} for part in parts}


def _reference(record: Record) -> Reference:
    return Reference(record.rows(), record.summary())


def _sources(components: tuple) -> list[Path]:
    root = Path(__file__).parents[1]
    homes = {Path(str(sys.modules[type(component).__module__].__file__)).parent for component in components}
    users = {path for home in homes if not home.is_relative_to(root) for path in home.glob("*.py")}
    return [root / package for package in PACKAGES] + sorted(users)
