"""hardware=torchrun on two hosts: two network namespaces and a cable, each with its torchrun and a clock of its own."""

import json
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager

import pytest
import torch
from commands import ROOT
from composed import execution
from worlds import clean_environment, directory, parameters, rows, summary

MLP = ["problem=digits_mlp", "problem.dtype=float64", "budget.epochs=0.2", "budget.observations=3"]
TWO = ["algorithm=all_reduce", "algorithm.batch_size=12", "algorithm.learning_rate=0.1", *MLP]
ADDRESSES = ("10.213.77.1", "10.213.77.2")
AHEAD_S = 1000  # of the second host's clock

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make network namespaces"),
    pytest.mark.skipif(shutil.which("ip") is None, reason="needs `ip netns` (iproute2)"),
]


def ip(*arguments):
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@contextmanager
def hosts():
    """Two network namespaces that reach each other, by name."""
    names = [f"tw{os.getpid()}{side}" for side in "ab"]
    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", names[0], "netns", names[0], "type", "veth", "peer", "name", names[1], "netns", names[1])
        for name, address in zip(names, ADDRESSES, strict=True):
            ip("-n", name, "address", "add", f"{address}/24", "dev", name)
            ip("-n", name, "link", "set", name, "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


def agent(host, address, clock, *arguments):
    """A torchrun of one rank on a host."""
    meet = ["--nnodes", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint", f"{ADDRESSES[0]}:29400", "--rdzv-id", "two"]
    meet += ["--rdzv-conf", f"is_host={int(address == ADDRESSES[0])}"]  # which it cannot tell: both have one name
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "1", *meet, "--local-addr", address]
    return subprocess.Popen(
        ["ip", "netns", "exec", host, *clock, *torchrun, str(ROOT / "run.py"), *arguments],
        stdout=-1, stderr=-1, text=True, env=clean_environment(), stdin=subprocess.DEVNULL,
    )  # fmt: skip


def on_two_hosts(*arguments):
    """Exit status, output and errors of both torchruns."""
    ahead = ["unshare", "--time", "--monotonic", str(AHEAD_S), "--fork"]
    with hosts() as names:
        agents = [agent(*each, *arguments) for each in zip(names, ADDRESSES, ([], ahead), strict=True)]
        try:
            said = [each.communicate(timeout=180) for each in agents]
        finally:
            for each in agents:
                each.kill()
                each.wait()
    return [(each.returncode, *words) for each, words in zip(agents, said, strict=True)]


def test_two_hosts_have_the_weights_of_one(tmp_path):
    kept = [
        "--config-dir",
        str(ROOT / "tests"),
        "problem._target_=weighing.Weighing",
        f"+problem.file={tmp_path}/weights",
    ]
    done = on_two_hosts(*TWO, *kept, "hardware=torchrun", "tracking=files", "baseline=none", f"runs_dir={tmp_path}")
    assert [status for status, _, _ in done] == [0, 0], done
    assert sum("\n  hardware " in output for _, output, _ in done) == 1
    one = execution(*TWO, "tracking=none", "hardware=cpu", "hardware.num_workers=2")
    weights = torch.load(tmp_path / "weights")[1:]  # without the initial ones
    # the order of sums may differ between a ring's directions; measured differences are 0
    torch.testing.assert_close(weights, parameters(one), rtol=1e-12, atol=1e-13)
    facts = json.loads((directory(tmp_path) / "manifest.json").read_text())["facts"]
    assert sorted(facts["addresses"]) == sorted(ADDRESSES)
    before, after = facts["clocks"]
    for reading in (before, after):
        assert abs(abs(reading["offset_s"]) - AHEAD_S) < 0.1 and 0 < reading["wrong_by_at_most_s"] < 0.1
    told = summary(tmp_path)
    assert told["run/num_workers"] == 2 and 0 < told["time/run_s"] < 100


def test_a_host_that_is_gone_ends_the_other(tmp_path):
    victim = ["problem._target_=dying.Dying", "+problem.victim=1", f"+problem.pid_file={tmp_path}/pid"]
    easy = ["problem=least_squares", "problem.samples=100", "problem.features=5", "problem.dtype=float64"]
    chosen = ["--config-dir", str(ROOT / "tests"), "algorithm=all_reduce", *easy, *victim, "algorithm.batch_size=5"]
    much = ["budget.epochs=2000", "budget.observations=2000", "baseline=none", "tracking=files", f"runs_dir={tmp_path}"]
    done = on_two_hosts(*chosen, "hardware=torchrun", *much)
    assert [status != 0 for status, _, _ in done] == [True, True]
    assert summary(tmp_path)["run/status"] in ("failed", "interrupted") and len(rows(tmp_path)) > 40
