"""Worlds of ranks for tests: rank 0 in the test's own process, or all of them as a launcher would start them."""

import gc
import json
import os
import socket
import subprocess
import sys
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from commands import ROOT

from hardware.real.follower import follow
from hardware.real.fork_server import start_fork_server
from hardware.real.leader import dismiss
from hardware.real.world import find_world
from hardware.real.world_store import store_of


def free_port():
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def by_hand(size, port, rank=0):
    """The environment of a rank, as torchrun would set it without a store of its own."""
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_PORT": port}
    return {"MASTER_ADDR": "127.0.0.1", **{name: str(number) for name, number in numbers.items()}}


@contextmanager
def world(size):
    """A block in which this process is rank 0 of a world, whose other ranks come from the fork server."""
    environment, context = by_hand(size, free_port()), start_fork_server([])
    own, before = find_world(environment), dict(os.environ)
    worlds = [replace(own, rank=rank, hosts_store=False) for rank in range(1, size)]
    others = [context.Process(target=_be, args=(each,)) for each in worlds]
    os.environ.update(environment)
    for process in others:
        process.start()
    try:
        yield
    finally:
        dismiss(own, 0)
        for process in others:
            process.join(20)
            if process.is_alive():
                process.kill()
            process.close()
        close_store()
        os.environ.clear()
        os.environ.update(before)


def close_store():
    """Let go of the store that this process has opened: groups of torch hold on to it in circles."""
    store_of.cache_clear()
    gc.collect()


def _be(world):
    os._exit(follow(world))


def clean_environment():
    strangers = ("WANDB", "HYDRA", "TWINCLOCK", "SLURM", "MASTER", "TORCHELASTIC")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(strangers)}
    return {**kept, "COLUMNS": "160", "OMP_NUM_THREADS": "1"}


def torchrun(ranks, *arguments, timeout_s=120):
    """The finished `torchrun --nproc-per-node <ranks> run.py *arguments`."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks)]
    return subprocess.run(
        [*launcher, str(ROOT / "run.py"), *arguments],
        capture_output=True, text=True, timeout=timeout_s, env=clean_environment(), stdin=subprocess.DEVNULL,
    )  # fmt: skip


def together(environments, *arguments, timeout_s=120, kill=None):
    """The finished processes of `python run.py *arguments`, one per environment.

    Args:
        kill: called with the processes once they run.
    """
    started = [
        subprocess.Popen(
            [sys.executable, str(ROOT / "run.py"), *arguments],
            stdout=-1, stderr=-1, text=True, env=clean_environment() | own, stdin=subprocess.DEVNULL,
        )
        for own in environments
    ]  # fmt: skip
    try:
        if kill is not None:
            kill(started)
        said = [process.communicate(timeout=timeout_s) for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()
    return [
        subprocess.CompletedProcess(process.args, process.returncode, *each)
        for process, each in zip(started, said, strict=True)
    ]


def directory(runs):
    """The one directory of a run."""
    (summary,) = Path(runs).glob("*-*-*/*/summary.json")  # by date; baselines are elsewhere
    return summary.parent


def summary(runs):
    return json.loads((directory(runs) / "summary.json").read_text())


def rows(runs):
    return [json.loads(line) for line in (directory(runs) / "history.jsonl").read_text().splitlines()]


def parameters(execution):
    return torch.stack([seen.parameters for seen in execution.observations])
