"""From composed YAML to frozen dataclasses.

`_target_` names the class and the class is the schema: unknown key, wrong type and missing value name the field.
"""

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from importlib import import_module
from typing import Any, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, MissingMandatoryValue, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from harness.errors import UserError, require
from harness.folders import found


def build(node: DictConfig, field: str) -> Any:
    """Build the component that `node` describes.

    Args:
        node: a mapping with `_target_` and one key per field of that dataclass; nested mappings with a `_target_` of
            their own are components too.
        field: its name in messages, such as "algorithm".

    Raises:
        UserError: naming the field, if a key is unknown or missing, a type is wrong or a value is refused.
    """
    values = {str(key): _value(node, str(key), _join(field, str(key))) for key in node if key != "_target_"}
    return instantiate(target_class(node, field), values, field)


def instantiate(cls: type, values: Mapping[str, Any], field: str) -> Any:
    """An instance of dataclass `cls` from plain values, checked against its annotations; raises like `build`."""
    schema = OmegaConf.structured(cls)
    OmegaConf.set_readonly(schema, False)  # frozen dataclasses make it read-only
    names, hints = [f.name for f in fields(cls)], get_type_hints(cls)
    for key, value in values.items():
        if key not in names:
            raise UserError(unknown_key(_join(field, key), key, names))
        _assign(schema, key, _with_float_keys(value, hints[key]), field, hints[key])
    _require_finite(OmegaConf.to_container(schema), field)
    try:
        return OmegaConf.to_object(schema)
    except MissingMandatoryValue as error:
        raise UserError(f"{_join(field, str(error.full_key))} is missing: give it a value") from error
    except UserError as error:
        raise type(error)(_as_typed(str(error), field, names)) from error


def _as_typed(message: str, field: str, names: Sequence[str]) -> str:
    """A refusal that names a part's setting as it is typed; a part does not know where it is.

    >>> _as_typed("optimizer.momentum must be in [0, 1), got 3", "algorithm.outer", ["momentum"])
    'algorithm.outer.momentum must be in [0, 1), got 3'
    """
    own = re.match(r"(\w+)\.(\w+)", message)
    is_short = own and "." in field and own[1] != field.split(".")[0] and own[2] in names
    return f"{field}{message[len(own[1]) :]}" if own and is_short else message


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
            f"{field}._target_={path}: there is no module {error.name!r} in this repository, among the installed "
            "packages or in the folder given by --config-dir"
        ) from error
    except (AttributeError, ValueError) as error:
        raise UserError(f"{field}._target_={path} names no class: write module.Class") from error
    if not (isinstance(cls, type) and is_dataclass(cls)):
        raise UserError(f"{field}._target_={path} is not a dataclass: decorate it with @dataclass(frozen=True)")
    return cls


def class_path(component: Any) -> str:
    """The `_target_` of a component."""
    return f"{type(component).__module__}.{type(component).__qualname__}"


def _value(node: DictConfig, key: str, field: str) -> Any:
    if OmegaConf.is_missing(node, key):
        return "???"
    try:
        value = node[key]
    except OmegaConfBaseException as error:
        raise UserError(f"{field}: {str(error).splitlines()[0]}") from error
    if isinstance(value, DictConfig) and "_target_" in value:
        return build(value, field)
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def _assign(schema: DictConfig, key: str, value: Any, field: str, hint: Any) -> None:
    if hint is bool and isinstance(value, int) and value not in (0, 1):
        raise UserError(f"{_join(field, key)} must be true or false, got {value}")
    try:
        schema[key] = value
    except OmegaConfBaseException as error:
        inner = str(error.full_key or key)
        path = inner if inner.startswith(key) else f"{key}.{inner}"
        field, message = _join(field, path), str(error).splitlines()[0]
        if "is not a ListConfig" in message:
            raise UserError(f"{field} must be a list, such as [{value}], got {value}") from error
        settings = [each.name for each in fields(hint)] if is_dataclass(hint) else []
        raise UserError(f"{field} {_type_rule(message, field, settings)}") from error


def _with_float_keys(value: Any, hint: Any) -> Any:
    """A mapping with whole numbers as floats where its type asks for floats; OmegaConf converts values alone.

    >>> _with_float_keys({3: {5: 0.1}}, dict[int, dict[float, float]])
    {3: {5.0: 0.1}}
    """
    if get_origin(hint) is not dict or not isinstance(value, dict):
        return value
    keys, values = get_args(hint)
    return {
        float(key) if keys is float and type(key) is int else key: _with_float_keys(item, values)
        for key, item in value.items()
    }


