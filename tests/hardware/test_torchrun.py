"""hardware=torchrun: ranks that a launcher has started, by torchrun itself, as Slurm would, and on two hosts."""

import os
import re

import numpy as np
import pytest
import torch
from commands import ROOT
from composed import execution, setup
from small_runs import settings
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from worlds import by_hand, close_store, free_port, parameters, rows, summary, together, torchrun, world

from hardware.real import card
from hardware.real.breakdown import Ledger
from hardware.real.card import Card
from hardware.real.topology import Core, Topology
from hardware.real.world import find_world, joined_world
from hardware.real.world_clock import WorldClock
from harness.cli import say
from harness.errors import UserError

MLP = ["problem=digits_mlp", "problem.dtype=float64", "budget.epochs=0.2", "budget.observations=3"]
TWO = ["algorithm=all_reduce", "algorithm.batch_size=12", "algorithm.learning_rate=0.1", *MLP]
FILES = ["hardware=torchrun", "tracking=files"]


def in_processes(*overrides):
    return execution(*overrides, "tracking=none", "hardware=cpu", "hardware.num_workers=2")


def documented(launcher):
    """The arguments of run.py, as docs/architecture.md would have it started by a launcher."""
    (arguments,) = re.findall(rf"^{launcher} run\.py (.*)$", (ROOT / "docs/architecture.md").read_text(), re.M)
    return arguments.split()


@pytest.fixture(scope="module")
def losses(request):
    """What hardware=cpu comes to with the settings TWO."""
    from harness.trial import evaluate

    composed = setup(*TWO, "tracking=none", "hardware=cpu", "hardware.num_workers=2")
    return [each["train/loss"] for each in evaluate(composed.problem, 0, in_processes(*TWO).observations)]


def test_a_world_has_the_weights_of_processes():
    with world(2):
        ranks = execution(*TWO, "tracking=none", "hardware=torchrun")
    assert ranks.failure is None and [each.rank for each in ranks.workers] == [0, 1]
    # the order of sums may differ between a ring's directions; measured differences are 0
    torch.testing.assert_close(parameters(ranks), parameters(in_processes(*TWO)), rtol=1e-12, atol=1e-13)
    assert ranks.facts["hosts"] == [{"name": os.uname().nodename, "ranks": [0, 1]}]
    assert ranks.facts["clocks"] == []  # both ranks read this kernel's


def test_clocks_that_differ_are_compared(monkeypatch, tmp_path):
    """Rank 0 is made to believe that the other one's is another, where it is the same: the truth is 0."""
    monkeypatch.setattr(card, "TIME_NAMESPACE", tmp_path)
    with world(2):
        done = execution(*TWO, "tracking=none", "hardware=torchrun")
    assert done.failure is None and [reading["rank"] for reading in done.facts["clocks"]] == [1, 1]
    for reading in done.facts["clocks"]:
        assert abs(reading["offset_s"]) <= reading["wrong_by_at_most_s"]


def test_a_ledger_moves_to_the_clock_of_rank_0():
    clock = WorldClock(None, 1, ["here", "there"])
    clock.readings = [(10.0, 100.0, 0.0), (20.0, 101.0, 0.0)]  # slower by a tenth
    table = np.array([[10.0, np.inf, np.nan, 15.0]])
    ledger = Ledger(20.0, 1.0, [(12.0, 14.0)], {"all": table}, np.empty((0, 4)), np.empty((0, 2)), 0, None)
    moved = clock.moved(ledger)
    assert (moved.finish_s, moved.pauses, moved.busy_s) == (121.0, [(112.2, 114.4)], 1.0)
    np.testing.assert_array_equal(moved.collectives["all"], [[110.0, np.inf, np.nan, 115.5]])


def test_ranks_of_a_host_are_dealt_its_cores_unless_the_launcher_has_done_so():
    cores = [Core((cpu,), node=0, socket=0) for cpu in range(4)]

    def seated(*allowed):
        ranks = [Card("host", 1, "machine", "clock", "1.1.1.1", Topology(each), None, None, None) for each in allowed]
        return card.seats(ranks, 1, "spread")

    assert seated(tuple(cores), tuple(cores)) == [(0,), (1,)]
    assert seated(tuple(cores[:2]), tuple(cores[2:])) == [(0, 1), (2, 3)]


def test_a_world_of_one_works():
    with world(1):
        alone = execution(*MLP, "algorithm=sgd", "algorithm.batch_size=24", "tracking=none", "hardware=torchrun")
    assert alone.failure is None and alone.run_s > 0


def test_servers_are_ranks_of_the_world():
    with world(3):
        composed = setup(*MLP, "algorithm=parameter_server", "tracking=none", "hardware=torchrun")
        done = composed.machine.execute(composed.program(), lambda samples: None)
    assert done.failure is None and composed.num_workers == 2 and len(done.workers) == 3
    assert done.observations[-1].samples >= composed.program().budget_samples


