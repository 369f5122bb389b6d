"""Primitives take what the network's closed forms say, wherever they run, and nothing is trained."""

import pytest
from commands import command
from composed import execution, setup

from algorithms.primitives import MESSAGES, barrier
from harness.errors import UserError

SMALL = ["experiment=primitives", "algorithm.sizes_bytes=[4,4096]", "algorithm.repetitions=2", "tracking=none"]
NAMES = sorted(each.__name__ for each in (*MESSAGES, barrier))


def timed(*overrides):
    done = execution(*SMALL, *overrides)
    assert done.failure is None, done.failure
    return {key: value for key, value in done.metrics.items() if key.startswith("primitives/")}


def named(found):
    return sorted({key.split("/")[1] for key in found})


@pytest.mark.parametrize("hardware", ["cpu", "sim_numa2", "sim_ethernet", "sim_dgx"])
def test_every_primitive_takes_time_everywhere(hardware):
    found = timed(f"hardware={hardware}", "hardware.num_workers=2")
    assert named(found) == NAMES
    assert all(value > 0 for key, value in found.items() if "/sync_s" in key)
    assert all(value >= 0 for value in found.values())


@pytest.mark.parametrize("hardware", ["cpu", "sim_ethernet"])
def test_one_worker_has_nobody_to_send_to(hardware):
    assert named(timed(f"hardware={hardware}", "hardware.num_workers=1")) == sorted({*NAMES} - {"push", "pull"})


def test_a_push_is_latency_and_bytes():
    """Of two hosts: one message. With three, that of two into one port: twice the bytes, once the latency."""
    network = ["hardware=sim_ethernet", "hardware.network.latency_s=1e-3", "hardware.network.bandwidth_bytes_per_s=1e6"]
    two, three = (
        timed(*network, "hardware.compute.operator_overhead_s=0", f"hardware.num_workers={n}") for n in (2, 3)
    )
    key = "primitives/push/4096_bytes/wait_s_max"
    assert two[key] == pytest.approx(1e-3 + 4096 / 1e6, rel=0.1)  # and the protocol's own bytes
    assert three[key] == pytest.approx(1e-3 + 2 * 4096 / 1e6, rel=0.1)


def test_a_pull_is_a_question_and_an_answer_of_all_workers_together():
    latency = ["hardware=sim_ethernet", "hardware.network.latency_s=1e-3", "hardware.num_workers=8"]
    key, found = "primitives/pull/4_bytes", timed(*latency)
    assert found[f"{key}/issue_s_max"] == pytest.approx(1e-3, rel=0.1)  # worker 0, which hears the questions
    assert found[f"{key}/issue_s_max"] + found[f"{key}/wait_s_max"] < 3.2e-3


def test_a_run_prints_the_table_and_records_it(tmp_path):
    arguments = [*SMALL[:-1], "hardware=sim_ethernet", "hardware.num_workers=2", "tracking=files"]
    outcome = command(*arguments, runs_dir=tmp_path)
    assert outcome.returncode == 0, outcome.stderr
    assert not outcome.stderr
    lines = [line.split()[:2] for line in outcome.stdout.splitlines()]
    assert all([name, "4096"] in lines for name in NAMES if name != "barrier") and ["barrier", "0"] in lines
    assert "speedup" not in outcome.stdout and "target" not in outcome.stdout
    (summary,) = tmp_path.rglob("summary.json")
    assert '"primitives/all_reduce/4096_bytes/sync_s_mean"' in summary.read_text()


@pytest.mark.parametrize("setting", ["sizes_bytes=[]", "sizes_bytes=[6]", "repetitions=0"])
def test_nonsense_is_refused_by_name(setting):
    with pytest.raises(UserError, match=f"algorithm.{setting.split('=')[0]}"):
        setup(*SMALL, f"algorithm.{setting}", "hardware=sim_ethernet")
