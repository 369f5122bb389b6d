"""Canonical JSON: what records are written in, and what keys are hashed from."""

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def plain(value: Any) -> Any:
    """The same value in JSON's own types.

    Numbers, arrays and tensors of numpy and torch become Python numbers and lists; a path becomes its text, and a
    float that JSON has no word for ("nan", "inf") too.

    Raises:
        TypeError: for anything else; its text might change from run to run.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(float(value))
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted((plain(item) for item in value), key=repr)
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    raise TypeError(f"{type(value).__name__} cannot be written as JSON: {value!r}")


def to_json(value: Any, indent: int | None = None) -> str:
    """JSON text in the order of the dictionaries; one line unless `indent` is given."""
    return json.dumps(plain(value), indent=indent, ensure_ascii=False, allow_nan=False)


def first_difference(then: Mapping[str, Any], now: Mapping[str, Any], path: str = "") -> str:
    """The first setting in which two plain configurations differ; "" if there is none.

    Classes of parts count where both name them.

    >>> first_difference({"algorithm": {"_target_": "sgd", "batch_size": 1}}, {"algorithm": {"batch_size": 2}})
    'algorithm.batch_size was 1, is 2'
    """
    for key in {**now, **then}:
        old, new = then.get(key), now.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            if found := first_difference(old, new, f"{path}{key}."):
                return found
        elif old != new and (key != "_target_" or (old and new)):
            return f"{path}{key} was {old!r}, is {new!r}"
    return ""


def digest(value: Any) -> str:
    """16 hexadecimal digits of the SHA-256 of `value`, independent of the order of its dictionaries.

    >>> digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    True
    """
    text = json.dumps(plain(value), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
