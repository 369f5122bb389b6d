"""The command line around Hydra: the help page, and errors in one sentence. Imports nothing heavy."""

import os
import re
import select
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar, NoReturn

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hardware.real.world import World, explain_end, joined_world
from harness.build import group_with, unknown_key
from harness.errors import REMEDIES, TwinclockError, require, unwritable
from harness.folders import CONF, found

MISTAKES = (TwinclockError, HydraException, OmegaConfBaseException)  # what ends in one sentence
HELP = """\
twinclock: parallel and distributed training, for real and in virtual time.

{groups}
Settings of a model that workers share: algorithm=hogwild, and what they apply to of svrg, sgld, ..._descent
{settings}

Examples
  python run.py algorithm=hogwild hardware=numa2
  python run.py algorithm=all_reduce hardware=sim_ethernet hardware.num_workers=16 problem=digits_mlp
  python run.py -m algorithm=sgd,hogwild,all_reduce hardware=cpu,sim_numa2 seed=0,1,2

Any setting is key=value: `python run.py --cfg job` prints them all, with `algorithm=...` etc. those of that choice.
-m runs every combination of comma-separated values; --config-dir DIR adds groups (and modules) of your own.
"""


def command_line(main: Callable[[], None]) -> None:
    """Run Hydra's `main`; a user's mistake ends in one sentence and exit status 1, an interrupt in 130.

    In a world that a launcher has started, rank 0 does so and the others work for it, and end as it does. With
    HYDRA_FULL_ERROR=1 in the environment every error is raised with its traceback.
    """
    world = joined_world(os.environ, sys.argv[1:])
    if world is None:
        status = _status(main)
    else:
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # who loses a connection says so in its own words
        status = _leading(world, main) if world.rank == 0 else _following(world)
    if status == 130 or world is not None:
        leave(status, at_once=world is not None)
    sys.exit(status)


def _leading(world: World, main: Callable[[], None]) -> int:
    """Run `main` on rank 0, and tell the others how it ended."""
    status, several = 1, {"-m", "--multirun"}.intersection(sys.argv)
    try:
        if several:
            starts = f"{world.launcher} starts ranks for one: start it once for each"
            say(f"{several.pop()} runs several jobs, and {starts}")
        else:
            status = _status(main)
    finally:
        from hardware.real.leader import dismiss  # noqa: PLC0415 - imports torch, which --help must not wait for

        dismiss(world, status)
    return status


def _following(world: World) -> int:
    from hardware.real.follower import follow  # noqa: PLC0415 - imports torch, which --help must not wait for

    return follow(world)


def _status(main: Callable[[], None]) -> int:
    """Run Hydra's `main`; returns the exit status."""
    arguments = [quoted(argument) for argument in sys.argv[1:]]
    # flags first, since Hydra's parser wants all overrides in one place
    sys.argv[1:] = sorted(arguments, key=lambda argument: "=" in argument and not argument.startswith("-"))
    wants_traceback = "HYDRA_FULL_ERROR" in os.environ
    os.environ["HYDRA_FULL_ERROR"] = "1"  # makes Hydra hand us the exception instead of printing it
    ReportFailures.hands_on = wants_traceback
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        main()
        sys.stdout.flush()
        return int(ReportFailures.failed > 0)
    except KeyboardInterrupt as interrupt:
        print(f"interrupted {str(interrupt) or 'before the run began: nothing is kept'}", file=sys.stderr)
        return 130
    except (HydraException, OmegaConfBaseException) as error:
        if wants_traceback:
            raise
        said = sentence(error)
    except BrokenPipeError:
        if wants_traceback or not _unread(sys.stdout.fileno()):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes it once more
        return 141  # as the shell says of who is ended by SIGPIPE: `head`, say, has seen enough
    except OSError as error:
        if wants_traceback or not (error.filename or error.errno in REMEDIES):
            raise
        said = unwritable(error.filename or "the folder of the run", error)
    except ValueError as error:
        if wants_traceback or HydraConfig.initialized():
            raise
        said = f"cannot understand the command line ({error}): write key=value"
    say(said)
    return 1


def _unread(pipe: int) -> bool:
    """Whether nobody reads what is written to it."""
    poller = select.poll()
    poller.register(pipe, 0)
    return any(event & select.POLLERR for _, event in poller.poll(0))


