"""The world that a launcher has started: as many processes as ranks, on one or several hosts, each with its number.

torchrun says so by RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT (whoever sets these is as good); srun by
SLURM_PROCID, SLURM_NTASKS, SLURM_LOCALID and SLURM_NODELIST, of which the first host is the one of rank 0. Imports
nothing heavy: the command line asks before anything else.
"""

import json
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

TORCHRUN, SRUN = "torchrun", "srun"
FIRST_PORT, PORTS = 20_000, 10_000  # below those that the kernel hands out


@dataclass(frozen=True)
class World:
    """One rank's view of the world it is in.

    Args:
        rank: 0 .. size - 1; rank 0 composes, records and tells, the others work.
        local_rank: its number on its host.
        address, port: where the store is that all can reach.
        hosts_store: whether rank 0 has to open the store; torchrun's agent has done so.
        attempt: how often torchrun has started this world before.
    """

    launcher: str
    rank: int
    size: int
    local_rank: int
    address: str
    port: int
    hosts_store: bool
    attempt: int = 0


def find_world(environment: Mapping[str, str]) -> World | None:
    """The world that this process was started in, or None."""
    if all(name in environment for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")):
        return _of_torchrun(environment)
    if "SLURM_PROCID" in environment:
        return _of_srun(environment)
    return None


def joined_world(environment: Mapping[str, str], arguments: Sequence[str]) -> World | None:
    """The same, if this process is to be a rank of it: what torchrun starts is, a task of Slurm's if it says so.

    Args:
        arguments: of the command line; tasks that do not choose hardware=torchrun may be runs of their own.
    """
    world = find_world(environment)
    asked = any(name == "hardware" and "torchrun" in value for name, _, value in (a.partition("=") for a in arguments))
    return world if world is not None and (world.launcher == TORCHRUN or asked) else None


def explain_end(environment: Mapping[str, str], reason: str) -> None:
    """Leave word of why this process ends in failure, where torchrun looks for it: its own traceback ends with that."""
    if path := environment.get("TORCHELASTIC_ERROR_FILE"):
        word = {"message": {"message": reason, "extraInfo": {"timestamp": str(int(time.time()))}}}
        with suppress(OSError):  # it has been said on stderr
            Path(path).write_text(json.dumps(word), encoding="utf-8")


def _of_torchrun(environment: Mapping[str, str]) -> World:
    rank = int(environment["RANK"])
    return World(
        launcher=TORCHRUN,
        rank=rank,
        size=int(environment["WORLD_SIZE"]),
        local_rank=int(environment.get("LOCAL_RANK", rank)),
        address=environment["MASTER_ADDR"],
        port=int(environment["MASTER_PORT"]),
        hosts_store=rank == 0 and environment.get("TORCHELASTIC_USE_AGENT_STORE") != "True",
        attempt=int(environment.get("TORCHELASTIC_RESTART_COUNT", 0)),
    )


def _of_srun(environment: Mapping[str, str]) -> World:
    def of_step(name: str, default: str = "") -> str:
        """A step may have fewer tasks and nodes than its job."""
        return environment.get(f"SLURM_STEP_{name}") or environment.get(f"SLURM_{name}") or default

    rank, job = int(environment["SLURM_PROCID"]), int(environment.get("SLURM_JOB_ID", 0))
    number = 100 * job + int(environment.get("SLURM_STEP_ID", 0))
    return World(
        launcher=SRUN,
        rank=rank,
        size=int(environment.get("SLURM_STEP_NUM_TASKS") or environment.get("SLURM_NTASKS") or 1),
        local_rank=int(environment.get("SLURM_LOCALID", 0)),
        address=environment.get("MASTER_ADDR") or first_host(of_step("NODELIST", "localhost")),
        port=int(environment.get("MASTER_PORT") or FIRST_PORT + number % PORTS),
        hosts_store=rank == 0,
    )


def first_host(nodes: str) -> str:
    """The first host of a list in Slurm's words.

    >>> first_host("gpu[003-005,9],login"), first_host("one,two"), first_host("a[1-2]-ib[0-1]")
    ('gpu003', 'one', 'a1-ib0')
    """
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodes)
    assert first is not None
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first[0])
