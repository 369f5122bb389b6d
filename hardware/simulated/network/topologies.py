"""Topologies as data. Links are directed and have the two names of their ends: `host3.up`, `left-right`."""

from collections import Counter
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import pairwise
from math import prod
from operator import itemgetter
from typing import Any

import numpy as np

from hardware.simulated.network.base import Network, Wires
from harness.errors import UserError, require


@dataclass(frozen=True)
class Switch(Network):
    """Hosts on one switch that is never the bottleneck; each has one full-duplex port.

    Args:
        latency_s: from port to port, >= 0.
        bandwidth_bytes_per_s: of a port in each direction, > 0.
    """

    latency_s: float
    bandwidth_bytes_per_s: float

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_latency("latency_s", self.latency_s)
        _require_bandwidth("bandwidth_bytes_per_s", self.bandwidth_bytes_per_s)

    def hosts(self, num_devices: int) -> np.ndarray:
        """One each."""
        return np.arange(num_devices)

    def wires(self, num_devices: int) -> Wires:
        """`host<i>.up` and `host<i>.down`."""
        latency_s = np.repeat([self.latency_s, 0.0], num_devices)
        bandwidth = np.full(2 * num_devices, self.bandwidth_bytes_per_s)
        return Wires(_ports("host", num_devices), latency_s, bandwidth, lambda a, b: np.stack([a, num_devices + b], 1))


@dataclass(frozen=True)
class Torus(Network):
    """A grid of hosts whose every line is a ring; routes go dimension by dimension, the shorter way around.

    Args:
        shape: hosts in each dimension, the last one fastest; [n] is a ring.
        latency_s: of a link between neighbours, >= 0.
        bandwidth_bytes_per_s: of a link in each direction, > 0.
    """

    shape: list[int]
    latency_s: float
    bandwidth_bytes_per_s: float

    def __post_init__(self) -> None:
        super().__post_init__()
        rule = "must be positive numbers of hosts"
        require(len(self.shape) > 0 and min(self.shape) > 0, "hardware.network.shape", rule, self.shape)
        _require_latency("latency_s", self.latency_s)
        _require_bandwidth("bandwidth_bytes_per_s", self.bandwidth_bytes_per_s)

    def hosts(self, num_devices: int) -> np.ndarray:
        """One each."""
        return np.arange(num_devices)

    def wires(self, num_devices: int) -> Wires:
        """`host<i>.<dimension>+` and `-`: to the next and to the previous in a dimension."""
        size = prod(self.shape)
        rule = f"must have room for {num_devices} ranks, workers and servers (or take fewer hardware.num_workers)"
        require(size >= num_devices, "hardware.network.shape", rule, self.shape)
        directions = [f"{dimension}{sign}" for dimension in range(len(self.shape)) for sign in "+-"]
        names = [f"host{host}.{direction}" for direction in directions for host in range(size)]
        latency_s, bandwidth = np.full(len(names), self.latency_s), np.full(len(names), self.bandwidth_bytes_per_s)
        return Wires(names, latency_s, bandwidth, self._route)

    def _route(self, sources: np.ndarray, destinations: np.ndarray) -> np.ndarray:
        size = prod(self.shape)
        at, to = np.array(np.unravel_index(sources, self.shape)), np.array(np.unravel_index(destinations, self.shape))
        hops = [np.empty((len(sources), 0), np.int64)]
        for dimension, length in enumerate(self.shape):
            ahead = (to[dimension] - at[dimension]) % length
            forward = 2 * ahead <= length
            left = np.where(forward, ahead, length - ahead)
            for hop in range(int(left.max(initial=0))):
                host = np.ravel_multi_index(tuple(at), self.shape)
                link = (2 * dimension + np.where(forward, 0, 1)) * size + host
                hops.append(np.where(hop < left, link, -1)[:, None])
                step = np.where(hop < left, np.where(forward, 1, -1), 0)
                at[dimension] = (at[dimension] + step) % length
        return np.concatenate(hops, 1)


