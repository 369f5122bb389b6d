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


@pytest.mark.parametrize(("mfu", "said"), [(1.06, "MFU 106% (above 100% as what causal"), (0.4, "MFU 40%, bubble 20%")])
def test_a_share_above_one_says_why_and_a_measured_bubble_stands_beside_its_closed_form(capsys, mfu, said):
    found = {"predicted/step_s": 2e3, "predicted/tokens_per_s_per_device": 11008.6, "predicted/mfu": mfu}
    found |= {"predicted/bubble_frac": 0.2, "predicted/peak_memory_bytes_max": 2**34, "pipeline/bubble_frac": 0.111}
    show(Console(width=300), "sim-pipeline-dgx-w4-s0", {**TIMED, "time/clock": "virtual", **found}, "", "")
    text = capsys.readouterr().out
    assert "2,000 virtual s a step, 11,010 tokens/s a device" in text and said in text
    assert "bubble 20% (11.1% by the closed form of equal stages)" in text
