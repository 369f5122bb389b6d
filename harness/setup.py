"""One run, composed from the three nouns, data policy, tracking and settings; checked before anything starts."""

import sys
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
from harness.errors import UserError, require
from harness.interleaving import FILE, Interleaving, read
from harness.manifest import RunInfo, new_run_id, pair_id, run_name
from harness.options import plain, with_parts
from harness.problems.base import Problem
from harness.program import Program
from harness.tracking import Tracking

FAKE_STEPS = 3  # of a run without values, whose steps are alike but for the first


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

    def presumed(self) -> dict[str, str]:
        """What a prediction depends on and its numbers do not say, by key of docs/metrics.md."""
        dtype, parts = self.problem.dtype, HydraConfig.get().runtime.choices
        found = {"predicted/parameter_dtype": dtype, "predicted/compute_dtype": self.algorithm.computes_in(dtype)}
        optimizer = parts.get("algorithm/optimizer")
        return found | ({"predicted/optimizer": optimizer} if optimizer else {})

    def program(self) -> Program:
        """What the hardware executes. Loads the data."""
        budget = max(1, round(self.settings.budget.epochs * self.problem.num_samples))
        if self.problem.is_fake:
            budget = min(budget, FAKE_STEPS * self.algorithm.batch_size * self.algorithm.share(0, self.num_workers)[1])
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
        name=run_name(kind, choices["algorithm"], choices["hardware"], setup.num_workers, seed, _told(setup)),
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


def _told(setup: Setup) -> dict[str, Any]:
    """What a run's name says of its algorithm: settings that are not usual, and have an effect."""
    return {key: value for key, value in changed(setup).items() if key not in setup.algorithm.without_effect()}


def changed(setup: Setup) -> dict[str, Any]:
    """Settings of the algorithm that are not what its YAML file has."""
    files = option_files(HydraConfig.get().runtime.config_sources, "algorithm")
    node = next(with_parts(file, "algorithm") for file in files if file.stem == setup.choices["algorithm"])
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
    """The option that is nearest to a part of an algorithm, and what differs from its file.

    It is one of the group algorithm/`key`, or of any where none has this name: `optimizer@server` is a `server`.
    """
    sources = HydraConfig.get().runtime.config_sources
    files = [*option_files(sources, f"algorithm/{key}")] or [*option_files(sources, "algorithm/*")]
    options = {file.stem: plain(file) for file in sorted(files)}

    def nearest(wanted: dict[str, Any]) -> str:
        kin = [name for name, option in options.items() if option.get("_target_") == wanted["_target_"]]
        return min(kin, key=lambda name: len(_differing(wanted, options[name])), default=wanted["_target_"])

    name = nearest(part)
    if name not in options:  # it is of no group, such as a mesh
        return {f"{key}.{field}": value for field, value in _differing(part, {**part, **(usual or {})}).items()}
    usual_name = nearest(usual) if usual is not None else ""
    said = {} if usual_name == name else {key: name}
    own = _differing(usual, options[usual_name]) if usual and usual_name in options else {}  # the algorithm's, of any
    return said | {f"{key}.{field}": value for field, value in _differing(part, {**options[name], **own}).items()}


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
