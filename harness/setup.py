"""One run, composed from the three nouns, data policy, tracking and settings; checked before anything starts."""

import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, is_dataclass, replace
from pathlib import Path
from typing import Any, cast

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from algorithms.base import Algorithm
from hardware.base import Hardware
from harness.build import build, class_path, instantiate
from harness.canonical import digest
from harness.cli import option_files
from harness.data import DataPolicy
from harness.errors import TwinclockError, UserError, require
from harness.interleaving import FILE, Interleaving, read
from harness.local_data import LocalData
from harness.manifest import RunInfo, new_run_id, pair_id, run_name
from harness.problems.base import Problem
from harness.program import Program
from harness.record import Record
from harness.tracking import Tracking


@dataclass(frozen=True)
class Budget:
    """How long to train, and how often to look.

    Args:
        epochs: global samples processed / size of the training set, > 0.
        observations: snapshots of the model, evenly spaced in samples, >= 1.
    """

    epochs: float
    observations: int

    def __post_init__(self) -> None:
        require(self.epochs > 0, "budget.epochs", "must be > 0", self.epochs)
        require(self.observations >= 1, "budget.observations", "must be >= 1", self.observations)


@dataclass(frozen=True)
class Target:
    """What counts as solved.

    Args:
        loss: value of train/loss to reach, or None.
    """

    loss: float | None


@dataclass(frozen=True)
class Settings:
    """The settings of a run that belong to none of its components."""

    seed: int
    budget: Budget
    target: Target
    baseline: str
    replay: str | None
    runs_dir: str

    def __post_init__(self) -> None:
        require(self.seed >= 0, "seed", "must be >= 0", self.seed)


@dataclass(frozen=True)
class Setup:
    """One run, composed.

    Args:
        choices: group -> option as the user typed it, e.g. {"algorithm": "hogwild"}.
    """

    algorithm: Algorithm
    hardware: Hardware
    problem: Problem
    data: DataPolicy
    tracking: Tracking
    settings: Settings
    choices: dict[str, str]

    @property
    def num_workers(self) -> int:
        """Workers that will run: those offered, or fewer if the algorithm cannot use them.

        Servers come on top, unless hardware.num_workers is null: then all fit on the machine, if they can.
        """
        offered = self.hardware.workers_offered
        if self.hardware.num_workers is None:
            offered = max(1, offered - self.num_servers)
        return min(offered, self.algorithm.max_workers or offered)

    @property
    def num_servers(self) -> int:
        """Ranks beyond the workers: the algorithm's servers, then those of data."""
        return self.algorithm.servers() + self.data.servers()

    @property
    def machine(self) -> Hardware:
        """The hardware, with a rank for each worker and each server: what executes the program."""
        return replace(self.hardware, num_workers=self.num_workers + self.num_servers)

    def with_workers(self, num_workers: int) -> "Setup":
        """The same run on another number of workers."""
        return replace(self, hardware=replace(self.hardware, num_workers=num_workers))

    def program(self) -> Program:
        """What the hardware executes. Loads the data."""
        budget = max(1, round(self.settings.budget.epochs * self.problem.num_samples))
        count = min(self.settings.budget.observations, budget)
        milestones = sorted({round(budget * (i + 1) / count) for i in range(count)})
        replay = self._replay() if self.settings.replay else ()
        return Program(self.algorithm, self.problem, self.data, self.settings.seed, budget, milestones, replay)

    def _replay(self) -> list[Interleaving]:
        """What timing decided in the run that is repeated, by rank.

        Raises:
            UserError: if there is no such run, or another number of ranks.
        """
        field, directory = f"replay={self.settings.replay}", Path(str(self.settings.replay))
        decided = read(directory / FILE)
        rule = f"must name a run of {self.num_workers} workers and {self.num_servers} servers, as this one has"
        require(len(decided) == self.num_workers + self.num_servers, field, rule, f"{len(decided)} ranks")
        return decided


