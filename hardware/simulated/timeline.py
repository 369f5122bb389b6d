"""A timeline of a simulated run, in the trace event format that Perfetto and TensorBoard read.

(Trace Event Format, Google, 2016.) One process per rank; a row for each stream that computes, and rows for what the
rank takes part in, side by side where it overlaps. Arrows lead from one part of an exchange to the next.
"""

import gzip
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import inf
from pathlib import Path
from typing import Any, NamedTuple

from hardware.simulated.account import Account

MAX_EVENTS = 50_000


class Written(NamedTuple):
    """How many events a timeline has, and the virtual time in seconds at which it ends; infinite if it is whole."""

    events: int
    until_s: float


def write(path: Path, accounts: Sequence[Account], ranks: Sequence[int] | None = None) -> Written:
    """Write the timeline of the ranks, at most `MAX_EVENTS`, the earliest.

    Args:
        ranks: whose accounts they are; None for 0, 1, 2, ...
    """
    by_rank = dict(zip(range(len(accounts)) if ranks is None else ranks, accounts, strict=True))
    spans = sorted(_spans(by_rank), key=lambda event: event["ts"])
    until_s = _known_until_s(accounts)
    if len(spans) > MAX_EVENTS:
        until_s = min(until_s, spans[MAX_EVENTS]["ts"] / 1e6)
    spans = [span for span in spans if span["ts"] < until_s * 1e6]
    events = [*_names(by_rank), *spans, *_arrows(spans), *_end(until_s)]
    text = json.dumps({"traceEvents": events, "displayTimeUnit": "ms", "clock": "virtual"}, allow_nan=False)
    path.write_bytes(gzip.compress(text.encode(), compresslevel=4))
    return Written(len(spans), until_s)


def _known_until_s(accounts: Sequence[Account]) -> float:
    """When the first account was full of exchanges."""
    full = [account.exchanges[-1] for account in accounts if len(account.exchanges) == account.exchanges_kept]
    return min((exchange.end_s for exchange in full), default=inf)


def _end(until_s: float) -> Iterator[dict[str, Any]]:
    """What says, where it ends, that the run went on."""
    if until_s < inf:
        words = f"the timeline ends here: it has the first {MAX_EVENTS} events at most"
        yield {"ph": "i", "s": "g", "name": words, "pid": 0, "tid": "stream 0", "ts": until_s * 1e6}


def _names(ranks: Iterable[int]) -> Iterator[dict[str, Any]]:
    for rank in ranks:
        yield {"ph": "M", "name": "process_name", "pid": rank, "args": {"name": f"rank {rank}"}}
        yield {"ph": "M", "name": "process_sort_index", "pid": rank, "args": {"sort_index": rank}}


def _spans(accounts: Mapping[int, Account]) -> Iterator[dict[str, Any]]:
    for rank, account in accounts.items():
        for number, stream in enumerate(account.streams):
            for begin_s, end_s in stream.until(float("inf")).tolist():
                yield _span("compute", rank, f"stream {number}", begin_s, end_s)
        rows: list[float] = []  # when each row of exchanges is free again
        for exchange in sorted(account.exchanges, key=lambda exchange: exchange.begin_s):
            row = next((i for i, free_s in enumerate(rows) if free_s <= exchange.begin_s), len(rows))
            rows[row:] = [exchange.end_s, *rows[row + 1 :]]
            span = _span(exchange.description, rank, f"network {row}", exchange.begin_s, exchange.end_s)
            yield span | {"args": {"exchange": exchange.number}}


def _span(name: str, rank: int, row: str, begin_s: float, end_s: float) -> dict[str, Any]:
    return {"ph": "X", "name": name, "pid": rank, "tid": row, "ts": begin_s * 1e6, "dur": (end_s - begin_s) * 1e6}


def _arrows(spans: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """From each part of an exchange to that of the next rank."""
    last: dict[int, dict[str, Any]] = {}
    for span in sorted((span for span in spans if "args" in span), key=lambda span: span["pid"]):
        number = span["args"]["exchange"]
        if number in last:
            arrow = {"name": "exchange", "cat": "exchange", "id": f"{number}-{span['pid']}"}
            before = last[number]
            yield arrow | {"ph": "s", "pid": before["pid"], "tid": before["tid"], "ts": before["ts"]}
            yield arrow | {"ph": "f", "bp": "e", "pid": span["pid"], "tid": span["tid"], "ts": span["ts"] + span["dur"]}
        last[number] = span