@dataclass(frozen=True)
class FatTree(Network):
    """Two levels: hosts on leaf switches, these on a spine that is never the bottleneck.

    Args:
        hosts_per_leaf: > 0.
        latency_s: of one cable, >= 0: a way has two within a leaf, four between leaves.
        bandwidth_bytes_per_s: of a host's port in each direction, > 0.
        oversubscription: of a leaf: its hosts' bandwidth over its own to the spine, > 0.
    """

    hosts_per_leaf: int
    latency_s: float
    bandwidth_bytes_per_s: float
    oversubscription: float

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.hosts_per_leaf > 0, "hardware.network.hosts_per_leaf", "must be > 0", self.hosts_per_leaf)
        _require_latency("latency_s", self.latency_s)
        _require_bandwidth("bandwidth_bytes_per_s", self.bandwidth_bytes_per_s)
        require(self.oversubscription > 0, "hardware.network.oversubscription", "must be > 0", self.oversubscription)

    def hosts(self, num_devices: int) -> np.ndarray:
        """One each."""
        return np.arange(num_devices)

    def wires(self, num_devices: int) -> Wires:
        """`host<i>.up`, `host<i>.down`, `leaf<i>.up` and `leaf<i>.down`."""
        num_leaves = -(-num_devices // self.hosts_per_leaf)
        names = _ports("host", num_devices) + _ports("leaf", num_leaves)
        leaf_bandwidth = self.bandwidth_bytes_per_s * self.hosts_per_leaf / self.oversubscription
        bandwidth = np.repeat([self.bandwidth_bytes_per_s, leaf_bandwidth], [2 * num_devices, 2 * num_leaves])

        def route(sources: np.ndarray, destinations: np.ndarray) -> np.ndarray:
            up, down = sources // self.hosts_per_leaf, destinations // self.hosts_per_leaf
            leaves = np.stack([2 * num_devices + up, 2 * num_devices + num_leaves + down], 1)
            leaves[up == down] = -1
            return np.column_stack([sources, leaves, num_devices + destinations])

        return Wires(names, np.full(len(names), self.latency_s), bandwidth, route)


@dataclass(frozen=True)
class Rails(Network):
    """Hosts of several accelerators, all connected inside, each with a network card of its own on its own rail.

    An accelerator reaches those of the same index on other hosts over its card; to reach another index it first hands
    the data to the accelerator of that index on its own host (NCCL's PXN).

    Args:
        devices_per_host: > 0.
        inside_latency_s: between two accelerators of a host, >= 0.
        inside_bandwidth_bytes_per_s: of an accelerator into and out of its host's fabric, each, > 0.
        latency_s: from card to card, >= 0.
        bandwidth_bytes_per_s: of a card in each direction, > 0.
    """

    devices_per_host: int
    inside_latency_s: float
    inside_bandwidth_bytes_per_s: float
    latency_s: float
    bandwidth_bytes_per_s: float

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.devices_per_host > 0, "hardware.network.devices_per_host", "must be > 0", self.devices_per_host)
        _require_latency("inside_latency_s", self.inside_latency_s)
        _require_bandwidth("inside_bandwidth_bytes_per_s", self.inside_bandwidth_bytes_per_s)
        _require_latency("latency_s", self.latency_s)
        _require_bandwidth("bandwidth_bytes_per_s", self.bandwidth_bytes_per_s)

    def hosts(self, num_devices: int) -> np.ndarray:
        """Filled one after the other."""
        return np.arange(num_devices) // self.devices_per_host

    def wires(self, num_devices: int) -> Wires:
        """`device<i>.out`, `device<i>.in` inside, `card<i>.up`, `card<i>.down` outside."""
        slots = -(-num_devices // self.devices_per_host) * self.devices_per_host
        names = [f"device{i}.{way}" for way in ("out", "in") for i in range(slots)] + _ports("card", slots)
        latency_s = np.repeat([self.inside_latency_s, 0.0, self.latency_s, 0.0], slots)
        inside, outside = self.inside_bandwidth_bytes_per_s, self.bandwidth_bytes_per_s
        bandwidth = np.repeat([inside, inside, outside, outside], slots)

        def route(sources: np.ndarray, destinations: np.ndarray) -> np.ndarray:
            per_host = self.devices_per_host
            over = sources // per_host * per_host + destinations % per_host  # destination's rail, source's host
            same_host, same_device = sources // per_host == destinations // per_host, over == sources
            return np.stack(
                [
                    np.where(same_device, -1, sources),
                    np.where(same_device, -1, slots + over),
                    np.where(same_host, -1, 2 * slots + over),
                    np.where(same_host, -1, 3 * slots + destinations),
                ],
                1,
            )

        return Wires(names, latency_s, bandwidth, route)


@dataclass(frozen=True)
class Star(Network):
    """Sites around one core that is never the bottleneck; workers are dealt to them round robin.

    Args:
        up_bytes_per_s, down_bytes_per_s: of each site, to the core and from it, > 0.
        latencies_s: of each site to the core, one way, >= 0.
        latency_s: of a host to its site's switch, one way, >= 0.
        bandwidth_bytes_per_s: of a host in each direction, > 0.
    """

    up_bytes_per_s: list[float]
    down_bytes_per_s: list[float]
    latencies_s: list[float]
    latency_s: float
    bandwidth_bytes_per_s: float

    def __post_init__(self) -> None:
        super().__post_init__()
        sites = len(self.up_bytes_per_s)
        require(sites > 0, "hardware.network.up_bytes_per_s", "must have a number for every site", self.up_bytes_per_s)
        for name in ("down_bytes_per_s", "latencies_s"):
            rule = f"must have a number for every site, as up_bytes_per_s has {sites}"
            require(len(getattr(self, name)) == sites, f"hardware.network.{name}", rule, getattr(self, name))
        _require_bandwidth("up_bytes_per_s", min(self.up_bytes_per_s))
        _require_bandwidth("down_bytes_per_s", min(self.down_bytes_per_s))
        _require_latency("latencies_s", min(self.latencies_s))
        _require_latency("latency_s", self.latency_s)
        _require_bandwidth("bandwidth_bytes_per_s", self.bandwidth_bytes_per_s)

    def hosts(self, num_devices: int) -> np.ndarray:
        """One each."""
        return np.arange(num_devices)

    def wires(self, num_devices: int) -> Wires:
        """`host<i>.up`, `host<i>.down`, `site<i>.up` and `site<i>.down`."""
        sites = len(self.up_bytes_per_s)
        names = _ports("host", num_devices) + _ports("site", sites)
        latency_s = np.concatenate([np.full(2 * num_devices, self.latency_s), self.latencies_s, self.latencies_s])
        hosts = np.full(2 * num_devices, self.bandwidth_bytes_per_s)
        bandwidth = np.concatenate([hosts, self.up_bytes_per_s, self.down_bytes_per_s])

        def route(sources: np.ndarray, destinations: np.ndarray) -> np.ndarray:
            up, down = sources % sites, destinations % sites
            between = np.stack([2 * num_devices + up, 2 * num_devices + sites + down], 1)
            between[up == down] = -1
            return np.column_stack([sources, between, num_devices + destinations])

        return Wires(names, latency_s, bandwidth, route)


@dataclass(frozen=True)
class Edges(Network):
    """Any graph: hosts are `host0`, `host1`, ..., every other name is a switch. Ways are the shortest by latency.

    Args:
        devices_per_host: workers of each host, which share its links, > 0.
        inside_latency_s: between two workers of a host, >= 0.
        inside_bandwidth_bytes_per_s: of a host, shared by all that its workers tell each other, > 0.
        edges: [one end, other end, latency in s, bytes/s in each direction]; a link is named `one-other`.
    """

    devices_per_host: int
    inside_latency_s: float
    inside_bandwidth_bytes_per_s: float
    edges: list[Any]

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.devices_per_host > 0, "hardware.network.devices_per_host", "must be > 0", self.devices_per_host)
        _require_latency("inside_latency_s", self.inside_latency_s)
        _require_bandwidth("inside_bandwidth_bytes_per_s", self.inside_bandwidth_bytes_per_s)
        for edge in self.edges:
            rule = "must be lists [one end, other end, latency in s >= 0, bytes/s > 0]"
            require(_is_edge(edge), "hardware.network.edges", rule, edge)
            twins = [other for other in self.edges if {*other[:2]} == {*edge[:2]}]
            require(len(twins) == 1, "hardware.network.edges", "must name each pair of ends once", twins)
        names = Counter(f"{a}-{b}" for one, other, *_ in self.edges for a, b in ((one, other), (other, one)))
        name, times = max(names.items(), key=itemgetter(1), default=("", 1))
        rule = "must have ends that give each link, named one-other, a name of its own"
        require(times == 1, "hardware.network.edges", rule, name)

    def hosts(self, num_devices: int) -> np.ndarray:
        """Filled one after the other."""
        return np.arange(num_devices) // self.devices_per_host

    def wires(self, num_devices: int) -> Wires:
        """`<a>-<b>` and `<b>-<a>` for every edge, `host<i>` inside."""
        num_hosts = -(-num_devices // self.devices_per_host)
        directed = [(a, b, *cost) for a, b, *cost in self.edges] + [(b, a, *cost) for a, b, *cost in self.edges]
        names = [f"host{host}" for host in range(num_hosts)] + [f"{a}-{b}" for a, b, _, _ in directed]
        latency_s = [self.inside_latency_s] * num_hosts + [edge[2] for edge in directed]
        bandwidth = [self.inside_bandwidth_bytes_per_s] * num_hosts + [edge[3] for edge in directed]
        index = {(a, b): num_hosts + i for i, (a, b, _, _) in enumerate(directed)}
        ways = {f"host{host}": self._ways(f"host{host}", directed) for host in range(num_hosts)}

        def links(source: int, destination: int) -> list[int]:
            a, b = (f"host{device // self.devices_per_host}" for device in (source, destination))
            if a == b:
                return [source // self.devices_per_host]
            if b not in ways[a]:
                raise UserError(
                    f"hardware.network.edges must connect all hosts, got no way from {a} to {b} for "
                    f"{num_devices} ranks, workers and servers, {self.devices_per_host} on each host: add edges, or "
                    "take fewer hardware.num_workers"
                )
            return [index[pair] for pair in pairwise(ways[a][b])]

        def route(sources: np.ndarray, destinations: np.ndarray) -> np.ndarray:
            rows = [links(*pair) for pair in zip(sources.tolist(), destinations.tolist(), strict=True)]
            table = np.full((len(rows), max(map(len, rows), default=0)), -1)
            for row, hops in zip(table, rows, strict=True):
                row[: len(hops)] = hops
            return table

        return Wires(names, np.array(latency_s), np.array(bandwidth), route)

    def _ways(self, source: str, directed: list[tuple]) -> dict[str, tuple[str, ...]]:
        """The nodes of the shortest way to each node; of equal ones that of fewest hops, then the first by name."""
        near: dict[str, list[tuple[str, float]]] = {}
        for a, b, latency_s, _ in directed:
            near.setdefault(a, []).append((b, latency_s))
        ways: dict[str, tuple[str, ...]] = {}
        heap: list[tuple[float, int, tuple[str, ...]]] = [(0.0, 1, (source,))]
        while heap:
            length_s, hops, way = heappop(heap)
            if way[-1] not in ways:
                ways[way[-1]] = way
                for node, latency_s in near.get(way[-1], []):
                    heappush(heap, (length_s + latency_s, hops + 1, (*way, node)))
        return ways


def _is_edge(edge: Any) -> bool:
    return (
        isinstance(edge, list)
        and len(edge) == 4
        and all(isinstance(end, str) for end in edge[:2])
        and all(isinstance(number, (int, float)) for number in edge[2:])
        and edge[2] >= 0
        and edge[3] > 0
    )


def _ports(kind: str, count: int) -> list[str]:
    return [f"{kind}{i}.{way}" for way in ("up", "down") for i in range(count)]


def _require_latency(name: str, value: float) -> None:
    require(value >= 0, f"hardware.network.{name}", "must be >= 0", value)


def _require_bandwidth(name: str, value: float) -> None:
    require(value > 0, f"hardware.network.{name}", "must be > 0", value)
