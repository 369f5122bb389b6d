"""Where a run's rows go besides its own files: Weights & Biases, or nowhere.

W&B is a mirror. It is fed the rows and the summary that the files hold, by the parent process alone; a W&B that cannot
be reached, or dies, costs one warning and never the run. This is the only module that imports `wandb` (0.31), and it
does so when a run starts: importing takes half a second.
"""

import logging
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, ClassVar, Self

from harness.canonical import plain
from harness.errors import UserError, require
from harness.manifest import RunInfo
from harness.metrics import Row, Summary

if TYPE_CHECKING:
    import wandb

logger = logging.getLogger(__name__)

MAX_ROWS = 2000  # W&B draws no more points, and each costs it 0.1 ms
INIT_TIMEOUT_S = 30.0
FINISH_TIMEOUT_S = 60.0
PANELS = (
    "train/*",
    "eval/*",
    "ensemble/*",
    "perf/*",
    "async/*",
    "stat/*",
)  # drawn over epochs unless told otherwise


class Tracker(ABC):
    """One run being tracked. As a context manager it is finished in all cases, as failed unless `finish` was called."""

    @property
    @abstractmethod
    def hint(self) -> str:
        """How to look at it, in one line; "" where there is nothing to look at."""

    @abstractmethod
    def log(self, rows: Sequence[Row]) -> None:
        """Take rows of the history; call once with all of them, since too many are thinned evenly."""

    @abstractmethod
    def finish(self, summary: Summary, exit_code: int, tags: Sequence[str] = ()) -> None:
        """Take the summary and end. A second call does nothing.

        Args:
            exit_code: 0 for a run that finished.
            tags: marks that became known during the run.
        """

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.finish({}, exit_code=1)


@dataclass(frozen=True)
class Tracking(ABC):
    """What a run is reported to.

    A toy, whole:

        class Printed(Tracker):
            '''Prints the last loss.'''

            hint = ""

            def log(self, rows):
                print(rows[-1]["train/loss"])

            def finish(self, summary, exit_code, tags=()):
                print("done")

        @dataclass(frozen=True)
        class Print(Tracking):
            '''To the terminal.'''

            def open(self, info):
                return Printed()
    """

    writes_files: ClassVar[bool] = True  # whether the run keeps a record of its own

    @abstractmethod
    def open(self, info: RunInfo) -> Tracker:
        """Start tracking a run; call before cores are pinned, since services inherit the pinning.

        Raises:
            UserError: where tracking would have to ask the user something.
        """


@dataclass(frozen=True)
class Files(Tracking):
    """Only the run's own files."""

    def open(self, info: RunInfo) -> Tracker:
        """A tracker that ignores everything."""
        return _Silent()


@dataclass(frozen=True)
class Nothing(Tracking):
    """Not even files."""

    writes_files: ClassVar[bool] = False

    def open(self, info: RunInfo) -> Tracker:
        """A tracker that ignores everything."""
        return _Silent()


@dataclass(frozen=True)
class WandB(Tracking):
    """Weights & Biases (https://docs.wandb.ai).

    Args:
        project: W&B project.
        entity: user or team; None for the default one.
        mode: "offline", "online", or "disabled".
        directory: W&B's own files go to `<directory>/wandb`, the same for all runs.
    """

    project: str
    entity: str | None
    mode: str
    directory: str

    def __post_init__(self) -> None:
        modes = ("offline", "online", "disabled")
        require(self.mode in modes, "tracking.mode (WANDB_MODE)", f"must be one of {', '.join(modes)}", self.mode)

    def open(self, info: RunInfo) -> Tracker:
        """Start W&B's service and a run on it; where that fails, warn and track nothing."""
        if self.mode == "disabled":
            return _Silent()
        tracker = _WandBTracker(self.mode, Path(self.directory) / "wandb")
        tracker.start(lambda: self._init(info))
        return tracker

    def _init(self, info: RunInfo) -> "wandb.Run":
        import wandb  # noqa: PLC0415 - slow

        if self.mode == "online":
            self._require_credentials()
        Path(self.directory).mkdir(parents=True, exist_ok=True)
        run = wandb.init(
            project=self.project,
            entity=self.entity,
            mode="online" if self.mode == "online" else "offline",
            dir=self.directory,
            id=info.id,
            name=info.name,
            group=info.group,
            job_type=info.kind,
            tags=list(info.tags),
            config=plain(info.config),
            reinit="create_new",
            settings=wandb.Settings(
                console="off",
                disable_git=True,
                finish_timeout=FINISH_TIMEOUT_S,
                finish_timeout_raises=True,
                init_timeout=INIT_TIMEOUT_S,
                save_code=False,
                silent=True,
                x_disable_stats=True,  # its sampling of the machine would be part of what is measured
            ),
        )
        for panel in PANELS:
            run.define_metric(panel, step_metric="progress/epoch")
        return run

    @staticmethod
    def _require_credentials() -> None:
        import wandb  # noqa: PLC0415 - slow
        from wandb.sdk.lib import wbauth  # noqa: PLC0415 - the public login() prompts where there is no key

        host = wandb.setup().settings.base_url
        try:
            found = wbauth.authenticate_session(host=host, source="twinclock", prompt=False)
        except wandb.errors.AuthenticationError as error:
            raise UserError(f"tracking.mode=online needs a valid W&B key ({error}): run `wandb login`") from error
        if found is None:
            raise UserError(
                f"tracking.mode=online needs a W&B key for {host}: run `wandb login`, set WANDB_API_KEY, or set "
                "tracking.mode=offline"
            )


