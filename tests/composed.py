"""Composes setups in the test process, without the command line."""

import copy
import functools
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from harness import cli
from harness import setup as harness_setup

CONF = Path(__file__).parents[1] / "conf"


def setup(*overrides):
    """The checked setup of `python run.py *overrides`."""
    return checked(*overrides)[0]


def checked(*overrides):
    """The same, and what it would notice."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", [cli.quoted(each) for each in overrides], return_hydra_config=True)
    HydraConfig.instance().set_config(config)
    return harness_setup.check(harness_setup.compose(config))


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
