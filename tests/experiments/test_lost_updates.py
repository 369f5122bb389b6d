"""Counting what is lost, for real and simulated."""

import json
import subprocess
import sys

import pytest

from experiments.lost_updates.__main__ import main

MINE = """
from harness.problems.logistic_regression import LogisticRegression


class Mine(LogisticRegression):
    pass
"""
FEW = ["problem.synthetic_samples=2000", "problem.synthetic_features=100", "problem.synthetic_nonzeros_per_sample=10"]


def counted(capsys, *overrides):
    assert main([*FEW, "hardware.num_workers=2", "budget.epochs=2", *overrides]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_simulated_run_knows_what_it_loses(capsys):
    line = counted(capsys, "hardware=sim_numa2")
    assert 0 < line["lost"] < line["additions"]
    assert line["lost_frac"] == line["async/lost_frac"] == line["lost"] / line["additions"]


def test_a_real_run_is_counted(capsys):
    line = counted(capsys, "hardware=cpu")
    assert (line["hardware"], line["workers"], line["locking"]) == ("cpu", 2, "none")
    assert 0 <= line["lost"] < line["additions"] and line["lost_frac"] == line["lost"] / line["additions"]
    assert "async/lost_frac" not in line


@pytest.mark.parametrize(
    "lossless", ["algorithm.locking=atomic", "algorithm.locking=round_robin", "algorithm.sharing=replica_per_worker"]
)
def test_a_real_run_that_can_lose_nothing_says_so_and_loses_nothing(capsys, lossless):
    line = counted(capsys, "hardware=cpu", lossless)
    assert line["lost"] == 0 and line["async/lost_frac"] == 0.0


def test_help_waits_for_nothing_heavy():
    without = "import sys; sys.modules.update(torch=None, numba=None)"
    program = f"{without}; from experiments.lost_updates.__main__ import main; main(['--help'])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "--config-dir" in done.stdout and "key=value" in done.stdout


def test_groups_of_the_user_s_own_are_found(capsys, tmp_path):
    (tmp_path / "problem").mkdir()
    yaml = "defaults: [logistic_regression]\n_target_: mine_to_count.Mine\n"
    (tmp_path / "problem/mine.yaml").write_text(yaml)
    (tmp_path / "mine_to_count.py").write_text(MINE)
    found = counted(capsys, "hardware=sim_cpu", "problem=mine", "--config-dir", str(tmp_path))
    assert found["additions"] > 0


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        (["hardware=nowhere"], "hardware=nowhere is unknown: use one of"),
        (["hardware.num_workers=0"], "hardware.num_workers must be"),
        (["algorithm.locking=some"], "algorithm.locking must be"),
        (["algorithm.lockng=none"], "algorithm.lockng is not a setting: did you mean locking?"),
        (["budget.epochs"], "cannot read the override 'budget.epochs'"),
        (["--config-dir", "/nowhere"], "--config-dir must be a folder, got '/nowhere'"),
    ],
)
def test_a_mistake_is_one_sentence(capsys, mistake, words):
    assert main(mistake) == 1
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith(f"error: {words}") and said.err.count("\n") == 1


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["algorithm=sgd"], "such as algorithm=hogwild"),
        (["algorithm=svrg"], "algorithm must be hogwild to count: others run kernels of their own, got 'svrg'"),
        (["algorithm.batch_size=2"], "such as algorithm=hogwild"),
        (["algorithm.precision=int8"], "algorithm.precision must be full"),
        (["algorithm.sharing=hot_replica", "algorithm.merge=average"], "algorithm.merge must not be average"),
        (["budget.epochs=1.5"], "budget.epochs must be whole"),
        (["data=replicated"], "data must be partitioned"),
        (["budget.epochs=100000"], "problem.dtype=float64"),
    ],
)
def test_what_counters_cannot_tell_is_refused(capsys, overrides, words):
    assert main([*FEW, "hardware=cpu", "hardware.num_workers=1", *overrides]) == 1
    assert words in capsys.readouterr().err
