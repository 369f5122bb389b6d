"""One run: compose, check, find or run what it is compared with, execute, record, show."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from hardware.real.signals import deferred
from harness.baseline import find_references, run_key
from harness.check import check
from harness.cli import leave_nothing
from harness.errors import TwinclockError, Unexpected, UserError
from harness.index import RunIndex
from harness.manifest import RunInfo, manifest
from harness.progress import Progress
from harness.record import Record
from harness.setup import Setup, compose, run_info
from harness.summary import show
from harness.trial import Outcome, execute, failed

LATE = "after the run had ended"


class _Console(Console):
    """Where nobody reads any more, as behind `| head`, a run goes on, and is kept."""

    def on_broken_pipe(self) -> None:
        """Write no more."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())  # Python flushes it in the end


def run(config: DictConfig) -> None:
    """Do one run, with its baselines, and leave its record in Hydra's output directory.

    Raises:
        TwinclockError: what went wrong; the record says it too and keeps what was observed until then.
    """
    console, directory = _Console(), Path(HydraConfig.get().runtime.output_dir)
    try:
        setup, notices = check(compose(config))
    except Exception as error:
        if isinstance(error, UserError) and HydraConfig.get().mode == RunMode.RUN:
            leave_nothing()
        elif HydraConfig.get().runtime.choices["tracking"] != "none":
            Record(directory).refuse(_plain(config), str(error))
        raise error if isinstance(error, UserError) else Unexpected.of(error) from error
    for notice in notices:
        console.print(f"note: {notice}", highlight=False, markup=False, soft_wrap=True)
    info = run_info(setup, _plain(config), _sweep(directory))
    place = directory if setup.tracking.writes_files else None
    with setup.tracking.open(info) as tracker:
        outcome = _recorded(setup, info, notices, directory, console)
        try:
            tracker.log(outcome.rows)
            tracker.finish(outcome.summary, exit_code=int(outcome.failure is not None), tags=outcome.tags)
        except KeyboardInterrupt as interrupt:
            raise KeyboardInterrupt(_interrupted(outcome, _when(outcome) or LATE, place)) from interrupt
    if isinstance(outcome.failure, KeyboardInterrupt):
        raise KeyboardInterrupt(_interrupted(outcome, _when(outcome), place))
    if outcome.failure is not None:
        if place is not None and not isinstance(outcome.failure, UserError) and len(outcome.rows) > 1:
            console.print(_kept(outcome, place), highlight=False, markup=False, soft_wrap=True)
        raise outcome.failure
    show(console, info.name, outcome.summary, _shown(directory) if setup.tracking.writes_files else "", tracker.hint)


def _when(outcome: Outcome) -> str:
    """An interrupt ended the run; "" if none did."""
    if not isinstance(outcome.failure, KeyboardInterrupt):
        return ""
    begun = len(outcome.rows) > 1 or outcome.summary.get("search/trials")
    return str(outcome.failure) or ("in mid-run" if begun else "before any progress was recorded")


def _interrupted(outcome: Outcome, when: str, directory: Path | None) -> str:
    """When, what is kept, and what had to be left behind."""
    where = "tracking=none keeps nothing" if directory is None else _kept(outcome, directory)
    return "; ".join([f"{when}: {where}", *getattr(outcome.failure, "__notes__", [])])


def _kept(outcome: Outcome, directory: Path) -> str:
    """What of a run that did not finish is where."""
    times, lacks = len(outcome.rows) - 1, ""  # the first row is the initial model
    trials = outcome.summary.get("search/trials", 0)
    found = f"{trials:,} finished trial{'s' if trials > 1 else ''}"
    if times > 0:
        epochs = outcome.rows[-1]["progress/epoch"]
        kept = f"what was observed up to epoch {epochs:.3g} ({times} time{'s' if times > 1 else ''}) "
        kept += f"and {found} are" if trials else "is"
        lacks = f", the last {outcome.unevaluated} without losses" if outcome.unevaluated else ""
    elif trials:
        kept = f"{found} {'are' if trials > 1 else 'is'}"
    elif outcome.rows and "train/loss" in outcome.rows[0]:
        kept = "the settings and the row of the initial model are"
    elif any(key.startswith("primitives/") for key in outcome.summary):
        kept = "what was measured until then is"
    else:
        kept = "the settings alone are"
    return f"{kept} in {_shown(directory)}{lacks}"


def _recorded(setup: Setup, info: RunInfo, notices: list[str], directory: Path, console: Console) -> Outcome:
    if not setup.tracking.writes_files:
        return _compared(setup, info, console)
    record = Record(directory)
    record.start(manifest(info, notices))
    outcome = _compared(setup, info, console)
    try:
        with deferred() as heard:
            outcome.keep(record)
            _index(setup).add(run_key(setup), record)
    except UserError as error:
        with suppress(UserError):  # what does not fit is said, where that does
            record.finish(outcome.summary, "failed", str(error))
        raise
    if heard:
        raise KeyboardInterrupt(_interrupted(outcome, _when(outcome) or LATE, directory))
    return outcome


def _compared(setup: Setup, info: RunInfo, console: Console) -> Outcome:
    progress = Progress(console)
    try:
        references = find_references(setup, _index(setup), progress)
        outcome = execute(setup, info, info.name, progress)
    except (TwinclockError, KeyboardInterrupt) as failure:
        return failed(info, failure)
    except Exception as error:
        return failed(info, Unexpected.of(error))
    if references is not None and outcome.failure is None:
        outcome.summary.update(references.compare(outcome, setup.settings.target.loss))
    return outcome


def _index(setup: Setup) -> RunIndex:
    return RunIndex(Path(setup.settings.runs_dir))


def _shown(directory: Path) -> str:
    here = Path.cwd()
    return str(directory.relative_to(here) if directory.is_relative_to(here) else directory)


def _plain(config: DictConfig) -> dict[str, Any]:
    return cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))


def _sweep(directory: Path) -> str | None:
    return directory.parent.name if HydraConfig.get().mode == RunMode.MULTIRUN else None
