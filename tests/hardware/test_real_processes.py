"""Workers as processes: what they compute, how they end, and that nothing stays."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch
from leftovers import shared_memory

from harness.errors import Diverged, UserError, WorkerFailed
from tests.hardware.toys import (
    Averaging,
    Counts,
    Endless,
    Everything,
    HelperRaises,
    KillsRankOne,
    LateRankOne,
    Lost,
    RaisesInRankOne,
    ReportsCPUs,
    Silent,
    SlowToCompile,
    Wild,
    WildHelped,
    WildLingering,
    WildOdd,
    Wrapped,
    machine,
    no_progress,
    program,
)


def run(algorithm=Averaging, num_workers=2, settings=None, **options):
    return machine(num_workers, **settings or {}).execute(program(algorithm, **options), no_progress)


def test_two_workers_take_the_steps_of_one_with_twice_the_batch():
    one = run(num_workers=1, batch_size=8).observations
    two = run(num_workers=2, batch_size=4).observations
    assert [seen.samples for seen in two] == [64, 128, 192, 256]
    for mine, reference in zip(two, one, strict=True):
        assert mine.updates == reference.updates
        # float64: two means of four are summed instead of one of eight
        torch.testing.assert_close(mine.parameters, reference.parameters, rtol=1e-12, atol=0)


def test_reports_account_for_the_run():
    execution = run()
    assert execution.facts["workers"] == "processes"
    for worker in execution.workers:
        assert worker.sent_bytes == 32 * 8  # 32 steps, one float64
        assert worker.peak_bytes > 2**20
        assert min(worker.compute_s, worker.comm_s, worker.idle_s) >= 0
        assert worker.compute_s + worker.comm_s + worker.idle_s <= worker.finish_s * (1 + 1e-9)


def test_a_worker_that_starts_slowly_keeps_nobody_waiting_beyond_the_timeout():
    assert run(SlowToCompile, settings={"timeout_s": 0.5}).failure is None


def test_waiting_for_a_late_worker_is_idleness():
    early, late = run(LateRankOne, budget=64).workers
    assert early.idle_s > 8 * 0.02 * 0.9  # 8 steps of at least 20 ms each; a sleep is never shorter
    assert late.idle_s < early.idle_s


@pytest.mark.parametrize("num_workers", [2, 3])
def test_every_collective_gives_the_right_values(num_workers):
    execution = run(Everything, num_workers)
    total = num_workers * (num_workers + 1) / 2  # of 1 .. P
    root = 2 * total + 2 + 2 * total  # all-reduce, broadcast of rank 0's, reduce
    expected = root + 2 * total + 2 * total + total + 2 * num_workers  # ring: rank 0 hears the last rank
    assert execution.failure is None
    assert execution.observations[-1].parameters.item() == expected


def test_the_bytes_of_every_collective_are_counted():
    bytes_of_two = 8  # float32
    root, other = (worker.sent_bytes for worker in run(Everything, 2).workers)
    common = bytes_of_two * (
        1 + 1 + 2 + 1 + 1
    )  # all-reduce, all-gather, reduce-scatter of 4, all-to-all of 2, a message
    assert (root, other) == (common + bytes_of_two, common + bytes_of_two)  # the root broadcasts, the other reduces


def test_unmodified_ddp_is_metered():
    execution = run(Wrapped)
    plain = run(Averaging).observations[-1].parameters
    torch.testing.assert_close(execution.observations[-1].parameters, plain, rtol=1e-12, atol=0)
    assert all(worker.sent_bytes >= 32 * 8 and worker.comm_s > 0 for worker in execution.workers)


def test_every_worker_is_pinned():
    two = machine(2)
    execution = two.execute(program(ReportsCPUs), no_progress)
    cpus_of_worker = [seat.cpus for seat in two.topology.seats(2)]
    masks = [sum(1 << cpu for cpu in cpus) for cpus in cpus_of_worker]
    assert execution.observations[-1].parameters.tolist() == masks
    assert execution.facts["pinning"] == [list(cpus) for cpus in cpus_of_worker]


def test_more_workers_than_cores():
    workers = len(os.sched_getaffinity(0)) + 1
    execution = run(num_workers=workers)
    assert execution.failure is None and execution.tags == ["oversubscribed"]


def test_virtual_sockets_are_tagged():
    execution = run(settings={"num_nodes": len(os.sched_getaffinity(0)) * 100})
    assert "virtual-sockets" in execution.tags and execution.facts["virtual_sockets"] is True


def test_shared_memory():
    execution = run(Wild, native=False, settings={"memory_policy": "interleave"})
    assert execution.observations[-1].updates == 256
    assert 20 < execution.observations[-1].parameters.item() < 45  # the mean is 31.5
    assert execution.facts["placement"]["model"] == {"policy": "interleave", "pages_by_node": {"0": 1}}


def test_disagreement_about_shared_tensors_is_an_error():
    failure = run(WildOdd, problem=Counts, native=False).failure
    assert isinstance(failure, UserError) and "worker 1 shares 'model 1'" in str(failure)


def test_background_activities_run():
    assert run(WildHelped, problem=Counts, native=False).observations[-1].parameters.tolist() == [1.0, 1.0]


def test_a_worker_finishes_before_its_background_activities():
    execution = run(WildLingering, num_workers=1, problem=Counts, native=False)
    # A second passes between the two if the activity, which sleeps that long, is waited for.
    assert execution.workers[0].finish_s - execution.observations[-1].time_s < 1.0


def test_an_error_of_a_background_activity_ends_the_run_while_all_wait():
    failure = run(HelperRaises).failure  # told at the end only, a worker's timeout would come first
    assert str(failure) == "a background activity of worker 1 raised ZeroDivisionError: by design"
    assert "in fail" in failure.details


def test_a_killed_worker_ends_the_run_and_what_was_observed_stays():
    execution = run(KillsRankOne, milestones=[8, 16, 256])
    assert isinstance(execution.failure, WorkerFailed)
    assert str(execution.failure).startswith("worker 1 (pid ")
    assert str(execution.failure).endswith("was killed by signal 9 (SIGKILL)")
    assert [seen.samples for seen in execution.observations] == [8, 16]


def test_an_exception_ends_the_run_and_carries_its_traceback():
    failure = run(RaisesInRankOne).failure
    assert isinstance(failure, WorkerFailed)
    assert str(failure) == "worker 1 raised ZeroDivisionError: by design"
    assert "in interfere" in failure.details


def test_a_problem_that_cannot_be_loaded_is_a_failure():
    failure = run(problem=Lost).failure
    assert isinstance(failure, WorkerFailed)
    assert str(failure) == "the program, before any worker started, raised FileNotFoundError: no such numbers"


def test_divergence_is_itself():
    execution = run(learning_rate=1e30, budget=2560)
    assert isinstance(execution.failure, Diverged)
    assert not torch.isfinite(execution.observations[-1].parameters).all()


def test_a_collective_that_hangs_ends_after_the_timeout():
    failure = run(Silent, settings={"timeout_s": 1.0}).failure
    assert isinstance(failure, WorkerFailed)
    limit = "hardware.timeout_s=1 s: raise it, or see what the others do; nothing was heard from worker 1"
    assert str(failure) == f"worker 0 waited for the others for more than {limit}" and failure.details == ""


def test_progress_is_told():
    seen = []
    machine(2).execute(program(), seen.append)
    assert seen == sorted(seen) and seen[-1] == 256


def test_interrupt_ends_the_workers_and_is_returned(tmp_path, monkeypatch):
    monkeypatch.setenv("TOY_PIDS", str(tmp_path / "pids"))

    def interrupt(samples):
        os.kill(os.getpid(), signal.SIGINT)

    execution = machine(2).execute(program(Endless), interrupt)
    assert isinstance(execution.failure, KeyboardInterrupt)


def test_workers_find_what_their_parent_finds(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "sibling.py").write_text("from tests.hardware.toys import Mean\n")
    script = tmp_path / "folder" / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.stdout.split(), done.stderr) == (["256"], "")


@pytest.fixture
def temporary():
    """An empty folder with a short path: sockets in it have paths of 108 bytes at most."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def test_a_path_too_long_for_a_socket_is_one_sentence(tmp_path):
    folder = tmp_path / ("long" * 25)
    folder.mkdir()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "TMPDIR": str(folder)}
    command = [sys.executable, "-c", UNGUARDED]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.stderr.splitlines()[-1].endswith(
        f"TMPDIR={folder} is too long for the path of a socket: set a shorter one"
    )


