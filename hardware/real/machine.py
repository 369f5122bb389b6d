"""This machine's CPU cores as hardware: workers are pinned threads or processes, time is the wall clock."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Self

from hardware.base import Execution, Hardware, check_memory_policy, check_pin_policy, crowd
from hardware.real.crew import Crew
from hardware.real.simd import check_level
from hardware.real.topology import Seat, Topology, read_topology
from harness.errors import UserError, require
from harness.program import Program


@dataclass(frozen=True)
class RealMachine(Hardware):
    """The cores of this machine and its NUMA nodes.

    Workers are threads where the algorithm spends its time in a native kernel that releases the interpreter's lock, and
    processes with a gloo group otherwise.

    Args:
        num_nodes: sockets to use, >= 1; None for all NUMA nodes. A machine with fewer nodes has its cores split into
            virtual sockets, unless `strict`.
        strict: refuse virtual sockets and more workers than cores, instead of giving notice.
        pinning: whether each worker is bound to its own hardware threads.
        pin_policy: spread (workers round robin over the sockets) or fill (all cores of one socket before the next's).
        memory_policy: where shared tensors, and rows of native kernels, lie that name no node: first_touch, interleave
            or bind:<NUMA node>.
        intra_op_threads: torch's threads, and cores, per worker, >= 1.
        simd: vector instructions that torch may use: default, avx2 or avx512; None for all that the processor has.
            With a value no native kernels run, which would use all the same.
        timeout_s: after which a collective has failed, > 0.
    """

    kind: ClassVar[str] = "real"
    clock_kind: ClassVar[str] = "wall"

    num_nodes: int | None
    strict: bool
    pinning: bool
    pin_policy: str
    memory_policy: str
    intra_op_threads: int
    simd: str | None
    timeout_s: float

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.num_nodes is None or self.num_nodes >= 1, "hardware.num_nodes", "must be >= 1", self.num_nodes)
        require(self.intra_op_threads >= 1, "hardware.intra_op_threads", "must be >= 1", self.intra_op_threads)
        require(self.timeout_s > 0, "hardware.timeout_s", "must be > 0", self.timeout_s)
        check_pin_policy("hardware.pin_policy", self.pin_policy)
        check_level(self.simd)
        check_memory_policy("hardware.memory_policy", self.memory_policy)

    @property
    def shares_memory(self) -> bool:
        """Always."""
        return True

    @property
    def runs_kernels(self) -> bool:
        """Unless torch's vector instructions are chosen, which are not theirs."""
        return self.simd is None

    def sequential(self) -> Self:
        """One worker with one thread."""
        return replace(self, num_workers=1, intra_op_threads=1)

    @property
    def workers_offered(self) -> int:
        """`num_workers`, or as many as there are cores for."""
        return self.num_workers or max(self.topology.num_cores // self.intra_op_threads, 1)

    @cached_property
    def topology(self) -> Topology:
        """The cores in use."""
        machine = read_topology()
        return machine if self.num_nodes is None else machine.with_sockets(self.num_nodes)

    def check(self, num_servers: int = 0) -> list[str]:
        """Refuse what this machine lacks; say what it pretends.

        Raises:
            UserError: if `strict`, or if memory is bound to a node that is not there.
        """
        check_memory_policy("hardware.memory_policy", self.memory_policy, self._numa_nodes)
        said = (self._virtual_sockets(), self._oversubscription(num_servers), self._unpinned_policy())
        notices = [notice for notice in said if notice]
        if self.strict and notices:
            raise UserError(f"{notices[0]}: hardware.strict=true refuses this; set it to false or ask for less")
        return [f"{notice} (hardware.strict=true refuses this)" for notice in notices]

    def execute(self, program: Program, progress: Callable[[int], None]) -> Execution:
        """Run on threads or processes; see `Hardware.execute`."""
        from hardware.real.processes import run_in_processes  # noqa: PLC0415 - torch.distributed only where it runs
        from hardware.real.threads import run_in_threads  # noqa: PLC0415

        threads = program.algorithm.releases_gil(program.problem)
        execution = (run_in_threads if threads else run_in_processes)(self._crew, program, progress)
        execution.facts = {**self._facts(), "workers": "threads" if threads else "processes", **execution.facts}
        execution.tags += ["virtual-sockets"] * self.topology.virtual + ["oversubscribed"] * bool(
            self._oversubscription()
        )
        return execution

    @property
    def _numa_nodes(self) -> list[int]:
        return sorted({core.node for core in self.topology.cores})

    @cached_property
    def _seats(self) -> list[Seat]:
        return self.topology.seats(self.workers_offered, self.intra_op_threads, self.pin_policy)

    @property
    def _crew(self) -> Crew:
        anywhere = tuple(sorted({cpu for core in self.topology.cores for cpu in core.cpus}))
        sockets = sorted({seat.socket for seat in self._seats})  # those that hold workers
        place = {socket: node for node, socket in enumerate(sockets)}
        workers, numa_nodes = self.workers_offered, self._numa_nodes
        return Crew(
            cpus=[seat.cpus for seat in self._seats] if self.pinning else [anywhere] * workers,
            nodes=[place[seat.socket] for seat in self._seats] if self.pinning else [0] * workers,
            beneath=[*map(self.topology.nodes_beneath, sockets)] if self.pinning else [tuple(numa_nodes)],
            virtual=self.topology.virtual,
            numa_nodes=numa_nodes,
            memory_policy=self.memory_policy,
            intra_op_threads=self.intra_op_threads,
            simd=self.simd,
            timeout_s=self.timeout_s,
        )

    def _virtual_sockets(self) -> str:
        if not self.topology.virtual:
            return ""
        cores, sockets = self.topology.num_cores, self.num_nodes
        has = f"hardware.num_nodes={sockets}: this machine has {_count(len(self._numa_nodes), 'NUMA node')}"
        if cores >= len({core.socket for core in self.topology.cores}):
            return f"{has}; its {cores} cores are split into {sockets} virtual sockets"
        return f"{has} and {_count(cores, 'core')}, which {sockets} virtual sockets share"

    def _unpinned_policy(self) -> str:
        if self.pinning or self.pin_policy == "spread":
            return ""
        return f"hardware.pin_policy={self.pin_policy} has no effect: hardware.pinning=false binds no worker to a core"

    def _oversubscription(self, num_servers: int = 0) -> str:
        workers, threads, cores = self.workers_offered, self.intra_op_threads, self.topology.num_cores
        if workers * threads <= cores:
            return ""
        each = f" with {threads} threads each" if threads > 1 else ""
        return f"{crowd(workers, num_servers)}{each} share {_count(cores, 'core')}"

    def _facts(self) -> dict[str, Any]:
        crew = self._crew
        return {
            "topology": self.topology.describe(),
            "virtual_sockets": self.topology.virtual,
            "oversubscribed": bool(self._oversubscription()),
            "pinning": [list(cpus) for cpus in crew.cpus] if self.pinning else None,
            "nodes": [
                {"numa_nodes": list(beneath), "workers": [rank for rank, at in enumerate(crew.nodes) if at == node]}
                for node, beneath in enumerate(crew.beneath)
            ],
        }


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("s" if number != 1 else "")
