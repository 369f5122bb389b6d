import resource
from contextlib import contextmanager

import numpy as np
import pytest

from harness.errors import UserError
from harness.manifest import RunInfo, manifest
from harness.record import Record

MANIFEST = manifest(RunInfo("ab12", "name", "real", "wall", 1, 0, "p", "q", None, [], {"seed": 0}), [])


@pytest.fixture
def record(tmp_path):
    record = Record(tmp_path / "runs" / "one")
    record.start(MANIFEST)
    return record


@contextmanager
def full_disk(limit_bytes):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_run_that_has_started_says_so(record):
    assert record.manifest() == MANIFEST
    assert record.summary() == {
        "run/id": "ab12",
        "run/name": "name",
        "run/kind": "real",
        "run/status": "running",
        "time/clock": "wall",
    }
    assert record.rows() == []


def test_rows_and_summary_are_read_back_as_written(record):
    rows = [{"progress/sample": i, "train/loss": 0.1 * i} for i in range(3)]
    for row in rows:
        record.append(row)
    record.append({"train/loss": np.float64(0.3)})
    record.finish({"train/loss": 0.3, "target/reached": False}, "finished")
    assert record.rows() == [*rows, {"train/loss": 0.3}]
    summary = record.summary()
    assert (summary["run/status"], summary["train/loss"], summary["target/reached"]) == ("finished", 0.3, False)
    assert "run/error" not in summary


def test_why_a_run_failed_is_kept(record):
    record.finish({}, "failed", "worker 1 was killed")
    assert record.summary()["run/error"] == "worker 1 was killed"


def test_a_run_that_was_refused_says_why(tmp_path):
    record = Record(tmp_path / "runs" / "one")
    record.refuse({"seed": -1}, "seed must be >= 0, got -1")
    assert record.summary() == {"run/status": "failed", "run/error": "seed must be >= 0, got -1"}
    assert record.manifest() == {"config": {"seed": -1}}


def test_what_became_known_later_is_added_to_the_manifest(record):
    record.amend({"facts": {"pinned": [0, 1]}})
    assert record.manifest() == {**MANIFEST, "facts": {"pinned": [0, 1]}}


def test_only_whole_files_are_left(record):
    record.finish({}, "finished")
    assert sorted(path.name for path in record.directory.iterdir()) == ["manifest.json", "summary.json"]


def test_a_second_run_in_the_same_directory_is_refused(record):
    with pytest.raises(UserError, match=r"hydra.run.dir must not hold another run.*runs/one"):
        record.start(MANIFEST)


def test_a_line_cut_short_is_left_out(record):
    record.append({"a": 1})
    with (record.directory / "history.jsonl").open("a") as file:
        file.write('{"a": 2')
    assert record.rows() == [{"a": 1}]


def test_a_full_disk_damages_nothing_that_was_written(record):
    record.append({"a": "x" * 100})
    record.finish({"a": 1}, "finished")
    with full_disk(150):
        with pytest.raises(UserError, match=r"history.jsonl cannot be written \(File too large\): raise the limit"):
            record.append({"a": "y" * 100})
        with pytest.raises(UserError, match=r"summary.json cannot be written"):
            record.finish({"a": "z" * 1000}, "failed")
    assert record.rows() == [{"a": "x" * 100}]
    assert record.summary()["a"] == 1
    assert len(list(record.directory.iterdir())) == 3
    record.append({"a": 3})
    assert len(record.rows()) == 2


def test_a_directory_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/run cannot be written \(Not a directory\): choose another runs_dir"):
        Record(tmp_path / "file" / "run").start(MANIFEST)


@pytest.mark.parametrize("content", [None, '{"a":', "[]"])
def test_a_summary_that_cannot_be_read_is_named(record, content):
    path = record.directory / "summary.json"
    path.unlink()
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=r"summary.json cannot be read"):
        record.summary()


def test_a_history_that_cannot_be_read_is_named(record):
    (record.directory / "history.jsonl").write_text("{}\nnonsense\n")
    with pytest.raises(UserError, match=r"history.jsonl cannot be read"):
        record.rows()
