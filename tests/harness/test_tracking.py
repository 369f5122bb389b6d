import json
import multiprocessing
import os
import pty
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from harness import tracking
from harness.build import build
from harness.errors import UserError
from harness.manifest import RunInfo, manifest
from harness.record import Record
from harness.tracking import Files, Nothing, WandB, thin

ROOT = Path(__file__).parents[2]
INFO = RunInfo(
    "ab12",
    "sim-sgd-numa2-w2-s0",
    "simulated",
    "virtual",
    2,
    0,
    "pair",
    "problem",
    "sweep",
    ["virtual-sockets"],
    {"a": {"b": [1, 2]}},
)
ROWS = [
    {"progress/epoch": i / 4, "progress/sample": 10 * i, "time/run_s": 0.1 * i, "train/loss": 1 / (i + 1)}
    for i in range(9)
]
SUMMARY = {"train/loss": 0.111, "target/reached": True, "async/staleness_hist": [3, 1], "speedup/baseline_id": "cd34"}


@pytest.fixture(autouse=True)
def no_account(monkeypatch, tmp_path):
    """The user's own W&B account and settings play no part."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # the discard port: nobody answers


def wandb(tmp_path, mode="offline"):
    return WandB("project", None, mode, str(tmp_path / "runs"))


def inspect(tmp_path, *options):
    """What W&B's own tool reads from its files."""
    command = [
        Path(sys.executable).with_name("wandb"),
        "leet",
        "inspect",
        tmp_path / "runs" / "wandb",
        "--json",
        *options,
    ]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def history(tmp_path):
    records = [json.loads(line) for line in inspect(tmp_path).splitlines()]
    return [record["history"]["item"] for record in records if record["type"] == "history"]


def without_internals(values):
    return {key: value for key, value in values.items() if not key.startswith("_")}


