"""What the console says of a run."""

import pytest
from rich.console import Console

from harness.summary import _doubt, show
from harness.trial import _rise

TIMED = {"run/id": "1", "speedup/baseline_id": "0", "run/num_workers": 2, "time/clock": "wall"}


@pytest.mark.parametrize(
    ("found", "doubted"),
    [
        ({"speedup/throughput": 1.5, "speedup/baseline_s": 0.06}, False),
        ({"speedup/throughput": 2.5, "speedup/baseline_s": 0.06}, True),
        ({"speedup/throughput": 1.5, "speedup/baseline_s": 0.04}, True),
        ({"speedup/throughput": 2.5, "speedup/baseline_s": 0.04, "time/clock": "virtual"}, False),
        ({"speedup/throughput": 1.0, "speedup/baseline_s": 0.04, "speedup/baseline_id": "1"}, False),
        ({}, False),
    ],
)
def test_ratios_of_wall_times_are_doubted_where_they_may_be_none(found, doubted):
    assert bool(_doubt(TIMED | found)) == doubted


KNOWN = {"async/staleness_mean": 1.5, "async/conflict_frac": 0.25, "async/lost_frac": 0.031}
LOCKED = {"async/staleness_mean": 0.0, "async/conflict_frac": 0.0, "async/lost_frac": 0.0}
MET = "met coordinates written since they were read"


@pytest.mark.parametrize(
    ("found", "line"),
    [
        (KNOWN, f"staleness 1.5 updates (mean); 25% of updates {MET}; at most 3.1% of additions lost"),
        (LOCKED, f"staleness 0 updates (mean); no update {MET}; no addition lost"),
        ({"async/lost_frac": 0.0}, "no addition lost"),
        ({}, None),
        ({**LOCKED, "run/num_workers": 1}, None),
    ],
    ids=["simulated", "simulated locks", "real locks", "unknown", "one worker"],
)
def test_conflicts_are_said_where_they_are_known_none_as_well(capsys, found, line):
    show(Console(width=200), "sim-hogwild-cpu-w2-s0", {"run/num_workers": 2, **found}, "", "")
    said = [text.split(maxsplit=1) for text in capsys.readouterr().out.splitlines()]
    assert [words[1] for words in said if words[:1] == ["conflicts"]] == ([] if line is None else [line])


@pytest.mark.parametrize(
    ("losses", "said"),
    [([0.7, 2.0, 0.6], ""), ([0.7, 2.648], "train/loss rose from 0.7 to 2.648"), ([0.7, 0.7], ""), ([None, None], "")],
)
def test_a_loss_that_rose_is_said(losses, said):
    assert _rise([{} if loss is None else {"train/loss": loss} for loss in losses]) == said
