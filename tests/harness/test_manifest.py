import subprocess
from dataclasses import asdict, replace

import pytest
from composed import setup
from omegaconf import OmegaConf

from harness.baseline import alone, sequential
from harness.errors import UserError
from harness.interleaving import FILE, write
from harness.manifest import RunInfo, git_state, host, manifest, new_run_id, pair_id, run_name, versions
from harness.record import Record
from harness.setup import run_info

INFO = RunInfo("ab12", "real-sgd-cpu-w1-s0", "real", "wall", 1, 0, "p", "q", "g", ["t"], {"seed": 0})


METROPOLIS = "algorithm.mixing.weighting=metropolis"  # the algorithm's own file has uniform, that of a ring this one


def test_names_of_twins_differ_in_the_first_word_alone():
    assert run_name("simulated", "hogwild", "sim_numa2", 4, 0) == "sim-hogwild-numa2-w4-s0"
    assert run_name("real", "hogwild", "numa2", 4, 0) == "real-hogwild-numa2-w4-s0"


def test_names_show_what_is_not_as_the_algorithms_file_has_it():
    changed = ["algorithm.locking=atomic", "algorithm.sharing=shared", "algorithm.learning_rate=0.5"]
    run = setup("algorithm=hogwild", "hardware=sim_cpu", "hardware.num_workers=2", *changed)
    names = [run_info(each, {}, None).name for each in (run, alone(run), sequential(run))]
    said = "hogwild(learning_rate=0.5,locking=atomic)"
    assert names == [f"sim-{said}-cpu-w2-s0", f"sim-{said}-cpu-w1-s0", "sim-sgd(learning_rate=0.5)-cpu-w1-s0"]


def test_a_part_of_an_algorithm_is_named_by_its_option():
    def name(*overrides):
        return run_info(setup(*overrides, "hardware=sim_numa2", "problem=least_squares"), {}, None).name

    assert name("algorithm=sgd") == "sim-sgd-numa2-w1-s0"
    assert name("algorithm=sgd", "algorithm/optimizer=adam") == "sim-sgd(optimizer=adam)-numa2-w1-s0"
    chosen = name("algorithm=all_reduce", "algorithm/optimizer=momentum", "algorithm.optimizer.momentum=0.8")
    assert chosen == "sim-all_reduce(optimizer=momentum,optimizer.momentum=0.8)-numa2-w4-s0"
    served = name("algorithm=federated", "algorithm/optimizer@algorithm.server=adam", "data=partitioned")
    assert served == "sim-federated(server=adam)-numa2-w4-s0"
    pushed = [name("algorithm=stochastic_gradient_push", "algorithm/mixing=ring", *more) for more in ([], [METROPOLIS])]
    said = "sim-stochastic_gradient_push(mixing=ring"
    assert pushed == [f"{said})-numa2-w4-s0", f"{said},mixing.weighting=metropolis)-numa2-w4-s0"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("algorithm.learning_rate=0.5", r"algorithm.learning_rate was 0.1, is 0.5"),
        ("algorithm/optimizer=momentum", r"algorithm.optimizer.momentum was None, is 0.9"),
        ("hardware.num_workers=3", "hardware.num_workers was 2, is 3"),
        ("seed=1", "seed was 0, is 1"),
        ("budget.epochs=4", "budget.epochs was 2.0, is 4.0"),
    ],
)
def test_a_replay_of_another_run_says_what_differs(change, said, tmp_path):
    given = ["algorithm=gossip", "hardware=sim_ethernet", "problem=digits_mlp", "algorithm.learning_rate=0.1"]
    given += ["hardware.num_workers=2", "budget.epochs=2"]
    first = setup(*given)
    info = run_info(first, {}, None)
    settings = {group: asdict(getattr(first, group)) for group in ("algorithm", "problem", "data")}
    settings |= {"seed": 0, "budget": asdict(first.settings.budget)}
    Record(tmp_path).start(manifest(replace(info, config=settings), []))
    write(tmp_path / FILE, interleavings=[])
    setup(*given, "budget.observations=7", f"replay={tmp_path}")
    with pytest.raises(UserError, match=rf"replay=.*workers, seed and budget: {said}"):
        setup(*given, change, f"replay={tmp_path}")


@pytest.mark.parametrize(
    "change", [{"algorithm": {"a": 2}}, {"problem": {}}, {"data": "x"}, {"num_workers": 3}, {"seed": 1}]
)
def test_everything_but_the_hardware_decides_the_pair(change):
    given = {"algorithm": {"a": 1}, "problem": {"p": 1}, "data": {"d": 1}, "num_workers": 2, "seed": 0}
    assert pair_id(**given) == pair_id(**given)
    assert pair_id(**given) != pair_id(**{**given, **change})


def test_run_ids_do_not_repeat():
    ids = {new_run_id() for _ in range(1000)}
    assert len(ids) == 1000
    assert all(type(OmegaConf.create(f"baseline: {each}").baseline) is str for each in ids)


def test_the_manifest_says_who_and_where():
    found = manifest(INFO, notices=["2 workers share 1 core"])
    assert (found["id"], found["clock"], found["config"]) == ("ab12", "wall", {"seed": 0})
    assert found["notices"] == ["2 workers share 1 core"]
    assert found["created"].endswith("+00:00")
    assert {"python", "torch", "numpy", "numba", "simpy", "wandb"} <= set(versions())
    assert {"name", "cpu", "cores", "cores_usable"} <= set(host())
    assert manifest(replace(INFO, group=None), [])["group"] is None


def git(folder, *arguments):
    subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", folder, *arguments], check=True)


def test_git_state_is_that_of_the_repository_that_tracks_the_file(tmp_path):
    file = tmp_path / "code.py"
    file.write_text("1")
    assert git_state(file) == {}
    git(tmp_path, "init", "-q")
    git(tmp_path, "commit", "-q", "--allow-empty", "-m", "somebody else's")
    assert git_state(file) == {}
    git(tmp_path, "add", "code.py")
    git(tmp_path, "commit", "-q", "-m", "code")
    clean = git_state(file)["git"]
    assert len(clean["commit"]) == 40
    assert clean["dirty"] is False
    file.write_text("2")
    assert git_state(file)["git"] == {"commit": clean["commit"], "dirty": True}


def test_without_git_there_is_no_git_state(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "git" not in manifest(INFO, [])
