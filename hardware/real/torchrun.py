"""The ranks that a launcher has started, on one host or several, as hardware: time is the wall clock.

Each is a worker, or a server if it comes after them. Rank 0 composes, records and tells as any other run does, in its
main thread, and works in another one; the other ranks only work. What is compared with runs on fewer ranks: on rank 0's
host alone, before, in processes as hardware=cpu or gpus has them, while the other ranks wait.
"""

import os
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, ClassVar

from hardware.base import Execution, Hardware, check_pin_policy
from hardware.real import cuda
from hardware.real.card import Card, addresses, every_cpu, seats, together
from hardware.real.crew import Crew
from hardware.real.gpus import Gpus
from hardware.real.machine import RealMachine
from hardware.real.world import SRUN, World, find_world
from harness.errors import UserError, require
from harness.program import Program

BACKENDS = ("gloo", "nccl")


@dataclass(frozen=True)
class Torchrun(Hardware):
    """The world that torchrun, or Slurm's srun, has started.

    Args:
        num_workers: None for as many as the world has ranks beside servers; else what that comes to.
        backend: library of the process group. gloo: ranks compute on CPUs. nccl: each on a CUDA device of its own,
            the one with its local rank, and there are no messages from worker to worker.
        pinning: whether ranks of one host are bound to hardware threads of their own, unless the launcher has done so.
        pin_policy: spread (ranks round robin over the sockets of their host) or fill.
        intra_op_threads: torch's threads, and cores, per rank, >= 1.
        timeout_s: after which a rank has not come, or a collective has failed, > 0.
    """

    kind: ClassVar[str] = "real"
    clock_kind: ClassVar[str] = "wall"
    shares_memory: ClassVar[bool] = False
    joins_world: ClassVar[bool] = True

    backend: str
    pinning: bool
    pin_policy: str
    intra_op_threads: int
    timeout_s: float

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.backend in BACKENDS, "hardware.backend", f"must be one of {', '.join(BACKENDS)}", self.backend)
        require(self.intra_op_threads >= 1, "hardware.intra_op_threads", "must be >= 1", self.intra_op_threads)
        require(self.timeout_s > 0, "hardware.timeout_s", "must be > 0", self.timeout_s)
        check_pin_policy("hardware.pin_policy", self.pin_policy)

    @property
    def runs_kernels(self) -> bool:
        """On CPUs."""
        return self.backend == "gloo"

    @property
    def workers_offered(self) -> int:
        """`num_workers`, or as many as there are ranks."""
        return self.num_workers or self._world.size

    def sequential(self) -> Hardware:
        """One process on rank 0's host."""
        return self._apart(1, 1)

    def check_there(self) -> None:
        """Refuse to be started by itself."""
        _ = self._world  # which refuses

    def check_size(self) -> None:
        """Refuse a world of another size."""
        world, needed = self._world, self.workers_offered
        if needed != world.size:
            raise UserError(
                f"hardware=torchrun: {world.launcher} has started {_ranks(world.size)}, and this run has "
                f"{needed}, servers included: start it by {_command(world.launcher, needed)}"
            )

    def in_its_words(self, refusal: str) -> str:
        """The launcher starts workers; no algorithm that says how many it wants has servers beside them."""
        number = re.search(r"set hardware\.num_workers=(\d+)", refusal)
        if number is None:
            return refusal
        world = self._world
        start = f"start {_ranks(int(number[1]))} by {_command(world.launcher, int(number[1]))}"
        return f"{world.launcher} has started {_ranks(world.size)}: {refusal.replace(number[0], start)}"

    def check(self, num_servers: int = 0) -> list[str]:
        """Refuse devices that are not there; say who shares cores.

        Raises:
            UserError: naming the launcher's setting.
        """
        if self.backend == "nccl":
            self._check_devices()
        return [notice for notice in (self._oversubscription(),) if notice]

    def execute(self, program: Program, progress: Callable[[int], None]) -> Execution:
        """Run on all ranks, or apart from them if there are to be fewer; see `Hardware.execute`."""
        if self.workers_offered < self._world.size:
            return self._apart(self.workers_offered, self.intra_op_threads).execute(program, progress)
        from hardware.real.leader import lead  # noqa: PLC0415 - torch.distributed only where it runs

        execution = lead(self._world, self._crew, self._cards, program, progress)
        execution.facts = {**self._facts(), "workers": "ranks", **execution.facts}
        execution.tags += ["oversubscribed"] * bool(self._oversubscription())
        return execution

    def _apart(self, num_workers: int, intra_op_threads: int) -> Hardware:
        if self.backend == "nccl":
            return Gpus(num_workers, "nccl", intra_op_threads, self.timeout_s)
        return RealMachine(
            num_workers=num_workers,
            num_nodes=None,
            strict=False,
            pinning=self.pinning,
            pin_policy=self.pin_policy,
            memory_policy="first_touch",
            intra_op_threads=intra_op_threads,
            simd=None,
            timeout_s=self.timeout_s,
        )

    @cached_property
    def _world(self) -> World:
        """Raises UserError: if this process was started by itself."""
        world = find_world(os.environ)
        if world is None:
            raise UserError(
                "hardware=torchrun joins the ranks that a launcher has started, and none has: start it by "
                f"{_command('torchrun', 2)}"
            )
        return world

    @cached_property
    def _cards(self) -> list[Card]:
        from hardware.real.leader import cards_of  # noqa: PLC0415 - torch.distributed only where it runs

        return cards_of(self._world, self.timeout_s)

    @property
    def _pins(self) -> bool:
        """A rank on a CUDA device is left to its host's scheduler."""
        return self.pinning and self.backend == "gloo"

    @property
    def _crew(self) -> Crew:
        cards = self._cards
        devices = [card.device for card in cards if card.device is not None]
        pinned = seats(cards, self.intra_op_threads, self.pin_policy)
        return Crew(
            cpus=pinned if self._pins else [every_cpu(card) for card in cards],
            nodes=[0] * len(cards),
            beneath=[(0,)],
            virtual=False,
            numa_nodes=[0],
            memory_policy="first_touch",
            intra_op_threads=self.intra_op_threads,
            simd=None,
            timeout_s=self.timeout_s,
            devices=devices if self.backend == "nccl" else None,
            backend=self.backend,
            addresses=addresses(cards),
        )

    def _check_devices(self) -> None:
        for rank, card in enumerate(self._cards):
            if card.device is None:
                where = f"rank {rank} on host {card.host}"
                raise UserError(
                    f"hardware.backend=nccl: {where} has no CUDA device of its own: set hardware.backend=gloo"
                )
        if not cuda.has_nccl():
            raise UserError("hardware.backend=nccl: this torch was built without NCCL: set hardware.backend=gloo")
        shared = [ranks for ranks in together(str(card.device_id) for card in self._cards) if len(ranks) > 1]
        if shared:
            ranks = " and ".join(map(str, shared[0][:2]))
            raise UserError(
                f"hardware.backend=nccl: ranks {ranks} share one CUDA device: start one rank per device, or set "
                "hardware.backend=gloo"
            )

    def _oversubscription(self) -> str:
        if self.backend == "nccl":
            return ""
        for ranks in together(card.machine for card in self._cards):
            cores = {core.cpus for rank in ranks for core in self._cards[rank].cores.cores}
            if len(ranks) * self.intra_op_threads > len(cores):
                host = self._cards[ranks[0]].host
                return f"hardware=torchrun: {_ranks(len(ranks))} share {len(cores)} cores on host {host}"
        return ""

    def _facts(self) -> dict[str, Any]:
        cards, crew, world = self._cards, self._crew, self._world
        hosts = [{"name": cards[ranks[0]].host, "ranks": ranks} for ranks in together(card.machine for card in cards)]
        facts: dict[str, Any] = {
            "launcher": world.launcher,
            "backend": self.backend,
            "hosts": hosts,
            "addresses": crew.addresses,
            "pinning": [list(cpus) for cpus in crew.cpus] if self._pins else None,
        }
        if self.backend == "nccl":
            facts |= cuda.versions()
            seen = ((rank, card.device_facts) for rank, card in enumerate(cards))
            facts["devices"] = [{**asdict(device), "workers": [rank]} for rank, device in seen if device is not None]
        return facts


def _ranks(number: int) -> str:
    return f"{number} rank" + ("s" if number != 1 else "")


def _command(launcher: str, ranks: int) -> str:
    start = f"srun -n {ranks} python" if launcher == SRUN else f"torchrun --nproc-per-node {ranks}"
    return f"`{start} run.py ... hardware=torchrun`"
