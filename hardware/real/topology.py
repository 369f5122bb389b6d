"""The machine's NUMA nodes, cores and hardware threads, as the kernel tells them under /sys/devices/system.

Only what this process may use counts (`os.sched_getaffinity`): in a container or a batch job, less than the machine.
"""

import os
from collections import Counter
from collections.abc import Iterator, Set
from dataclasses import dataclass, replace
from itertools import count, islice
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
class Seat:
    """What one worker is given.

    Args:
        cpus: hardware threads, ascending.
        socket: the one they belong to.
    """

    cpus: tuple[int, ...]
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

    def seats(self, num_workers: int, cpus_per_worker: int = 1, policy: str = "spread") -> list[Seat]:
        """The seat of each worker, all on one socket, physical cores before their second threads.

        Args:
            policy: "spread" goes round robin over the sockets, "fill" takes all cores of one before those of the next.

        >>> cores = tuple(Core((cpu, cpu + 4), node=cpu // 2, socket=cpu // 2) for cpu in range(4))
        >>> [seat.cpus for seat in Topology(cores).seats(6)]
        [(0,), (2,), (1,), (3,), (4,), (6,)]
        >>> [seat.cpus for seat in Topology(cores).seats(6, policy="fill")]
        [(0,), (1,), (2,), (3,), (4,), (5,)]
        """
        ranked = []
        for socket in sorted({core.socket for core in self.cores}):
            cores = [core.cpus for core in self.cores if core.socket == socket]
            taken: Counter[tuple[int, int]] = Counter()
            for depth, cpus in islice(_turns(cores, cpus_per_worker), num_workers):
                order = (taken[depth], socket) if policy == "spread" else (socket, taken[depth])
                taken[depth] += 1
                ranked.append((depth, order, Seat(cpus, socket)))
        return [seat for _, _, seat in sorted(ranked, key=lambda entry: entry[:2])[:num_workers]]

    def nodes_beneath(self, socket: int) -> tuple[int, ...]:
        """The NUMA nodes that the cores of a socket belong to, ascending; several beneath some virtual sockets."""
        return tuple(sorted({core.node for core in self.cores if core.socket == socket}))

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


def _turns(cores: list[tuple[int, ...]], cpus_per_worker: int) -> Iterator[tuple[tuple[int, int], tuple[int, ...]]]:
    """What a socket's workers get, one after the other, without end.

    Yields:
        how deep its last hardware thread lies (times that all have been given out, threads of its core taken before),
        and the hardware threads.
    """
    threads = sorted((depth, place) for place, cpus in enumerate(cores) for depth in range(len(cpus)))
    for first in count(0, cpus_per_worker):
        rounds, last = divmod(first + cpus_per_worker - 1, len(threads))
        given = (threads[position % len(threads)] for position in range(first, first + cpus_per_worker))
        yield (rounds, threads[last][0]), tuple(sorted({cores[place][depth] for depth, place in given}))
