"""Counting what is lost, for real and simulated."""

import json
import subprocess
import sys

import pytest

from experiments.lost_updates import main
from harness.errors import UserError

FEW = ["problem.synthetic_samples=2000", "problem.synthetic_features=100", "problem.synthetic_nonzeros_per_sample=10"]


def counted(capsys, *overrides):
    main([*FEW, "hardware.num_workers=2", "budget.epochs=2", *overrides])
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


@pytest.mark.parametrize("mistake", ["hardware=nowhere", "hardware.num_workers=0", "algorithm.locking=some"])
def test_a_mistake_is_one_sentence(mistake):
    command = [sys.executable, "-m", "experiments.lost_updates", mistake]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["algorithm=sgd"], "such as algorithm=hogwild"),
        (["algorithm.batch_size=2"], "such as algorithm=hogwild"),
        (["algorithm.precision=int8"], "algorithm.precision must be full"),
        (["algorithm.sharing=hot_replica", "algorithm.merge=average"], "algorithm.merge must not be average"),
        (["budget.epochs=1.5"], "budget.epochs must be whole"),
        (["data=replicated"], "data must be partitioned"),
        (["budget.epochs=100000"], "problem.dtype=float64"),
    ],
)
def test_what_counters_cannot_tell_is_refused(overrides, words):
    with pytest.raises(UserError, match=words):
        main([*FEW, "hardware=cpu", "hardware.num_workers=1", *overrides])
