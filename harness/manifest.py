"""Who a run is, and what it ran on: everything needed to find it again, and to repeat it."""

import os
import platform
import secrets
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from harness.canonical import digest

PACKAGES = ("twinclock", "torch", "numpy", "numba", "simpy", "wandb")


@dataclass(frozen=True)
class RunInfo:
    """Who a run is.

    Args:
        id: unique; names the run in the index and in W&B.
        name: for people, such as `sim-hogwild(locking=atomic)-numa2-w4-s0`.
        kind: "real" or "simulated".
        clock_kind: "wall" or "virtual".
        pair_id: equal for a simulated run and its real twin.
        problem_id: equal for runs that can be compared: the same problem, data, order of samples and seed.
        group: the sweep it belongs to, or None.
        tags: marks to filter by.
        config: the composed configuration, in plain types.
    """

    id: str
    name: str
    kind: str
    clock_kind: str
    num_workers: int
    seed: int
    pair_id: str
    problem_id: str
    group: str | None
    tags: Sequence[str]
    config: dict[str, Any]


def new_run_id() -> str:
    """Ten hexadecimal digits, from the operating system's randomness: seeds repeat, run ids must not.

    The first is a letter other than e: as a setting, `baseline=8805666e00` would be a number.
    """
    return secrets.choice("abcdf") + secrets.token_hex(5)[1:]


def run_name(
    kind: str, algorithm: str, hardware: str, num_workers: int, seed: int, settings: Mapping[str, Any] | None = None
) -> str:
    """The name of a run; twins differ in its first word alone.

    Args:
        kind: "real" or "simulated".
        algorithm: name of its YAML file.
        hardware: name of its YAML file.
        settings: of the algorithm, those that differ from its YAML file's.

    >>> run_name("simulated", "hogwild", "sim_numa2", num_workers=4, seed=0)
    'sim-hogwild-numa2-w4-s0'
    >>> run_name("real", "hogwild", "numa2", num_workers=2, seed=0, settings={"locking": "atomic", "batch_size": 9})
    'real-hogwild(locking=atomic,batch_size=9)-numa2-w2-s0'
    """
    clock = "sim" if kind == "simulated" else kind
    said = [f"{key}={f'{value:g}' if isinstance(value, float) else value}" for key, value in (settings or {}).items()]
    chosen = f"({','.join(said)})" if said else ""
    return f"{clock}-{algorithm}{chosen}-{hardware.removeprefix('sim_')}-w{num_workers}-s{seed}"


def pair_id(algorithm: Any, problem: Any, data: Any, num_workers: int, seed: int) -> str:
    """What a simulated run and its real twin share: everything but the hardware.

    Args:
        algorithm, problem, data: their configurations, resolved, in plain types.
    """
    return digest({"algorithm": algorithm, "problem": problem, "data": data, "num_workers": num_workers, "seed": seed})


def manifest(info: RunInfo, notices: Sequence[str]) -> dict[str, Any]:
    """The content of `manifest.json`.

    Args:
        notices: what differs from what was asked for, one line each.
    """
    return {
        "id": info.id,
        "name": info.name,
        "kind": info.kind,
        "clock": info.clock_kind,
        "num_workers": info.num_workers,
        "seed": info.seed,
        "pair_id": info.pair_id,
        "problem_id": info.problem_id,
        "group": info.group,
        "tags": list(info.tags),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "notices": list(notices),
        "host": host(),
        "versions": versions(),
        **git_state(Path(__file__)),
        "config": info.config,
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a result; a package that is not installed is absent."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def host() -> dict[str, Any]:
    """Name, processor model, cores, cores this process may use, and NUMA nodes (absent where the kernel shows none)."""
    found = {
        "name": platform.node(),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "cores_usable": len(os.sched_getaffinity(0)),
    }
    if nodes := len(list(Path("/sys/devices/system/node").glob("node[0-9]*"))):
        found["numa_nodes"] = nodes
    return found


def git_state(file: Path) -> dict[str, Any]:
    """Commit and dirty flag of the repository that tracks `file`, under the key "git"; empty where none does."""
    # A package installed into an environment lies inside somebody else's repository, which does not track it.
    if _git(file, "ls-files", "--error-unmatch", file.name) is None:
        return {}
    commit, changes = _git(file, "rev-parse", "HEAD"), _git(file, "status", "--porcelain")
    return {} if commit is None else {"git": {"commit": commit, "dirty": bool(changes)}}


def _git(file: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(file.parent), *arguments], capture_output=True, text=True, check=True, timeout=30
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _cpu_model() -> str:
    path = Path("/proc/cpuinfo")
    for line in path.read_text().splitlines() if path.is_file() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