@pytest.mark.parametrize(
    ("sibling", "sentence"),
    [
        ("", "ended with exit code 1 in mid-run: see what it printed"),
        ("import sys\nassert sys.argv != ['-c']", "the process that starts workers has ended"),
    ],
)
def test_a_script_that_cannot_be_imported_again_fails_with_a_hint(tmp_path, temporary, sibling, sentence):
    (tmp_path / "sibling.py").write_text(f"{sibling}\ndef nothing(): pass\n")
    (tmp_path / "script.py").write_text(f"from sibling import nothing\n{UNGUARDED}")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "TMPDIR": str(temporary)}
    command = [sys.executable, str(tmp_path / "script.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert sentence in done.stdout
    assert "Error" in done.stderr
    wait_for(lambda: not list(temporary.iterdir()))


UNGUARDED = """
from tests.hardware.toys import machine, no_progress, program
print(machine(2).execute(program(), no_progress).failure)
"""

SCRIPT = """
from sibling import Mean
from tests.hardware.toys import machine, no_progress, program

class Own(Mean):
    pass

if __name__ == "__main__":
    print(machine(2).execute(program(problem=Own), no_progress).observations[-1].samples)
"""

PARENT = """
from tests.hardware.toys import Endless, machine, no_progress, program
raise machine(2).execute(program(Endless), no_progress).failure
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_parent_that_is_ended_leaves_nobody(tmp_path, temporary, how):
    pids, files = tmp_path / "pids", shared_memory()
    environment = {**os.environ, "TOY_PIDS": str(pids), "TMPDIR": str(temporary)}
    with subprocess.Popen(
        [sys.executable, "-c", PARENT], env=environment, stderr=subprocess.PIPE, start_new_session=True
    ) as parent:
        wait_for(lambda: pids.exists() and len(pids.read_text().split()) == 2)
        parent.send_signal(how)
        parent.wait(10)
    assert parent.returncode == {signal.SIGKILL: -9, signal.SIGTERM: -2, signal.SIGINT: -2}[how]
    wait_for(lambda: not session(parent.pid))
    assert shared_memory(parent.pid) <= files
    assert list(temporary.iterdir()) == []


def session(leader):
    """Processes of a session, helpers of multiprocessing included."""
    members = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # gone meanwhile
            continue
        if int(fields[3]) == leader and fields[0] != "Z":
            members.append(stat.parent.name)
    return members


def wait_for(condition, timeout_s=20.0):
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "waited in vain"
        time.sleep(0.02)