def test_torchrun_starts_two_ranks_and_rank_0_alone_speaks(tmp_path, losses):
    done = torchrun(2, *documented("torchrun --nproc-per-node 2"), *TWO, f"runs_dir={tmp_path}", "tracking=wandb")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n  speedup ") == 1
    assert len(list(tmp_path.glob("*/*/.hydra"))) == 1 and len(list(tmp_path.glob("wandb/offline-run-*"))) == 1
    # rtol as of the weights, through losses of order 1
    torch.testing.assert_close([row["train/loss"] for row in rows(tmp_path)][1:], losses, rtol=1e-12, atol=0)
    assert summary(tmp_path)["run/num_workers"] == 2 and "speedup/throughput" in summary(tmp_path)


def slurm(rank, ranks, port):
    numbers = {"PROCID": rank, "LOCALID": rank, "NTASKS": ranks, "JOB_ID": 7, "NODELIST": "localhost"}
    return {"MASTER_PORT": str(port), **{f"SLURM_{name}": str(number) for name, number in numbers.items()}}


def test_slurm_starts_two_ranks(tmp_path, losses):
    port = free_port()
    told = [*documented("srun -n 8 --kill-on-bad-exit python"), *TWO, "tracking=files", "baseline=none"]
    done = together([slurm(rank, 2, port) for rank in range(2)], *told, f"runs_dir={tmp_path}")
    assert [each.returncode for each in done] == [0, 0], done
    assert (done[1].stdout, done[1].stderr) == ("", "")
    torch.testing.assert_close([row["train/loss"] for row in rows(tmp_path)][1:], losses, rtol=1e-12, atol=0)


def test_tasks_of_slurm_that_ask_for_other_hardware_are_runs_of_their_own():
    task = slurm(1, 2, 1)
    assert joined_world(task, ["hardware=cpu"]) is None
    assert joined_world(task, ["hardware=torchrun"]) == find_world(task)
    assert joined_world(by_hand(2, 1), ["hardware=cpu"]) is not None


def test_a_step_of_slurm_may_be_smaller_than_its_job():
    job = {**slurm(1, 8, 1), "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NODELIST": "b[07-08]", "SLURM_STEP_ID": "3"}
    del job["MASTER_PORT"]
    found = find_world(job)
    assert (found.size, found.address, found.port) == (2, "b07", 20_703)


MESH = [
    "algorithm=parallel_3d",
    *("algorithm.mesh.data=1", "algorithm.mesh.tensor=2", "algorithm.mesh.pipeline=2", "algorithm.micro_batches=2"),
]


@pytest.mark.parametrize(
    ("ranks", "arguments", "sentence"),
    [
        (2, ["algorithm=sgd"], r"torchrun has started 2 ranks, and this run has 1, servers included: .*per-node 1 run"),
        (1, ["algorithm=parameter_server"], r"torchrun has started 1 rank, and this run has 2, servers included"),
        (
            2,
            [*MESH, "hardware.num_workers=4"],
            r"torchrun has started 2 ranks, and this run has 4",
        ),
        (
            2,
            MESH,
            r"has started 2 ranks: algorithm.mesh must multiply.*: start 4 ranks by `torchrun --nproc-per-node 4",
        ),
        (2, ["algorithm=hogwild"], r"needs memory that all workers share, which hardware=torchrun does not have"),
        (1, ["algorithm=all_reduce", "hardware.backend=nccl"], r"rank 0 on host .* has no CUDA device of its own"),
        (
            1,
            ["algorithm=all_reduce", "hardware.backend=mpi"],
            r"hardware\.backend must be one of gloo, nccl, got",
        ),
    ],
)
def test_a_world_that_does_not_fit_is_refused(ranks, arguments, sentence):
    with world(ranks), pytest.raises(UserError, match=sentence):
        setup(*arguments, "problem=digits_mlp", "tracking=none", "hardware=torchrun")


def test_who_was_not_started_by_a_launcher_hears_how():
    with pytest.raises(UserError, match=r"none has: start it by `torchrun --nproc-per-node 2 run\.py"):
        setup("algorithm=all_reduce", "problem=digits_mlp", "tracking=none", "hardware=torchrun")


def test_a_rank_that_does_not_come_is_missed(monkeypatch):
    for name, value in by_hand(2, free_port()).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=r"1 of the 2 ranks that torchrun promised have come within .*=0\.1 .*: 1\)"):
        setup(*TWO, "tracking=none", "hardware=torchrun", "hardware.timeout_s=0.1")
    close_store()


def failing(tmp_path, *arguments, **options):
    """Exit status and words of both ranks of a world that does not end well, started without torchrun."""
    port = free_port()
    environments = [by_hand(2, port, rank) for rank in range(2)]
    return together(environments, *arguments, f"runs_dir={tmp_path}", "baseline=none", **options)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        pytest.param(
            ["-m", "seed=0,1"],
            "error: -m runs several jobs, and torchrun starts ranks for one: start it once for each\n",
            marks=pytest.mark.slow,
        ),
        (["algorithm.learning_rte=1"], r"error: algorithm.learning_rte is not a setting: .*\n"),
    ],
)
def test_a_mistake_is_said_once_and_ends_all(tmp_path, arguments, sentence):
    first, second = failing(tmp_path, *TWO, *FILES, *arguments)
    assert first.returncode == second.returncode == 1
    assert re.fullmatch(sentence, first.stderr) and (second.stdout, second.stderr) == ("", "")