@contextmanager
def beginning() -> Iterator[None]:
    """A block of a run, which says what it keeps where it is interrupted; if it does not, it had not begun."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        if not str(interrupt):
            leave_nothing()
        raise


def leave_nothing() -> None:
    """Of a run that was refused or had not begun; a job of a sweep keeps its place there."""
    if HydraConfig.get().mode != RunMode.RUN:
        return
    directory = Path(HydraConfig.get().runtime.output_dir)
    with suppress(OSError):  # what holds more than Hydra's settings is not empty, and stays
        if [each.name for each in directory.iterdir()] == [".hydra"]:
            shutil.rmtree(directory)
            directory.parent.rmdir()


def say(sentence: str, details: str = "") -> None:
    """Print a mistake, and let the launcher that has started this rank, if one has, repeat it as the cause of its own.

    Args:
        details: what to print before it.
    """
    print(f"{details}error: {sentence}", file=sys.stderr)
    explain_end(os.environ, f"error: {sentence}")


def leave(status: int, at_once: bool = False) -> NoReturn:
    """Exit, without waiting for threads that are in native code, such as a compiler.

    Args:
        at_once: nor for what libraries would do at the end, such as wait for ranks that are gone.
    """
    if threading.active_count() == 1 and not at_once:
        sys.exit(status)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def composed(overrides: Sequence[str], config_dir: Path | None = None, as_hydra: bool = False) -> DictConfig:
    """The configuration of `conf/` with these overrides, for a command that is not run by Hydra.

    Args:
        overrides: as on Hydra's command line.
        config_dir: a folder with groups, and modules, of the user's own.
        as_hydra: whether to set Hydra's own configuration too, which `harness.setup` looks at.

    Raises:
        UserError: where there is no such folder.
        HydraException, OmegaConfBaseException: `MISTAKES`, for `sentence`.
    """
    chosen = [quoted(override) for override in overrides]
    if config_dir is not None:
        require(config_dir.is_dir(), "--config-dir", "must be a folder", str(config_dir))
        sys.path.append(str(config_dir.resolve()))
        chosen.append(f"hydra.searchpath=['file://{config_dir.resolve()}']")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", chosen, return_hydra_config=as_hydra)
    if as_hydra:
        HydraConfig.instance().set_config(config)
    return config


def quoted(override: str) -> str:
    """An override as Hydra wants it: new keys of a mapping are added, values of the form name(...) are quoted.

    A name that means something to Hydra does so here. Keys that a component does not know are refused as it is built.

    >>> quoted("hardware.stragglers={3: 4.0}")
    '++hardware.stragglers={3: 4.0}'
    >>> quoted("hardware.compute.jitter=none,lognormal(0.2)"), quoted("seed=range(3)")
    ("hardware.compute.jitter=none,'lognormal(0.2)'", 'seed=range(3)')
    """
    if re.match(r"[a-z_]+\.[\w.]+=\{", override):
        return f"++{override}"
    if re.search(rf"[=,]\s*({HYDRA_FUNCTIONS})\(", override):
        return override
    return re.sub(r"(?<=[=,])([a-z_]+\([^()'\"]*\))", r"'\1'", override)


HYDRA_FUNCTIONS = "choice|range|interval|glob|shuffle|sort|tag|int|float|str|bool|json_str|extend_list"


class ReportFailures(Callback):
    """Prints a failed job in one sentence, when it fails; a multirun goes on with the others.

    Attributes:
        failed: jobs so far.
        hands_on: whether Hydra gets to see the failure too, and raises it in the end.
    """

    failed: ClassVar[int] = 0
    hands_on: ClassVar[bool] = False

    def __init__(self) -> None:
        self.finished = 0

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Print the sentence of a failure, and before it what the worker itself said."""
        if job_return.status is not JobStatus.FAILED:
            self.finished += 1
            return
        ReportFailures.failed += 1
        error = job_return._return_value
        if isinstance(error, MISTAKES):
            say(sentence(error), getattr(error, "details", ""))
            if not self.hands_on:
                job_return.status, job_return.return_value = JobStatus.COMPLETED, None

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Print how many jobs finished."""
        print(f"{self.finished} jobs finished, {self.failed} failed: {config.hydra.sweep.dir}")


def sentence(error: BaseException) -> str:
    """An error of ours, Hydra's or OmegaConf's in one sentence that names the field, the value and the fix."""
    if isinstance(error, TwinclockError):
        return str(error)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options is not None:
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        parent, _, name = group.rpartition("/")
        other = group_with(parent, name, option) if parent else name
        meant = f"did you mean {parent}/{other}={option}? It has " if other != name else "use one of "
        return f"{group}={option} is unknown: {meant}{', '.join(sorted(error.options))}"
    text = str(error)
    override = re.search(r"Could not override '([^']+)'", text)
    if override and "No match in the defaults list" in text:
        if override[1].partition("@")[0] in GROUPS:
            return _missing_part(override[1])
        return f"{override[1]} is neither a group nor a setting: `python run.py --help` lists the groups"
    if merged := re.search(r"Error merging override (\S+?)=(.*)", text):
        return f"{merged[1]} cannot be {merged[2]}: {_of_its_kind(merged[1], merged[2])}"
    if override:
        return _unknown_override(override[1], error.__cause__)
    if isinstance(error, OverrideParseException):
        return f"cannot read the override {error.override!r}: write key=value, with quotes around unusual values"
    if several := re.search(r"Ambiguous value for argument '([^']+)'", text):
        return f"{several[1]} has several values: add -m to run them all"
    if folder := re.search(r"Additional config directory '(.+)' not found", text):
        return f"--config-dir {folder[1]}: there is no such folder"
    return " ".join(line.strip() for line in text.splitlines() if line.strip())


def _of_its_kind(key: str, given: str) -> str:
    """What to write for a mapping that was given as something else: with the values given, or those of its file."""
    group, *names = key.split(".")
    option = next((each.partition("=")[2] for each in sys.argv if each.startswith(f"{group}=")), "")
    files = found(f"{group}/{option}.yaml") if option and names else []
    usual = OmegaConf.select(OmegaConf.load(files[0]), ".".join(names)) if files else None
    if not isinstance(usual, DictConfig):
        return "give a value of the kind that its file has"
    own = {str(name): value for name, value in usual.items() if name != "_target_"}
    values = re.findall(r"[^\[\](),\s]+", given)
    told = values if len(values) == len(own) else ["null" if value is None else value for value in own.values()]
    return f"write '{key}={{{', '.join(f'{name}: {value}' for name, value in zip(own, told, strict=True))}}}'"


def _missing_part(key: str) -> str:
    """One sentence about a part such as algorithm/compression, which the chosen algorithm has not."""
    group, _, place = key.partition("@")  # such as "algorithm/optimizer@algorithm.server"
    parent, _, name = group.rpartition("/")
    part = f"{name}@{place.rpartition('.')[-1]}" if place else name
    chosen = next((each for each in sys.argv if each.startswith(f"{parent}=")), f"this {parent}")
    if reason := _why_not(parent, chosen.partition("=")[2], name):
        return f"{chosen} has no {key}: {reason}"
    able = {path.stem for path in found(f"{parent}/*.yaml") if f"\n  - {part}: " in path.read_text("utf-8")}
    others = f", or use {parent}={'|'.join(sorted(able))}" if able else ""
    return f"{chosen} has no {key}: leave it out{others}"


def _why_not(parent: str, option: str, part: str) -> str:
    """What a comment of an option's file says of a part that it has not, and of what to use instead; or nothing."""
    files = found(f"{parent}/{option}.yaml") if option else []
    said = re.search(rf"^# no {re.escape(part)}: (.+)$", files[0].read_text("utf-8"), re.MULTILINE) if files else None
    return said[1] if said else ""


