"""What a run is compared with."""

import os
from types import SimpleNamespace

import pytest
from composed import node, setup

from algorithms.common.optimizers import PlainSGD
from algorithms.sgd import SGD
from harness.baseline import CONSTANT, find_references, in_sequence, run_key, sequential
from harness.build import build

SMALL = ["hardware=sim_numa2", "problem=least_squares", "tracking=none"]
SMALL += ["problem.samples=1000", "problem.features=10"]


def test_baseline_is_the_native_kernel_where_there_is_one():
    run = setup("algorithm=all_reduce", *SMALL)
    assert sequential(run).algorithm == SGD(run.problem.learning_rate, 1, 1, PlainSGD(0.0), CONSTANT)
    assert sequential(run).num_workers == 1


def test_the_baselines_schedule_is_that_of_its_file():
    assert build(node("algorithm/schedule/constant"), "algorithm.schedule") == CONSTANT


def test_an_algorithm_that_is_its_own_baseline_has_nothing_parallel_in_it():
    chosen = ["hardware=cpu", "hardware.num_workers=1", "hardware.intra_op_threads=2", "problem=least_squares"]
    run = setup("algorithm=ensemble", *chosen, "tracking=none")
    assert in_sequence(run).hardware == sequential(run).hardware and in_sequence(run).hardware.intra_op_threads == 1
    assert in_sequence(run).algorithm == run.algorithm


def test_baseline_has_the_runs_own_batches_where_there_is_none():
    run = setup("algorithm=all_reduce", *SMALL[:1], "problem=digits_mlp", "algorithm.batch_size=8")
    assert sequential(run).algorithm == SGD(run.problem.minibatch_learning_rate, 8, 1, PlainSGD(0.0), CONSTANT)


def test_baseline_has_the_runs_own_step_where_both_take_single_samples():
    run = setup("algorithm=hogwild", *SMALL, "algorithm.learning_rate=0.003")
    assert sequential(run).algorithm == SGD(0.003, 1, 1, PlainSGD(0.0), CONSTANT)


@pytest.mark.parametrize(
    "change",
    [
        "seed=1",
        "budget.epochs=2",
        "problem.noise=0.2",
        "data=replicated",
        "hardware.network.latency_s=1",
        "algorithm=sgd",
    ],
)
def test_what_decides_a_result_decides_the_key(change):
    assert run_key(setup("algorithm=hogwild", *SMALL)) != run_key(setup("algorithm=hogwild", *SMALL, change))


@pytest.mark.parametrize(("baseline", "runs"), [("auto", 0), ("fresh", 2)])
def test_fresh_runs_again_what_auto_finds(monkeypatch, baseline, runs):
    ran = []
    monkeypatch.setattr("harness.baseline._run", lambda wanted, index, progress: ran.append(wanted.num_workers))
    monkeypatch.setattr("harness.baseline._reference", lambda record: record)
    found = SimpleNamespace(find=lambda key: "a record")
    find_references(setup("algorithm=hogwild", *SMALL, f"baseline={baseline}"), found, None)
    assert ran == [1] * runs


def test_the_target_does_not():
    assert run_key(setup("algorithm=sgd", *SMALL)) == run_key(setup("algorithm=sgd", *SMALL, "target.loss=0.5"))


def test_a_changed_data_file_does(tmp_path):
    file = tmp_path / "rows.svm"
    file.write_text("1 1:1\n-1 2:1\n" * 10)
    overrides = ["algorithm=sgd", "hardware=sim_numa2", "problem=svm", f"problem.path={file}", "tracking=none"]
    before = run_key(setup(*overrides))
    os.utime(file, (1, 1))
    assert run_key(setup(*overrides)) != before
