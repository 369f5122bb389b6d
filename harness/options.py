"""The options of the groups in conf/ and in a user's own folder, as they are in their files."""

import copy
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from harness.build import build
from harness.cli import option_files
from harness.errors import TwinclockError

PROBLEM_HINTS = {"learning_rate": 1.0, "minibatch_learning_rate": 1.0, "minibatch_size": 1}  # what algorithms refer to


def names_of(group: str, works: Any) -> str:
    """The options of a group that can be built and for which `works` is true, as one types them: a|b|c."""
    return "|".join(sorted(_working(group, works)))


def with_parts(path: Path, group: str) -> DictConfig:
    """The YAML of an option with those that its defaults list names: "- compute: h100" is compute/h100.yaml."""
    node = _loaded(path)
    for part in node.pop("defaults", []):
        for name, option in part.items() if isinstance(part, DictConfig) else ():
            part_group, _, place = str(name).partition("@")  # such as "optimizer@outer"
            files = option_files(HydraConfig.get().runtime.config_sources, f"{group}/{part_group}")
            key = place or part_group
            loaded = next((_loaded(file) for file in files if file.stem == option), None)
            node[key] = OmegaConf.merge(loaded, node[key]) if loaded and node.get(key) else loaded  # _self_ comes last
    return node


def plain(path: Path) -> dict[str, Any]:
    """The YAML of an option as it is in its file, in plain types; not to be changed."""
    return _plain(path.read_text(encoding="utf-8"))


@functools.cache
def _plain(text: str) -> dict[str, Any]:
    return cast(dict, OmegaConf.to_container(_parsed(text)))


def _loaded(path: Path) -> DictConfig:
    return copy.deepcopy(_parsed(path.read_text(encoding="utf-8")))


@functools.cache
def _parsed(text: str) -> DictConfig:
    """Of a file whose text is known already: to parse all files of a group takes a second."""
    return cast(DictConfig, OmegaConf.create(text))


def _working(group: str, works: Any) -> Iterator[str]:
    for path in option_files(HydraConfig.get().runtime.config_sources, group):
        node = OmegaConf.create({"problem": PROBLEM_HINTS, group: with_parts(path, group)})
        try:
            if works(build(node[group], group)):
                yield path.stem
        except (TwinclockError, ImportError, OmegaConfBaseException):
            continue  # an option that cannot be built here is no alternative
