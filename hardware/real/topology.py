"""The machine's NUMA nodes, cores and hardware threads, as the kernel tells them under /sys/devices/system.

Only what this process may use counts (`os.sched_getaffinity`): in a container or a batch job, less than the machine.
"""

import os
from collections.abc import Iterator, Set
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path

SYSFS = Path("/sys/devices/system")


@dataclass(frozen=True)
class Core:
    """A physical core.

    Args:
        cpus: its hardware threads, as the kernel numbers them, ascending.
        node: the NUMA node it belongs to.
        socket: the socket workers are spread over; the node's position, or a virtual socket.
    """

    cpus: tuple[int, ...]
    node: int
    socket: int


@dataclass(frozen=True)
class Topology:
    """The cores workers may run on, by socket.

    Args:
        cores: ordered by socket, then by first hardware thread.
        virtual: whether sockets are parts of fewer NUMA nodes.
    """

    cores: tuple[Core, ...]
    virtual: bool = False

    @property
    def num_sockets(self) -> int:
        """Sockets, real or virtual."""
        return len({core.socket for core in self.cores})

    @property
    def num_cores(self) -> int:
        """Distinct physical cores; with virtual sockets on one core, two sockets share it."""
        return len({core.cpus for core in self.cores})

    def with_sockets(self, num_sockets: int) -> "Topology":
        """The same machine seen as `num_sockets` sockets: its first nodes, or its cores split into virtual sockets.

        With fewer cores than sockets, several sockets hold the same core.
        """
        if num_sockets <= self.num_sockets:
            return replace(self, cores=tuple(core for core in self.cores if core.socket < num_sockets))
        count = max(len(self.cores), num_sockets)
        cores = tuple(replace(self.cores[i % len(self.cores)], socket=i * num_sockets // count) for i in range(count))
        return Topology(cores, virtual=True)

    def spread(self, num_workers: int, cpus_per_worker: int = 1) -> list[tuple[int, ...]]:
        """The hardware threads of each worker: round-robin over sockets, physical cores before their second threads.

        >>> two = Topology((Core((0, 2), node=0, socket=0), Core((1, 3), node=1, socket=1)))
        >>> two.spread(3)
        [(0,), (1,), (2,)]
        """
        sockets = sorted({core.socket for core in self.cores})
        queues = [_cycle_cpus([core.cpus for core in self.cores if core.socket == socket]) for socket in sockets]
        turns = [queues[worker % len(queues)] for worker in range(num_workers)]
        return [tuple(sorted({next(queue) for _ in range(cpus_per_worker)})) for queue in turns]

    def describe(self) -> list[dict[str, object]]:
        """One plain entry per core, for the manifest."""
        return [{"cpus": list(core.cpus), "node": core.node, "socket": core.socket} for core in self.cores]


def read_topology(root: Path = SYSFS, allowed: Set[int] | None = None) -> Topology:
    """Read the machine.

    Args:
        root: where the kernel's `node` and `cpu` folders are.
        allowed: hardware threads to use; None for those this process may run on.
    """
    allowed = os.sched_getaffinity(0) if allowed is None else allowed
    nodes = {cpu: node for node, cpus in _nodes(root) for cpu in cpus}
    siblings = {_siblings(root, cpu, allowed) for cpu in allowed}
    numbered = {node: socket for socket, node in enumerate(sorted({nodes.get(cpu, 0) for cpu in allowed}))}
    cores = [Core(cpus, nodes.get(cpus[0], 0), numbered[nodes.get(cpus[0], 0)]) for cpus in siblings]
    return Topology(tuple(sorted(cores, key=lambda core: (core.socket, core.cpus))))


def parse_cpu_list(text: str) -> list[int]:
    """The kernel's list format.

    >>> parse_cpu_list("0-2,5\\n")
    [0, 1, 2, 5]
    """
    cpus: list[int] = []
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        cpus.extend(range(int(first), int(last or first) + 1))
    return cpus


def _nodes(root: Path) -> Iterator[tuple[int, list[int]]]:
    for folder in sorted((root / "node").glob("node[0-9]*")):
        yield int(folder.name.removeprefix("node")), parse_cpu_list((folder / "cpulist").read_text())


def _siblings(root: Path, cpu: int, allowed: Set[int]) -> tuple[int, ...]:
    path = root / "cpu" / f"cpu{cpu}" / "topology" / "thread_siblings_list"
    together = parse_cpu_list(path.read_text()) if path.exists() else [cpu]
    return tuple(sibling for sibling in together if sibling in allowed) or (cpu,)


def _cycle_cpus(cores: list[tuple[int, ...]]) -> Iterator[int]:
    rounds = [cpu for level in zip_longest(*cores) for cpu in level if cpu is not None]
    while True:
        yield from rounds