def run_info(setup: Setup, config: dict[str, Any], group: str | None) -> RunInfo:
    """Who a run of `setup` is; a new id at every call.

    Args:
        config: the composed configuration, in plain types.
        group: the sweep it belongs to, or None.
    """
    parts = (setup.algorithm, setup.problem, setup.data, setup.data.at_hand())
    algorithm, problem, data, at_hand = ([type(part).__qualname__, asdict(part)] for part in parts)
    kind, choices, seed = setup.hardware.kind, setup.choices, setup.settings.seed
    return RunInfo(
        id=new_run_id(),
        name=run_name(kind, choices["algorithm"], choices["hardware"], setup.num_workers, seed, _changed(setup)),
        kind=kind,
        clock_kind=setup.hardware.clock_kind,
        num_workers=setup.num_workers,
        seed=seed,
        pair_id=pair_id(algorithm, problem, data, setup.num_workers, seed),
        problem_id=digest([problem, setup.problem.data_version(), at_hand, seed]),
        group=group,
        tags=[choices["algorithm"], choices["hardware"], choices["problem"]],
        config=config,
    )


def _changed(setup: Setup) -> dict[str, Any]:
    """Settings of the algorithm that are not what its YAML file has."""
    files = option_files(HydraConfig.get().runtime.config_sources, "algorithm")
    node = next(_with_parts(file, "algorithm") for file in files if file.stem == setup.choices["algorithm"])
    usual = OmegaConf.create({"algorithm": node, "problem": asdict(setup.problem)}).algorithm
    changed: dict[str, Any] = {}
    for key, value in asdict(setup.algorithm).items():
        part = getattr(setup.algorithm, key)
        if is_dataclass(part):
            changed |= _changed_part(key, {"_target_": class_path(part), **value}, _usual(usual, key))
        elif isinstance(value, dict):
            changed |= {f"{key}.{name}": each for name, each in _differing(value, _usual(usual, key) or {}).items()}
        elif _usual(usual, key) != value:
            changed[key] = value
    return changed


def _changed_part(key: str, part: dict[str, Any], usual: dict[str, Any]) -> dict[str, Any]:
    """The option of group algorithm/`key` that is nearest to a part of an algorithm, and what differs from its file."""
    files = option_files(HydraConfig.get().runtime.config_sources, f"algorithm/{key}")
    options = {file.stem: dict(cast(dict, OmegaConf.to_container(OmegaConf.load(file)))) for file in sorted(files)}

    def nearest(wanted: dict[str, Any]) -> str:
        kin = [name for name, option in options.items() if option["_target_"] == wanted["_target_"]]
        return min(kin, key=lambda name: len(_differing(wanted, options[name])), default=wanted["_target_"])

    name = nearest(part)
    said = {} if usual is not None and nearest(usual) == name else {key: name}
    return said | {f"{key}.{field}": value for field, value in _differing(part, options.get(name, part)).items()}


def _differing(values: dict[str, Any], usual: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if usual.get(key) != value}


def _usual(node: DictConfig, key: str) -> Any:
    try:
        return OmegaConf.to_container(node[key], resolve=True) if OmegaConf.is_config(node[key]) else node[key]
    except OmegaConfBaseException:  # it refers to more than the problem
        return None


GROUPS = {"algorithm": Algorithm, "hardware": Hardware, "problem": Problem, "data": DataPolicy, "tracking": Tracking}


def compose(config: DictConfig) -> Setup:
    """Build every component of the composed config; modules may lie in the folder given by --config-dir.

    Raises:
        UserError: naming the field that cannot be built.
    """
    _make_users_modules_importable()
    parts = {group: _component(config, group, base) for group, base in GROUPS.items()}
    top = {key: config[key] for key in ("seed", "baseline", "replay", "runs_dir")}
    top |= {key: instantiate(cls, _plain(config, key), key) for key, cls in (("budget", Budget), ("target", Target))}
    settings = instantiate(Settings, top, "")
    return Setup(settings=settings, choices=_choices(), **parts)


