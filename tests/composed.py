"""Composes setups in the test process, without the command line."""

import copy
import functools
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from harness import check as harness_check
from harness import cli
from harness import setup as harness_setup

CONF = Path(__file__).parents[1] / "conf"


def setup(*overrides):
    """The checked setup of `python run.py *overrides`."""
    return checked(*overrides)[0]


def checked(*overrides):
    """The same, and what it would notice."""
    return harness_check.check(unchecked(*overrides))


def unchecked(*overrides):
    """The same, whether or not it can be run here."""
    return harness_setup.compose(config(*overrides))


def config(*overrides):
    """The configuration, as `harness.cli.composed` has it, where Hydra's own is set too."""
    given = [cli.quoted(each) for each in overrides]
    whole = _with_choices([each for each in given if _chooses(each)])
    # as Hydra does it, once the options are chosen: to choose them takes a tenth of a second, of which there are many
    ConfigLoaderImpl._apply_overrides_to_config([_parsed(each) for each in given if not _chooses(each)], whole)
    return whole


def _with_choices(choices):
    """A configuration of its own; what is chosen in one group is composed once, whatever is chosen in others."""
    groups = {_group(each): [] for each in choices}
    for each in choices:
        groups[_group(each)].append(each)
    if not groups.keys() <= harness_setup.GROUPS.keys():  # an experiment chooses in several
        whole, HydraConfig.instance().cfg = _chosen(*choices)
        return copy.deepcopy(whole)
    usual, hydra = _chosen()
    parts, chosen = dict(usual.items_ex(resolve=False)), dict(hydra.hydra.runtime.choices)
    for group, own in groups.items():
        of_group, its_hydra = _chosen(*own)
        parts[group] = of_group._get_node(group)
        chosen = {key: option for key, option in chosen.items() if _group(key) != group}
        chosen |= {key: option for key, option in its_hydra.hydra.runtime.choices.items() if _group(key) == group}
    HydraConfig.instance().cfg = _hydra(tuple(chosen.items()))
    return DictConfig(parts)  # of copies


def _group(override):
    return _key(override).partition("@")[0].partition("/")[0]


@functools.cache
def _hydra(chosen):
    """Hydra's own configuration of what is chosen."""
    hydra = copy.deepcopy(_chosen()[1])
    with read_write(hydra.hydra.runtime), open_dict(hydra.hydra.runtime):
        hydra.hydra.runtime.choices = dict(chosen)
    return hydra


def _key(override):
    return override.partition("=")[0].lstrip("+~")


def _chooses(override):
    key = _key(override)
    return (CONF / key.partition("@")[0]).is_dir() or key.startswith("hydra.")


@functools.cache
def _chosen(*choices):
    """The configuration of these options, and Hydra's own."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", list(choices), return_hydra_config=True)
    HydraConfig.instance().set_config(config)
    return OmegaConf.masked_copy(config, [key for key in config if key != "hydra"]), HydraConfig.instance().cfg


@functools.cache
def _parsed(override):
    return OverridesParser.create().parse_override(override)


def node(component):
    """The composed YAML of an option, such as "hardware/cpu"."""
    return copy.deepcopy(_node(component))


@functools.cache
def _node(component):
    group, _, option = component.rpartition("/")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return OmegaConf.select(compose("config", [f"{group}={option}"]), group.replace("/", "."))


def options(group):
    """The names of a group's options."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def execution(*overrides):
    """What the hardware returns for `python run.py *overrides`."""
    composed = setup(*overrides)
    return composed.machine.execute(composed.program(), lambda samples: None)