def service():
    """Process id of the W&B service, a child of this process."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, fields = stat.read_text().rpartition(") ")
        except OSError:
            continue  # it has ended since
        state, parent = fields.split()[:2]
        if parent == str(os.getpid()) and "wandb-core" in name and state != "Z":
            return int(stat.parent.name)
    return None


def test_wandb_s_own_tool_reads_the_rows_and_summary_of_the_files(tmp_path):
    record = Record(tmp_path / "record")
    record.start(manifest(INFO, []))
    for row in ROWS:
        record.append(row)
    record.finish(SUMMARY, "finished")
    with wandb(tmp_path).open(INFO) as tracker:
        tracker.log(record.rows())
        tracker.finish(record.summary(), exit_code=0, tags=["late", "virtual-sockets"])
    assert [without_internals(row) for row in history(tmp_path)] == record.rows()
    found = json.loads(inspect(tmp_path, "--summary"))
    # W&B keeps the last value of an axis by itself, whether or not the summary names it.
    axes = {key: value for key, value in ROWS[-1].items() if key.startswith(("progress/", "time/"))}
    assert without_internals(found["summary"]) == axes | record.summary()
    assert (found["state"], found["exit_code"], found["config"]) == ("finished", 0, {"a": {"b": [1, 2]}})
    assert (found["run_id"], found["name"], found["tags"]) == ("ab12", INFO.name, ["virtual-sockets", "late"])
    run = next(json.loads(line) for line in inspect(tmp_path).splitlines() if '"type":"run"' in line)["run"]
    assert (run["job_type"], run["run_group"], run["project"]) == ("simulated", "sweep", "project")


def test_wandb_leaves_nothing_behind_but_its_files(tmp_path):
    before = dict(os.environ), sys.exit, sys.excepthook, threading.active_count()
    tracker = wandb(tmp_path).open(INFO)
    assert (dict(os.environ), sys.exit, sys.excepthook) == before[:3]
    assert service() is not None
    tracker.finish({}, exit_code=0)
    assert (dict(os.environ), sys.exit, sys.excepthook, threading.active_count()) == before
    assert service() is None
    assert "wandb leet " + str(tmp_path / "runs" / "wandb") in tracker.hint
    sync = Path(tracker.hint.rpartition("wandb sync ")[2])
    assert list(sync.glob("*.wandb"))


def lose_the_service(tmp_path, moment):
    """One run whose W&B service is killed, and one after it; leaves what was said in a file."""
    said = []
    tracking.logger.addFilter(lambda record: said.append(record.getMessage()))
    with wandb(tmp_path).open(INFO) as tracker:
        if moment == "finish":
            tracker.log(ROWS)
        os.kill(service(), 9)
        while moment == "log" and not said:  # it may take a few rows to notice
            tracker.log(ROWS)
        tracker.finish(SUMMARY, exit_code=0)
    with wandb(tmp_path).open(replace(INFO, id="next")) as tracker:
        tracker.finish(SUMMARY, exit_code=0)
    (tmp_path / "said.json").write_text(json.dumps(said))


@pytest.mark.parametrize("moment", ["log", "finish"])
def test_a_service_that_dies_costs_one_warning(tmp_path, moment):
    # In a process of its own: what wandb leaves of a killed service lasts until the process ends.
    process = multiprocessing.get_context("fork").Process(target=lose_the_service, args=(tmp_path, moment))
    process.start()
    process.join()
    said = json.loads((tmp_path / "said.json").read_text())
    assert [text.partition(": ")[0] for text in said] == [f"W&B could not {moment}, the run goes on without it"]
    found = json.loads(inspect(tmp_path, "--summary"))
    assert (found["run_id"], without_internals(found["summary"])) == ("next", SUMMARY)


def test_a_run_that_raises_is_finished_as_failed(tmp_path):
    with pytest.raises(KeyboardInterrupt), wandb(tmp_path).open(INFO) as tracker:
        tracker.log(ROWS)
        raise KeyboardInterrupt
    assert json.loads(inspect(tmp_path, "--summary"))["exit_code"] == 1
    assert len(history(tmp_path)) == len(ROWS)


def test_rows_are_thinned_to_what_wandb_can_draw(tmp_path, monkeypatch):
    monkeypatch.setattr(tracking, "MAX_ROWS", 3)
    with wandb(tmp_path).open(INFO) as tracker:
        tracker.log(ROWS)
        tracker.finish({}, exit_code=0)
    assert [row["progress/sample"] for row in history(tmp_path)] == [0, 40, 80]


@pytest.mark.parametrize("count", [0, 1, 2, 5, 6, 1000])
def test_thinned_rows_are_distinct_and_keep_both_ends(count):
    rows = [{"i": i} for i in range(count)]
    kept = [row["i"] for row in thin(rows, limit=5)]
    assert len(kept) == min(count, 5)
    assert kept == sorted(set(kept))
    assert kept[:1] == [0][:count]
    assert kept[-1:] == ([count - 1] if count else [])


def test_online_without_a_server_costs_one_warning(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setattr(tracking, "INIT_TIMEOUT_S", 1.0)
    with wandb(tmp_path, "online").open(INFO) as tracker:
        tracker.log(ROWS)
        tracker.finish(SUMMARY, exit_code=0)
    said = [record.message for record in caplog.records if record.name == "harness.tracking"]
    assert len(said) == 1
    assert said[0].startswith("W&B could not start, the run goes on without it: ")
    assert (tracker.hint, service()) == ("", None)


def test_online_without_a_key_is_refused_and_never_asks(tmp_path, monkeypatch):
    master, terminal = pty.openpty()
    with os.fdopen(master), os.fdopen(terminal) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)  # where wandb would prompt
        with pytest.raises(
            UserError, match=r"tracking.mode=online needs a W&B key for .*: run `wandb login`, set WANDB_API_KEY"
        ):
            wandb(tmp_path, "online").open(INFO)
    assert service() is None


def test_online_with_a_malformed_key_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "short")
    with pytest.raises(UserError, match=r"tracking.mode=online needs a valid W&B key .*WANDB_API_KEY"):
        wandb(tmp_path, "online").open(INFO)


def test_an_unknown_mode_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"tracking.mode \(WANDB_MODE\) must be one of offline, .*got 'onlin'"):
        wandb(tmp_path, "onlin")


@pytest.mark.parametrize("tracking", [Files(), Nothing(), WandB("p", None, "disabled", "nowhere")])
def test_no_tracking_tracks_nothing(tracking, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with tracking.open(INFO) as tracker:
        tracker.log(ROWS)
        tracker.finish(SUMMARY, exit_code=0)
    assert (tracker.hint, list(tmp_path.iterdir())) == ("", [])
    assert tracking.writes_files == (not isinstance(tracking, Nothing))


@pytest.mark.parametrize("name", ["wandb", "files", "none"])
def test_the_options_build_and_wandb_is_offline_unless_the_user_says_otherwise(name, monkeypatch):
    config = OmegaConf.create({"runs_dir": "runs", "tracking": OmegaConf.load(ROOT / f"conf/tracking/{name}.yaml")})
    built = build(config.tracking, "tracking")
    if isinstance(built, WandB):
        assert (built.mode, built.directory) == ("offline", "runs")
        monkeypatch.setenv("WANDB_MODE", "online")
        assert build(config.tracking, "tracking").mode == "online"