def check(setup: Setup) -> tuple[Setup, list[str]]:
    """Refuse an impossible pair, and use no more workers than the algorithm can.

    Returns:
        the setup that will run, and notices of one line each.

    Raises:
        UserError: with a sentence that names what would work.
    """
    setup.algorithm.check(setup.problem)
    _check_memory(setup)
    _check_replay(setup)
    _check_kernel(setup)
    _check_rows(setup)
    _check_dealer(setup)
    _check_streams(setup)
    assert setup.problem.num_samples > 0  # loads the data: what is missing is said before anything starts
    notices = _notices_of_kernels(setup)
    offered, used = setup.hardware.workers_offered, setup.num_workers
    if used < offered and setup.hardware.num_workers is not None:
        notices.append(f"algorithm={setup.choices['algorithm']} uses {used} of the {offered} workers offered")
    setup.algorithm.constants(used)
    setup.data.parts(setup.problem, used, setup.settings.seed)
    setup = setup.with_workers(used)
    return setup, [*notices, *setup.machine.check()]


def _check_memory(setup: Setup) -> None:
    if setup.algorithm.needs_shared_memory and not setup.hardware.shares_memory:
        algorithm, hardware = setup.choices["algorithm"], setup.choices["hardware"]
        raise UserError(
            f"algorithm={algorithm} needs memory that all workers share, which hardware={hardware} does not have: use "
            f"hardware={_names('hardware', lambda h: h.shares_memory)} or "
            f"algorithm={_names('algorithm', lambda a: not a.needs_shared_memory)}"
        )


def _check_replay(setup: Setup) -> None:
    """What is asked for must be what the other run was; its pair id says so, up to the kind of hardware."""
    if setup.settings.replay is None:
        return
    field, directory = f"replay={setup.settings.replay}", Path(setup.settings.replay)
    read(directory / FILE)
    other, own = Record(directory).manifest(), run_info(setup, {}, None)
    rule = "must name a run of the same algorithm, problem, data, workers and seed"
    require(other.get("pair_id") == own.pair_id, field, rule, other.get("name"))


def _check_kernel(setup: Setup) -> None:
    if setup.algorithm.releases_gil(setup.problem) and not setup.hardware.runs_kernels:
        algorithm, hardware = setup.choices["algorithm"], setup.choices["hardware"]
        raise UserError(
            f"algorithm={algorithm} with algorithm.batch_size=1 runs the problem's native kernel, which "
            f"hardware={hardware}{_instructions(setup)} does not run: set algorithm.batch_size above 1, or use "
            f"{_with_kernels(setup)}"
        )


def _instructions(setup: Setup) -> str:
    level = getattr(setup.hardware, "simd", None)
    return "" if level is None else f" with hardware.simd={level}"


def _with_kernels(setup: Setup) -> str:
    return "hardware.simd=null" if _instructions(setup) else f"hardware={_names('hardware', lambda h: h.runs_kernels)}"


def _check_rows(setup: Setup) -> None:
    data, policy = setup.data, setup.choices["data"]
    if not data.moves_rows:
        return
    asked = f"data={policy}" if data.per_node else "data.order=permuted"
    instead = "data=partitioned" if data.per_node else "data.order=index"
    if reason := _why_rows_stay(setup):
        raise UserError(f"{asked} moves the rows of a native kernel, and {reason}: use {instead}")
    if not setup.hardware.shares_memory:
        hardware = setup.choices["hardware"]
        raise UserError(
            f"{asked} needs memory that all workers share, which hardware={hardware} does not have: use {instead}, or "
            f"hardware={_names('hardware', lambda h: h.shares_memory)}"
        )


def _check_dealer(setup: Setup) -> None:
    """Who deals the samples of its clients itself would leave a policy that does so without effect."""
    local = isinstance(setup.data, LocalData) or setup.data.servers() > 0
    if setup.algorithm.deals_samples and local:
        algorithm, data = setup.choices["algorithm"], setup.choices["data"]
        raise UserError(
            f"algorithm={algorithm} says itself who has which samples, which data={data} would say too: use "
            "data=partitioned, and what the algorithm's own settings offer"
        )


