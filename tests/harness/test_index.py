import json
import multiprocessing
import shutil

import pytest

from harness.errors import UserError
from harness.index import RunIndex, code_digest, key
from harness.manifest import RunInfo, manifest
from harness.record import Record


def recorded(root, run_id, status="finished"):
    record = Record(root / run_id)
    record.start(manifest(RunInfo(run_id, f"name-{run_id}", "real", "wall", 1, 0, "p", "q", None, [], {}), []))
    record.finish({}, status)
    return record


@pytest.fixture
def index(tmp_path):
    return RunIndex(tmp_path)


def test_an_empty_index_finds_nothing(index):
    assert index.find("k") is None
    assert index.get("a") is None
    assert index.entries() == []


def test_the_newest_finished_run_is_found(index):
    for run_id, status in (("a", "finished"), ("b", "finished"), ("c", "failed")):
        index.add("k", recorded(index.root, run_id, status))
    index.add("other", recorded(index.root, "d"))
    assert index.find("k") == Record(index.root / "b")
    assert index.find("nothing") is None
    assert index.get("c").summary()["run/status"] == "failed"
    assert [entry.name for entry in index.entries()] == ["name-a", "name-b", "name-c", "name-d"]


def test_a_run_whose_directory_is_gone_is_passed_over(index):
    for run_id in "abc":
        index.add("k", recorded(index.root, run_id))
    shutil.rmtree(index.root / "c")
    (index.root / "b" / "summary.json").write_text("{")
    assert index.find("k") == Record(index.root / "a")


def test_an_index_can_be_moved_with_its_runs(index, tmp_path):
    index.add("k", recorded(index.root / "runs", "a"))
    moved = RunIndex(tmp_path / "elsewhere")
    shutil.copytree(index.root / "runs", moved.root / "runs")
    shutil.move(index.path, moved.path)
    assert moved.find("k").summary()["run/id"] == "a"


def test_damaged_lines_are_left_out_and_said_once(index, caplog):
    index.add("k", recorded(index.root, "a"))
    with index.path.open("ab") as file:
        file.write(b'{"id": 1}\n\xff\n{"id": "cut sh')
    index.add("k", recorded(index.root, "b"))
    assert [entry.id for entry in index.entries()] == ["a", "b"]
    assert index.find("k") == Record(index.root / "b")
    assert [record.message for record in caplog.records] == [f"{index.path}: 3 damaged line(s) left out"]


def add_many(root, name):
    record = recorded(root, name)
    for _ in range(50):
        RunIndex(root).add("k", record)


def test_processes_do_not_damage_each_other_s_lines(index):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=add_many, args=(index.root, name)) for name in "abc"]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    lines = [json.loads(line) for line in index.path.read_text().splitlines()]
    assert sorted(line["id"] for line in lines) == ["a"] * 50 + ["b"] * 50 + ["c"] * 50


def test_an_index_that_cannot_be_written_is_named(index, tmp_path):
    record = recorded(index.root, "a")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/index.jsonl cannot be written \(.*\): free disk space"):
        RunIndex(tmp_path / "file").add("k", record)


def test_a_key_depends_on_every_part():
    assert key({"seed": 0, "host": "a"}) == key({"host": "a", "seed": 0})
    assert key({"seed": 0, "host": "a"}) != key({"seed": 0, "host": "b"})


def test_the_code_digest_follows_content_and_names_but_not_the_place(tmp_path):
    for place in ("here", "there"):
        folder = tmp_path / place / "package"
        folder.mkdir(parents=True)
        (folder / "one.py").write_text("1")
        (folder / "notes.txt").write_text(place)
    here, there = tmp_path / "here" / "package", tmp_path / "there" / "package"
    before = code_digest([here])
    assert code_digest([there]) == before
    assert code_digest([here / "one.py"]) != code_digest([here / "one.py", here / "notes.txt"])
    (there / "one.py").write_text("2")
    assert code_digest([there]) != before
    (here / "one.py").rename(here / "two.py")
    assert code_digest([here]) != before
