"""The commands of a first day, as a user types them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from commands import ROOT, command
from composed import options

from algorithms.shared_memory.layout import LAYOUTS
from algorithms.shared_memory.precision import PRECISIONS
from algorithms.shared_memory.replicas import MERGES, SHARING
from harness.data import ORDERS
from harness.kernels.access import LOCKING

QUICK = ["experiment=smallest", "problem.samples=1000", "problem.features=10"]
BUGGY_YAML = """# Fails on rank 1.
_target_: buggy.Buggy
learning_rate: 0.1
batch_size: 4
"""
BUGGY = """
from dataclasses import dataclass
from algorithms.base import Algorithm

@dataclass(frozen=True)
class Buggy(Algorithm):
    synchronous = False

    def train(self, worker, problem):
        if worker.rank == 1:
            raise KeyError("oops")
"""


def records(runs, pattern="**/summary.json"):
    return [json.loads(path.read_text()) for path in sorted(runs.glob(pattern))]


@pytest.fixture(scope="module")
def help_text():
    return command("--help").stdout


@pytest.mark.parametrize("group", ["algorithm", "hardware", "problem", "data", "tracking"])
def test_help_lists_every_option_with_a_line(help_text, group):
    for option in options(group):
        (line,) = [line for line in help_text.splitlines() if line.strip().startswith(f"{group}={option} ")]
        assert len(line.split()) > 3


@pytest.mark.parametrize(
    ("setting", "values"),
    [
        ("algorithm.sharing=shared", SHARING),
        ("algorithm.merge=delta_sum", MERGES),
        ("algorithm.locking=none", LOCKING),
        ("algorithm.layout=as_given", LAYOUTS),
        ("algorithm.precision=full", PRECISIONS),
        ("data.order=index", ORDERS),
    ],
)
def test_help_has_what_a_shared_model_can_be_asked_for(help_text, setting, values):
    (line,) = [line for line in help_text.splitlines() if line.startswith(f"  {setting} ")]
    assert [value for value in values if value not in line] == []


def test_help_gives_three_examples_and_imports_no_torch(help_text):
    assert help_text.count("  python run.py") == 3
    code = "import sys, runpy; sys.argv = ['run.py', '--help']\n"
    code += "try: runpy.run_path('run.py', run_name='__main__')\nfinally:"
    checked = subprocess.run(
        [sys.executable, "-c", f"{code} assert 'torch' not in sys.modules"], cwd=ROOT, capture_output=True
    )
    assert checked.returncode == 0, checked.stderr


def test_a_run_prints_its_summary_and_leaves_its_record(tmp_path):
    outcome = command(*QUICK, "algorithm=hogwild", "hardware=cpu", runs_dir=tmp_path)
    assert outcome.returncode == 0, outcome.stderr
    for word in ("target", "hardware", "speedup", "alone", "files"):
        assert word in outcome.stdout
    (summary,) = [
        s for s in records(tmp_path) if s["run/name"].startswith("real-hogwild") and "speedup/throughput" in s
    ]
    assert summary["run/status"] == "finished"


def test_the_second_run_finds_its_baselines(tmp_path):
    arguments = [*QUICK, "algorithm=hogwild", "hardware=sim_numa2"]
    for _ in range(2):
        assert command(*arguments, runs_dir=tmp_path).returncode == 0
    baselines = records(tmp_path, "baselines/*/summary.json")
    assert sorted(b["run/name"] for b in baselines) == ["sim-hogwild-numa2-w1-s0", "sim-sgd-numa2-w1-s0"]
    runs = [s for s in records(tmp_path) if "speedup/baseline_id" in s]
    assert len(runs) == 2 and len({s["speedup/baseline_id"] for s in runs}) == 1


def test_a_run_compares_with_the_baseline_it_is_given(tmp_path):
    assert command(*QUICK, "algorithm=sgd", "hardware=sim_numa2", runs_dir=tmp_path).returncode == 0
    (sgd,) = records(tmp_path)
    given = command(*QUICK, "algorithm=hogwild", "hardware=sim_numa2", f"baseline={sgd['run/id']}", runs_dir=tmp_path)
    assert given.returncode == 0, given.stderr
    (hogwild,) = [s for s in records(tmp_path) if s["run/name"] == "sim-hogwild-numa2-w4-s0"]
    assert hogwild["speedup/baseline_id"] == sgd["run/id"]


def test_a_failing_job_of_a_multirun_is_recorded_and_the_others_go_on(tmp_path):
    outcome = command(
        *QUICK, "-m", "algorithm=hogwild,sgd,all_reduce", "hardware=sim_ethernet", "baseline=none", runs_dir=tmp_path
    )
    assert outcome.returncode != 0
    assert "2 jobs finished, 1 failed" in outcome.stdout
    assert [s["run/status"] for s in records(tmp_path, "sweeps/*/*/summary.json")] == ["failed", "finished", "finished"]


def test_a_baseline_of_another_problem_is_refused(tmp_path):
    assert command(*QUICK, "algorithm=sgd", "hardware=sim_numa2", runs_dir=tmp_path).returncode == 0
    (sgd,) = records(tmp_path)
    given = ["algorithm=hogwild", f"baseline={sgd['run/id']}", "seed=1"]
    other_seed = command(*QUICK, *given, "hardware=sim_numa2", runs_dir=tmp_path)
    assert "must name a run of the same problem, data and seed" in other_seed.stderr
    other_clock = command(*QUICK, *given, "hardware=cpu", runs_dir=tmp_path)
    assert "must name a real run: use baseline=auto, got 'simulated'" in other_clock.stderr


def test_a_limit_of_file_sizes_is_one_sentence_and_the_run_has_failed(tmp_path):
    limit = "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)); sys.argv = sys.argv[1:]"
    start = f"sys.path.insert(0, {str(ROOT)!r}); runpy.run_path(sys.argv[0], run_name='__main__')"
    many = [*QUICK, "budget.observations=100", "baseline=none", f"runs_dir={tmp_path}"]
    run = [sys.executable, "-c", f"import resource, runpy, sys; {limit}; {start}", str(ROOT / "run.py"), *many]
    done = subprocess.run(run, capture_output=True, text=True, timeout=120)
    (summary,) = records(tmp_path)
    (history,) = tmp_path.rglob("history.jsonl")
    said = (
        f"{history} cannot be written (File too large): raise the limit of file sizes (`ulimit -f`), or choose another"
    )
    assert done.returncode == 1 and done.stderr == f"error: {said} runs_dir\n"
    assert (summary["run/status"], summary["run/error"]) == ("failed", f"{said} runs_dir")
    assert len(history.read_text().splitlines()) > 1 and history.read_text().endswith("\n")


def test_a_limit_that_not_even_the_settings_fit_in_is_one_sentence(tmp_path):
    limit = "resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024)); sys.argv = sys.argv[1:]"
    start = f"import resource, runpy, sys; {limit}; sys.path.insert(0, {str(ROOT)!r})"
    code = f"{start}; runpy.run_path(sys.argv[0], run_name='__main__')"
    run = [sys.executable, "-c", code, str(ROOT / "run.py"), *QUICK, f"runs_dir={tmp_path}"]
    done = subprocess.run(run, capture_output=True, text=True, timeout=120)
    said = "the folder of the run cannot be written (File too large): raise the limit of file sizes (`ulimit -f`), or"
    assert done.returncode == 1 and done.stderr == f"error: {said} choose another runs_dir\n"


def test_virtual_sockets_are_said_marked_and_refused_when_strict(tmp_path):
    if len(list(Path("/sys/devices/system/node").glob("node[0-9]*"))) > 1:
        pytest.skip("needs a machine with 1 NUMA node")
    arguments = [*QUICK, "algorithm=hogwild", "hardware=numa2", "baseline=none"]
    outcome = command(*arguments, runs_dir=tmp_path)
    assert "virtual sockets" in outcome.stdout
    (summary,) = records(tmp_path)
    (manifest,) = records(tmp_path, "**/manifest.json")
    assert "virtual-sockets" in summary["run/tags"] and "virtual-sockets" in manifest["tags"]
    strict = command(*arguments, "hardware.strict=true", runs_dir=tmp_path)
    assert strict.returncode != 0 and "virtual sockets: hardware.strict=true refuses this" in strict.stderr


def test_a_users_bug_is_shown_and_recorded(tmp_path):
    (tmp_path / "algorithm").mkdir()
    (tmp_path / "algorithm" / "buggy.yaml").write_text(BUGGY_YAML)
    (tmp_path / "buggy.py").write_text(BUGGY)
    own = ["--config-dir", str(tmp_path), "algorithm=buggy", "baseline=none"]
    for hardware in ("cpu", "sim_ethernet"):
        runs = tmp_path / hardware
        outcome = command(*own, *QUICK, f"hardware={hardware}", runs_dir=runs)
        assert outcome.returncode == 1
        assert "KeyError: 'oops'" in outcome.stderr and "buggy.py" in outcome.stderr
        (summary,) = records(runs)
        assert summary["run/status"] == "failed" and "oops" in summary["run/error"]


def test_sixty_four_simulated_ranks(tmp_path):
    outcome = command(
        *QUICK,
        "algorithm=all_reduce",
        "hardware=sim_ethernet",
        "hardware.num_workers=64",
        "baseline=none",
        runs_dir=tmp_path,
    )
    assert outcome.returncode == 0, outcome.stderr
    (summary,) = records(tmp_path)
    assert summary["run/num_workers"] == 64 and summary["perf/comm_frac"] > 0


def test_a_dead_rank_is_one_sentence(tmp_path):
    cluster = ["algorithm=all_reduce", "hardware=sim_ethernet", "hardware.num_workers=3", "hardware.deaths={1: 0.001}"]
    outcome = command(*QUICK, *cluster, "baseline=none", runs_dir=tmp_path)
    assert outcome.returncode == 1
    (line,) = outcome.stderr.splitlines()
    assert line.startswith("error: rank ") and " failed: rank 1 died at 0.001 s; it lost the connection at 0.00" in line
    (summary,) = records(tmp_path)
    assert summary["run/status"] == "failed" and summary["run/error"] in line
    assert list(tmp_path.rglob("timeline.pt.trace.json.gz"))


def test_tracking_none_leaves_no_record(tmp_path):
    outcome = command(*QUICK, "algorithm=hogwild", "hardware=sim_numa2", "tracking=none", runs_dir=tmp_path)
    assert outcome.returncode == 0 and "speedup" in outcome.stdout
    assert not records(tmp_path) and not (tmp_path / "index.jsonl").exists()


def test_virtual_time_is_called_virtual(tmp_path):
    outcome = command(*QUICK, "algorithm=sgd", "hardware=sim_numa2", "tracking=none", runs_dir=tmp_path)
    (target,) = [line for line in outcome.stdout.splitlines() if line.strip().startswith("hardware")]
    assert "virtual" in target


def test_a_reader_that_has_seen_enough_of_the_help_is_no_error():
    piped = f"{sys.executable} run.py --help | head -1"
    done = subprocess.run(piped, shell=True, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.startswith("twinclock: ") and done.stderr == ""