def _check_streams(setup: Setup) -> None:
    if not setup.data.servers():
        return
    algorithm, problem = (f"{group}={setup.choices[group]}" for group in ("algorithm", "problem"))
    reason = ""
    if setup.algorithm.needs_shared_memory:
        reason = f"workers of {algorithm} have them in memory that all share"
    elif setup.algorithm.releases_gil(setup.problem):
        reason = f"{algorithm} with algorithm.batch_size=1 runs a native kernel on rows at hand"
    elif setup.hardware.kind == "real" and not setup.hardware.runs_kernels:
        reason = f"hardware={setup.choices['hardware']} would give a device to each rank that serves"
    elif not setup.problem.has_rows:
        reason = f"{problem} has no method `gather` that says what they are"
    if reason:
        raise UserError(f"data={setup.choices['data']} sends rows by message, and {reason}: use data=partitioned")


def _why_rows_stay(setup: Setup) -> str:
    """Why no rows can be moved; empty where they can."""
    algorithm, problem = setup.algorithm, setup.problem
    name, on = f"algorithm={setup.choices['algorithm']}", f"problem={setup.choices['problem']}"
    if not algorithm.releases_gil(problem):
        if algorithm.has_kernel and algorithm.batch_size != 1:
            return f"{name} runs one only with algorithm.batch_size=1, got {algorithm.batch_size}"
        return f"{name} has none" + (f" for {on}" if algorithm.has_kernel else "")
    if not algorithm.visits_rows:
        return f"{name} {algorithm.why_rows_stay}"
    kernel = problem.kernel
    return f"that of {on} reads no rows that could be moved" if kernel is None or kernel.row_data is None else ""


def _notices_of_kernels(setup: Setup) -> list[str]:
    algorithm, problem = setup.algorithm, setup.problem
    if not algorithm.has_kernel or algorithm.batch_size != 1 or algorithm.releases_gil(problem):
        return []
    name, on = setup.choices["algorithm"], setup.choices["problem"]
    return [
        f"algorithm={name} has no native kernel for problem={on}: torch's autograd does it, hundreds of times slower"
    ]


def _make_users_modules_importable() -> None:
    for source in HydraConfig.get().runtime.config_sources:
        if source.provider == "command-line" and source.path not in sys.path:
            sys.path.append(source.path)


def _component(config: DictConfig, group: str, base: type) -> Any:
    node = config[group]
    if not isinstance(node, DictConfig) or "_target_" not in node:
        raise UserError(f"{group} names no class: its YAML file needs a line `_target_: module.Class`")
    component = build(node, group)
    if not isinstance(component, base):
        path = f"{base.__module__}.{base.__name__}"
        raise UserError(f"{group}._target_={node['_target_']} is of another kind: derive it from {path}")
    return component


def _plain(config: DictConfig, key: str) -> dict[str, Any]:
    return {str(k): v for k, v in cast(dict, OmegaConf.to_container(config[key], resolve=True)).items()}


def _choices() -> dict[str, str]:
    return {key: value for key, value in HydraConfig.get().runtime.choices.items() if key in GROUPS}


PROBLEM_HINTS = {"learning_rate": 1.0, "minibatch_learning_rate": 1.0, "minibatch_size": 1}  # what algorithms refer to


def _names(group: str, works: Any) -> str:
    return "|".join(sorted(_working_options(group, works)))


def _with_parts(path: Path, group: str) -> DictConfig:
    """The YAML of an option with those that its defaults list names: "- compute: h100" is compute/h100.yaml."""
    node = cast(DictConfig, OmegaConf.load(path))
    for part in node.pop("defaults", []):
        for name, option in part.items() if isinstance(part, DictConfig) else ():
            part_group, _, place = str(name).partition("@")  # such as "optimizer@outer"
            files = option_files(HydraConfig.get().runtime.config_sources, f"{group}/{part_group}")
            node[place or part_group] = next((OmegaConf.load(file) for file in files if file.stem == option), None)
    return node


def _working_options(group: str, works: Any) -> Iterator[str]:
    for path in option_files(HydraConfig.get().runtime.config_sources, group):
        node = OmegaConf.create({group: _with_parts(path, group), "problem": PROBLEM_HINTS})
        try:
            if works(build(node[group], group)):
                yield path.stem
        except (TwinclockError, ImportError, OmegaConfBaseException):
            continue  # an option that cannot be built here is no alternative
