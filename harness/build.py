"""From composed YAML to frozen dataclasses.

`_target_` names the class and the class is the schema: unknown key, wrong type and missing value name the field.
"""

import difflib
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from importlib import import_module
from typing import Any

from omegaconf import DictConfig, MissingMandatoryValue, OmegaConf
from omegaconf.errors import OmegaConfBaseException, ValidationError

from harness.errors import UserError


def build(node: DictConfig, field: str) -> Any:
    """Build the component that `node` describes.

    Args:
        node: a mapping with `_target_` and one key per field of that dataclass; nested mappings with a `_target_` of
            their own are components too.
        field: its name in messages, such as "algorithm".

    Raises:
        UserError: naming the field, if a key is unknown or missing, a type is wrong or a value is refused.
    """
    return to_object(_structured(node, field), field)


def build_settings(cls: type, values: Mapping[str, Any]) -> Any:
    """Build a dataclass without `_target_` from the top level of the config; raises UserError like `build`."""
    return to_object(_merge(cls, dict(values), ""), "")


def to_object(structured: DictConfig, field: str) -> Any:
    """Instantiate a structured config; a value still missing is named."""
    try:
        return OmegaConf.to_object(structured)
    except MissingMandatoryValue as error:
        name = str(error).splitlines()[0].rsplit(": ", 1)[-1]
        raise UserError(f"{_join(field, error.full_key or name)} is missing: give it a value") from error


def target_class(node: DictConfig, field: str) -> type:
    """The dataclass that `node._target_` names."""
    path = str(node.get("_target_"))
    module, _, name = path.rpartition(".")
    try:
        cls = getattr(import_module(module), name)
    except ModuleNotFoundError as error:
        if not module.startswith(str(error.name)):
            raise
        raise UserError(
            f"{field}._target_={path}: there is no module {error.name!r}; modules are looked for in this repository, the "
            "installed packages and the folder given by --config-dir"
        ) from error
    except (AttributeError, ValueError) as error:
        raise UserError(f"{field}._target_={path} names no class: write module.Class") from error
    if not is_dataclass(cls):
        raise UserError(f"{field}._target_={path} is not a dataclass: decorate it with @dataclass(frozen=True)")
    return cls


def _structured(node: DictConfig, field: str) -> DictConfig:
    cls = target_class(node, field)
    values: dict[str, Any] = {}
    for key in node:
        if key != "_target_":
            child = None if OmegaConf.is_missing(node, key) else node[key]
            nested = isinstance(child, DictConfig) and "_target_" in child
            values[str(key)] = _structured(child, _join(field, str(key))) if nested else _plain(node, key)
    return _merge(cls, values, field)


def _plain(node: DictConfig, key: Any) -> Any:
    if OmegaConf.is_missing(node, key):
        return "???"
    value = node[key]
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def _merge(cls: type, values: dict[str, Any], field: str) -> DictConfig:
    names = [f.name for f in fields(cls)]
    for key in values:
        if key not in names:
            raise UserError(unknown_key(_join(field, key), key, names))
    try:
        merged = OmegaConf.merge(OmegaConf.structured(cls), values)
    except ValidationError as error:
        raise UserError(f"{_join(field, error.full_key or '')}: {str(error).splitlines()[0]}") from error
    except OmegaConfBaseException as error:
        raise UserError(f"{field}: {str(error).splitlines()[0]}") from error
    assert isinstance(merged, DictConfig)
    return merged


def unknown_key(path: str, key: str, names: list[str]) -> str:
    """One sentence about a key that does not exist, with the nearest that does.

    >>> unknown_key("hardware.num_wrokers", "num_wrokers", ["num_workers", "strict"])
    'hardware.num_wrokers is not a setting: did you mean num_workers? (num_workers, strict)'
    """
    close = difflib.get_close_matches(key, names, n=1)
    hint = f"did you mean {close[0]}? ({', '.join(names)})" if close else f"use one of {', '.join(names)}"
    return f"{path} is not a setting: {hint}"


def _join(field: str, key: str) -> str:
    return f"{field}.{key}" if field and key else field or key