def _unknown_override(key: str, cause: BaseException | None) -> str:
    parent = getattr(cause, "parent_node", None)
    names = [str(name) for name in parent if name != "_target_"] if isinstance(parent, DictConfig) else []
    if isinstance(parent, DictConfig) and key.count(".") > 1 and "_target_" not in parent:
        return f"{key} is not among {', '.join(names)}: write +{key}=... to add it"
    return unknown_key(key, key.rpartition(".")[-1], names) if names else f"{key} is not a setting"


def help_page(root: Any) -> str:
    """The text of --help: every option of every group with the first comment line of its file."""
    groups = "\n".join(_group_help(group, root) for group in GROUPS)
    settings = [line for file, names in SHARING.items() for line in _settings_help(file, names)]
    return HELP.format(groups=groups, settings="\n".join(settings)).replace("$", "$$")


GROUPS = (
    "algorithm",
    "algorithm/optimizer",
    "algorithm/schedule",
    "algorithm/pipeline_schedule",
    "algorithm/mixing",
    "algorithm/compression",
    "algorithm/partition",
    "algorithm/devices",
    "algorithm/availability",
    "hardware",
    "hardware/compute",
    "hardware/memory",
    "hardware/protocol",
    "problem",
    "data",
    "tracking",
    "experiment",
    "sweep",
)
SHARING = {"algorithm/hogwild": ("sharing", "merge", "locking", "layout", "precision"), "data/partitioned": ("order",)}


def _settings_help(file: str, names: Sequence[str]) -> Iterator[str]:
    """The lines of these settings in a file of `conf/`, as they are written on the command line."""
    for line in (CONF / f"{file}.yaml").read_text(encoding="utf-8").splitlines():
        name, _, rest = line.partition(": ")
        if name in names:
            value, _, comment = rest.partition("  # ")
            yield f"  {f'{Path(file).parent}.{name}={value}':<30} {comment}"


def _group_help(group: str, root: Any) -> str:
    options = {path.stem: description(path) for path in option_files(root.hydra.runtime.config_sources, group)}
    lines = [f"  {group}={name:<20} {text}" for name, text in sorted(options.items())]
    return "\n".join([group.capitalize(), *lines, ""])


def option_files(sources: Any, group: str) -> Iterator[Path]:
    """The YAML files of a group, or of all such as algorithm/*, in Hydra's `config_sources`, a user's included."""
    for source in sources:
        if source.schema == "file":
            yield from Path(source.path).glob(f"{group}/*.yaml")


def description(path: Path) -> str:
    """The first comment line of a YAML file that is not a Hydra directive."""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("#") and "@package" not in line:
            return line.lstrip("# ")
    return ""


def folder(name: str) -> str:
    """The name of a folder, if there is one: an empty one would be the root of the file system."""
    require(bool(name), "runs_dir", "must name a folder", name)
    return name


OmegaConf.register_new_resolver("folder", folder, replace=True)
OmegaConf.register_new_resolver("help_page", lambda *, _root_: help_page(_root_), replace=True)