def _type_rule(message: str, field: str = "", settings: Sequence[str] = ()) -> str:
    """OmegaConf's words about a wrong type, in ours.

    >>> _type_rule("Value 'two' of type 'str' could not be converted to Integer")
    "must be a whole number, got 'two'"
    >>> _type_rule("Key a (str) is incompatible with (int)")
    'must have a whole number as its key, got a'
    >>> _type_rule("Invalid type assigned: str is not a subclass of Optimizer. value: adam", "algorithm.optimizer")
    'has settings of its own, and is chosen with a slash: algorithm/optimizer=adam'
    """
    if option := re.search(r"(?:str|int) is not a subclass of (\w+)\. value: (\w+)", message):
        return _part_rule(field, option[1], option[2], settings)
    found = re.search(r"Value (.+) of type '.+' could not be converted to (\w+)", message)
    names = {"Integer": "a whole number", "Float": "a number", "Boolean": "true or false"}
    if found:
        return f"must be {names.get(found[2], found[2])}, got {found[1]}"
    if truth := re.search(r"Value (.+) is not a valid bool", message):
        return f"must be true or false, got {truth[1]}"
    if key := re.search(r"Key (.+) \(\w+\) is incompatible with \((int|float)\)", message):
        return f"must have {'a whole number' if key[2] == 'int' else 'a number'} as its key, got {key[1]}"
    if re.search(r"Cannot assign .+ to Dict\[", message):
        return "must be a mapping, such as {10.0: 4.0}"
    return "must have a value" if "is not Optional" in message else f"has the wrong type: {message}"


def _part_rule(field: str, kind: str, option: str, settings: Sequence[str] = ()) -> str:
    """What to type for a component within another, which is one of a group of options, or has settings alone.

    >>> _part_rule("algorithm.server", "Optimizer", "adam")
    'has settings of its own, and is chosen with a slash: algorithm/optimizer@algorithm.server=adam'
    >>> _part_rule("algorithm.mesh", "Mesh", "1x2", ["data", "tensor"])
    'has settings of its own, each of which is set: algorithm.mesh.data, algorithm.mesh.tensor'
    """
    parent, _, name = field.partition(".")
    group = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", kind).lower()
    if found(f"{parent}/{name}/"):
        able = group_with(parent, name, option)
        return f"has settings of its own, and is chosen with a slash: {parent}/{able}={option}"
    if found(f"{parent}/{group}/"):
        return f"has settings of its own, and is chosen with a slash: {parent}/{group}@{field}={option}"
    return f"has settings of its own, each of which is set: {', '.join(f'{field}.{name}' for name in settings)}"


def group_with(parent: str, name: str, option: str) -> str:
    """The group of parts that has an option: this one, or if it has not, another one that has.

    >>> group_with("algorithm", "schedule", "cosine"), group_with("algorithm", "schedule", "gpipe")
    ('schedule', 'pipeline_schedule')
    """
    groups = sorted(path.parent.name for path in found(f"{parent}/*/{option}.yaml"))
    return name if name in groups or not groups else groups[0]


def _require_finite(value: Any, field: str) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            _require_finite(item, _join(field, str(key)))
    elif isinstance(value, float):
        require(math.isfinite(value), field, "must be finite", value)


def unknown_key(path: str, key: str, names: list[str]) -> str:
    """One sentence about a key that does not exist, with the nearest that does.

    >>> unknown_key("hardware.num_wrokers", "num_wrokers", ["num_workers", "strict"])
    'hardware.num_wrokers is not a setting: did you mean num_workers? (num_workers, strict)'
    """
    close = difflib.get_close_matches(key, names, n=1)
    hint = f"did you mean {close[0]}? ({', '.join(names)})" if close else f"use one of {', '.join(names)}"
    if able := _options_with(path):
        hint = f"it is one of {able}; here, {hint}"
    return f"{path} is not a setting: {hint}"


def _options_with(path: str) -> str:
    """The options of a group that have a setting.

    >>> _options_with("data.num_servers"), _options_with("data.nonsense"), _options_with("algorithm.optimizer.momentum")
    ('data=streamed', '', 'algorithm/optimizer=momentum|nesterov')
    """
    place, _, key = path.rpartition(".")
    group = place.replace(".", "/")
    files = found(f"{group}/*.yaml") if group else ()
    able = {file.stem for file in files if f"\n{key}: " in file.read_text("utf-8")}
    return f"{group}={'|'.join(sorted(able))}" if able else ""


def _join(field: str, key: str) -> str:
    return f"{field}.{key}" if field and key else field or key