def test_a_loss_that_is_not_finite_is_said_once(tmp_path):
    first, second = failing(tmp_path, *TWO, *FILES, "algorithm.learning_rate=1e200")
    assert first.returncode == second.returncode == 1
    assert first.stderr.count("error: ") == 1 and "lower algorithm.learning_rate" in first.stderr
    assert (second.stdout, second.stderr) == ("", "")
    assert summary(tmp_path)["run/status"] == "diverged" and len(rows(tmp_path)) > 1


def test_torchrun_repeats_a_mistake_last(monkeypatch, tmp_path):
    """Torch's own summary closes with what it finds in this file."""
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    say("seed must be >= 0, got -1")
    failure = ProcessFailure(local_rank=0, pid=1, exitcode=1, error_file=str(tmp_path / "error.json"))
    ending = str(ChildFailedError("run.py", {0: failure})).splitlines()[-2:]
    assert ending[0] == "  traceback : error: seed must be >= 0, got -1" and set(ending[1]) == {"="}


def test_hardware_that_starts_workers_itself_is_refused_under_torchrun(monkeypatch):
    for name, value in by_hand(2, 1).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=r"torchrun has started 2 .*: use hardware=torchrun, or start"):
        setup("algorithm=all_reduce", "problem=digits_mlp", "tracking=none", "hardware=cpu")


@pytest.mark.gpu
def test_a_rank_on_a_device_equals_the_cpu():
    """To rtol 1e-12: sums are in another order, exponentials and logarithms another library's."""
    with world(1):
        rank = execution(*TWO, "tracking=none", "hardware=torchrun", "hardware.backend=nccl")
    host = execution(*TWO, "tracking=none", "hardware=cpu", "hardware.num_workers=1")
    torch.testing.assert_close(parameters(rank), parameters(host), rtol=1e-12, atol=1e-12)
    assert rank.facts["devices"][0]["workers"] == [0] and rank.workers[0].device_peak_bytes > 0


def test_a_killed_rank_ends_all_and_what_was_observed_stays(tmp_path):
    """torchrun ends the others, by SIGTERM; who has lost its connection before that says so."""
    victim = ["problem._target_=dying.Dying", "+problem.victim=1", f"+problem.pid_file={tmp_path}/pid"]
    chosen = ["--config-dir", str(ROOT / "tests"), "algorithm=all_reduce", *settings("all_reduce"), *victim]
    much = ["budget.epochs=2000", "budget.observations=2000", "baseline=none", f"runs_dir={tmp_path}"]
    done = torchrun(2, *chosen, *FILES, *much)
    assert done.returncode == 1
    (said,) = re.findall(r"^(?:error|interrupted).*", done.stderr, re.M)
    assert re.match(r"error: worker 1 \(pid \d+\) was killed, or ended in mid-run|interrupted in mid-run", said)
    assert summary(tmp_path)["run/status"] in ("failed", "interrupted") and len(rows(tmp_path)) > 20


def test_an_interrupt_ends_all_and_what_was_observed_stays(tmp_path):
    """As a launcher hands it on: to every rank."""
    (tmp_path / "interrupted.py").write_text(INTERRUPTED)
    chosen = ["--config-dir", str(tmp_path), "algorithm=all_reduce", *settings("all_reduce"), *FILES]
    chosen += ["algorithm._target_=interrupted.Interrupted", "budget.epochs=2000", "budget.observations=2000"]
    first, second = failing(tmp_path, *chosen)
    assert (first.returncode, second.returncode) == (130, 130)
    assert first.stderr.startswith("interrupted in mid-run: what was observed up to epoch ")
    assert (second.stdout, second.stderr) == ("", "")
    assert summary(tmp_path)["run/status"] == "interrupted" and len(rows(tmp_path)) > 50
    assert summary(tmp_path)["toy/rank_hist"] == [1, 1] and summary(tmp_path)["toy/said"] == "by rank 1"


INTERRUPTED = """
import os
import signal

import torch.distributed as dist

from algorithms.all_reduce import AllReduce


class Interrupted(AllReduce):
    def train(self, worker, problem):
        observe, pids = worker.observe, [None] * worker.num_workers
        worker.measure("toy/rank", worker.rank)
        if worker.rank == 1:
            worker.conclude("toy/said", "by rank 1")
        worker.publish()
        dist.all_gather_object(pids, os.getpid())

        def observing(model, samples, updates=1):
            observe(model, samples, updates)
            steps[0] += 1
            if worker.rank == 0 and steps[0] == 500:
                for pid in pids:
                    os.kill(pid, signal.SIGINT)

        steps, worker.observe = [0], observing
        super().train(worker, problem)
"""
