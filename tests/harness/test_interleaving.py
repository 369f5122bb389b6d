"""Decisions of timing are noted in few bytes, written as JSON, and made again."""

import json
from array import array

import pytest

from harness import interleaving
from harness.errors import UserError
from harness.interleaving import Decisions, Interleaving, read, write


@pytest.fixture
def met():
    """What two ranks met."""
    first = Interleaving(counts=array("q", [0, 0, 8, 1, 2**40, 2]), turns=array("b", [0, 1]), times=array("d", [0.25]))
    return [first, Interleaving(claims=array("q", [0, 8, 16]), sources=array("i", [3, 1, 2, 3, 0]))]


@pytest.mark.parametrize("chunk", [2, 65_536])
def test_a_file_says_what_was_met_whole_and_in_parts(met, chunk, tmp_path, monkeypatch):
    monkeypatch.setattr(interleaving, "CHUNK", chunk)
    write(tmp_path / "it.json", met)
    assert json.loads((tmp_path / "it.json").read_text()) == [
        {"claims": [], "sources": [], "counts": [[0, 0], [8, 1], [2**40, 2]], "turns": [0, 1], "times": [0.25]},
        {"claims": [0, 8, 16], "sources": [3, 1, 2, 3, 0], "counts": [], "turns": [], "times": []},
    ]
    assert read(tmp_path / "it.json") == met


@pytest.mark.parametrize(
    "text", ["[", "[1]", '[{"claims": ["x"], "sources": [], "counts": [], "turns": [], "times": []}]']
)
def test_a_file_that_says_nothing_is_refused(text, tmp_path):
    (tmp_path / "it.json").write_text(text)
    with pytest.raises(UserError, match="no readable it"):
        read(tmp_path / "it.json")


def test_what_timing_decides_is_noted_and_decided_again():
    first, second = Interleaving(), Interleaving()
    sources = Decisions("sources", "receives", 0, first, replay=())
    assert sources.foreseen() is None and not sources.exhausted
    assert [sources.decide(rank) for rank in (2, 1, 2)] == [2, 1, 2]
    again = Decisions("sources", "receives", 0, second, replay=[first])
    assert again.foreseen() == 2  # and again, until it is taken
    assert [again.decide(rank) for rank in (0, 0, 0)] == [2, 1, 2] and first == second
    assert again.exhausted
    with pytest.raises(UserError, match="replay: rank 0 receives more often than in the run that is repeated"):
        again.decide(0)
