"""What workers measure while they run, one value at a time, and what is said of all of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from harness.errors import UserError

Measures = Mapping[str, Any]  # by key of docs/metrics.md: a list of values, or a `Conclusion`


@dataclass(frozen=True)
class Conclusion:
    """A value that the summary has as it is."""

    value: Any


def check_told(measures: Measures, key: str, kind: type) -> None:
    """Refuse a key that is told in the other way too.

    Args:
        kind: `list` to measure, `Conclusion` to conclude.

    Raises:
        UserError: naming the key.
    """
    if key in measures and not isinstance(measures[key], kind):
        raise UserError(f"{key!r} is told both by worker.measure and by worker.conclude: use one of them, or two keys")


def copied(measures: Measures) -> Measures:
    """Measures as they are now, whatever is measured later."""
    return {key: [*held] if isinstance(held, list) else held for key, held in measures.items()}


def so_far(measures: Sequence[Measures]) -> list[Measures]:
    """What ranks have told of a run that did not end: conclusions, and what all who measure have measured.

    >>> so_far([{"sync": [1.0], "wait": [2.0]}, {"sync": [3.0]}, {}])
    [{'sync': [1.0]}, {'sync': [3.0]}]
    """
    told = [each for each in measures if any(isinstance(held, list) for held in each.values())]
    common = set.intersection(*map(set, told)) if told else set()
    return [
        {key: held for key, held in each.items() if key in common or isinstance(held, Conclusion)}
        for each in measures
        if each
    ]


def distributions(measures: Sequence[Measures]) -> dict[str, Any]:
    """Mean, 95th percentile and maximum of every measure over all ranks; whole numbers also as counts of 0, 1, 2, ...

    Conclusions, of whichever rank, are kept as they are.

    Args:
        measures: of every rank.

    Raises:
        UserError: if two ranks conclude the same, of which only one would be kept.

    >>> distributions([{"async/staleness": [0, 1]}, {"async/staleness": [3]}])["async/staleness_hist"]
    [1, 1, 0, 1]
    """
    found: dict[str, Any] = {}
    concluded = [(key, held) for each in measures for key, held in each.items() if isinstance(held, Conclusion)]
    for key, held in concluded:
        if key in found:
            raise UserError(f"{key!r} is told by worker.conclude on several ranks: let one do, or use worker.measure")
        found[key] = held.value
    for key in sorted({key for each in measures for key in each} - set(found)):
        values = np.concatenate([np.asarray(each[key]) for each in measures if key in each])
        if len(values):
            p95 = np.percentile(values, 95, method="inverted_cdf")
            found |= {f"{key}_mean": float(values.mean()), f"{key}_p95": p95.item(), f"{key}_max": values.max().item()}
            if np.issubdtype(values.dtype, np.integer):
                found[f"{key}_hist"] = np.bincount(values).tolist()
    return found