class _Silent(Tracker):
    hint = ""

    def log(self, rows: Sequence[Row]) -> None:
        return

    def finish(self, summary: Summary, exit_code: int, tags: Sequence[str] = ()) -> None:
        return


class _WandBTracker(Tracker):
    def __init__(self, mode: str, directory: Path) -> None:
        self._mode = mode
        self._directory = directory
        self._run: wandb.Run | None = None
        self._hint = ""
        self._failed = False  # said once

    @property
    def hint(self) -> str:
        return self._hint

    def start(self, init: Callable[[], "wandb.Run"]) -> None:
        with self._guarded("start"), _contained(self._mode):
            try:
                run = init()
            except BaseException:
                _teardown()
                raise
            self._hint = self._how_to_look(run)
            self._run = run

    def log(self, rows: Sequence[Row]) -> None:
        with self._guarded("log"):
            for row in thin(rows, MAX_ROWS):
                if self._run is not None:
                    self._run.log(plain(row))

    def finish(self, summary: Summary, exit_code: int, tags: Sequence[str] = ()) -> None:
        run, self._run = self._run, None
        if run is None:
            return
        with self._guarded("finish"), _contained(self._mode):
            try:
                run.tags = tuple(dict.fromkeys((*(run.tags or ()), *tags)))
                run.summary.update(plain(summary))
            finally:
                try:
                    run.finish(exit_code=exit_code)
                finally:
                    _teardown()

    @contextmanager
    def _guarded(self, what: str) -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            # wandb raises errors of many modules, and none of them is worth the run.
            if not self._failed:
                reason = next(iter(str(error).splitlines()), type(error).__name__)
                logger.warning("W&B could not %s, the run goes on without it: %s", what, reason)
            self._failed = True
            self.finish({}, exit_code=1)

    def _how_to_look(self, run: "wandb.Run") -> str:
        if self._mode == "online":
            return str(run.url)
        return f"wandb leet {self._directory}; to upload: wandb sync {os.path.relpath(run.settings.sync_dir)}"


def thin(rows: Sequence[Row], limit: int) -> list[Row]:
    """At most `limit` (>= 2) rows, evenly spaced, the first and the last among them.

    >>> [row["i"] for row in thin([{"i": i} for i in range(9)], limit=3)]
    [0, 4, 8]
    """
    if len(rows) <= limit:
        return list(rows)
    return [rows[i * (len(rows) - 1) // (limit - 1)] for i in range(limit)]


@contextmanager
def _contained(mode: str) -> Iterator[None]:
    # Telemetry is off only if the environment says so before the import, and wandb replaces sys.exit and
    # sys.excepthook and leaves WANDB_SERVICE behind; none of that may outlive the call.
    environment = _wandb_environment()
    exit_function, hook = sys.exit, sys.excepthook
    os.environ.update(WANDB_MODE=mode, WANDB_ERROR_REPORTING="false", WANDB_SILENT="true")
    try:
        yield
    finally:
        for name in _wandb_environment().keys() - environment.keys():
            del os.environ[name]
        os.environ.update(environment)
        sys.exit, sys.excepthook = exit_function, hook


def _wandb_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith("WANDB_")}


def _teardown() -> None:
    import wandb  # noqa: PLC0415 - slow

    # Ends the service process; a run that is not ours, in the same program, still needs it.
    if wandb.run is None:
        try:
            wandb.teardown()
        except SystemExit as error:  # that a service failed is no reason to end the program
            raise RuntimeError(f"its service ended with exit status {error.code}") from error
