"""Protocols: which plan a communication library makes of a collective, and what that costs beyond the links."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from hardware.simulated.network import doubling, hierarchy, plans, rails, trees
from hardware.simulated.network.plans import Plan
from harness.errors import UserError, require


@dataclass(frozen=True)
class Order:
    """What a plan is asked for.

    Args:
        hosts: the host of each rank of the group, shape (ranks,); for a message, of source and destination.
        payload_bytes: of the whole: the tensor that all have in the end (all_gather, all_reduce, broadcast), had in
            the beginning (reduce_scatter, reduce), all parts together at the root (gather, scatter), what one rank
            holds (all_to_all), the message.
        root: rank of the group, where there is one.
        segment_bytes: at most, of a pipelined step.
        segments: at least, of a pipelined step.
        in_flight: segments under way together.
    """

    hosts: np.ndarray
    payload_bytes: float
    root: int
    segment_bytes: float
    segments: int
    in_flight: int

    def pipelined(self, ring: Plan) -> Plan:
        """A ring in segments."""
        segments = self.segments_of(self.payload_bytes / len(self.hosts) / ring.rings)
        return plans.pipelined(ring, segments, min(self.in_flight, segments))

    def on_rails(self, ring: Plan) -> Plan:
        """A ring for each rank of a host, in segments."""
        return self.pipelined(rails.on_rails(ring, self.hosts))

    def segments_of(self, payload_bytes: float) -> int:
        """How many segments a payload is cut into."""
        return max(self.segments, int(np.ceil(payload_bytes / self.segment_bytes)))


Maker = Callable[[int, float, Order], Plan]  # ranks, payload bytes, order

ALGORITHMS: dict[str, dict[str, Maker]] = {
    "all_reduce": {
        "ring": lambda p, n, order: plans.ring_all_reduce(p, n),
        "pipelined_ring": lambda p, n, order: order.pipelined(plans.ring_all_reduce(p, n)),
        "rail_rings": lambda p, n, order: order.on_rails(plans.ring_all_reduce(p, n)),
        "recursive_doubling": lambda p, n, order: doubling.recursive_doubling(p, n),
        "halving_doubling": lambda p, n, order: doubling.halving_doubling(p, n),
        "tree": lambda p, n, order: trees.binomial_all_reduce(p, n),
        "double_tree": lambda p, n, order: trees.double_tree(p, n, order.segments_of(n / 2)),
        "hierarchical": lambda p, n, order: hierarchy.hierarchical_all_reduce(order.hosts, n),
    },
    "all_gather": {
        "ring": lambda p, n, order: plans.ring_all_gather(p, n),
        "pipelined_ring": lambda p, n, order: order.pipelined(plans.ring_all_gather(p, n)),
        "rail_rings": lambda p, n, order: order.on_rails(plans.ring_all_gather(p, n)),
        "halved_ring": lambda p, n, order: plans.pipelined(plans.ring_all_gather(p, n), 2, 2),
        "direct": lambda p, n, order: plans.direct_all_gather(p, n),
    },
    "reduce_scatter": {
        "ring": lambda p, n, order: plans.ring_all_gather(p, n),
        "pipelined_ring": lambda p, n, order: order.pipelined(plans.ring_all_gather(p, n)),
        "rail_rings": lambda p, n, order: order.on_rails(plans.ring_all_gather(p, n)),
        "direct": lambda p, n, order: plans.direct_all_to_all(p, n),
        "all_reduce": lambda p, n, order: order.pipelined(plans.ring_all_reduce(p, n)),
    },
    "broadcast": {
        "tree": lambda p, n, order: trees.binomial_broadcast(p, n, order.root),
        "scatter_all_gather": lambda p, n, order: trees.scatter_all_gather(p, n, order.root),
    },
    "reduce": {
        "tree": lambda p, n, order: trees.binomial_reduce(p, n, order.root),
        "ring": lambda p, n, order: plans.one_by_one(
            p, plans.ring_all_gather(p, n), plans.direct_gather(p, n, order.root)
        ),
    },
    "gather": {
        "direct": lambda p, n, order: plans.direct_gather(p, n, order.root),
        "tree": lambda p, n, order: trees.binomial_gather(p, n, order.root),
    },
    "scatter": {
        "direct": lambda p, n, order: plans.direct_scatter(p, n, order.root),
        "tree": lambda p, n, order: trees.binomial_scatter(p, n, order.root),
    },
    "all_to_all": {
        "pairwise": lambda p, n, order: plans.pairwise_all_to_all(p, n),
        "direct": lambda p, n, order: plans.direct_all_to_all(p, n),
    },
    "barrier": {"dissemination": lambda p, n, order: plans.dissemination_barrier(p)},
    "message": {"direct": lambda p, n, order: plans.message(n)},
}

_COMMON = {  # choices of every library
    "broadcast": "tree",
    "gather": "direct",
    "scatter": "direct",
    "all_to_all": "direct",
    "barrier": "dissemination",
    "message": "direct",
}


@dataclass(frozen=True)
class Protocol(ABC):
    """A communication library.

    Args:
        algorithms: which plan is made of a kind of collective, where not the library's own choice.
        segment_bytes: at most, of a step of a pipelined plan.
        segments: at least, of a step of a pipelined plan.
        in_flight: segments of a rank under way together.

    Attributes:
        library: torch's name of the backend.
        notices_deaths: whether hosts learn of a peer's end from the connection to it, which breaks; devices never do.
    """

    library: ClassVar[str]
    notices_deaths: ClassVar[bool]

    algorithms: dict[str, str]
    segment_bytes: float
    segments: int
    in_flight: int

    def __post_init__(self) -> None:
        require(self.segment_bytes > 0, "hardware.protocol.segment_bytes", "must be > 0", self.segment_bytes)
        require(self.segments > 0, "hardware.protocol.segments", "must be > 0", self.segments)
        require(self.in_flight > 0, "hardware.protocol.in_flight", "must be > 0", self.in_flight)
        for kind, name in self.algorithms.items():
            require(kind in ALGORITHMS, "hardware.protocol.algorithms", f"must name kinds of {list(ALGORITHMS)}", kind)
            rule = f"must be one of {list(ALGORITHMS[kind])}"
            require(name in ALGORITHMS[kind], f"hardware.protocol.algorithms.{kind}", rule, name)

    def plan(self, kind: str, hosts: np.ndarray, payload_bytes: float, root: int, parts: np.ndarray | None) -> Plan:
        """The plan of one collective or message.

        Args:
            kind: of `ALGORITHMS`.
            hosts, payload_bytes, root: see `Order`.
            parts: bytes from rank i to rank j of an all_to_all with unequal parts, shape (ranks, ranks), else None.
        """
        name = self.algorithms.get(kind) or self.choice(kind, hosts, payload_bytes)
        if parts is not None:
            one_by_one = plans.unequal_all_to_all(parts)
            made = plans.at_once(one_by_one) if name == "direct" else one_by_one
            return self.priced(made, hosts, float(parts.sum(1).max()))
        order = Order(hosts, payload_bytes, root, self.segment_bytes, self.segments, self.in_flight)
        return self.priced(ALGORITHMS[kind][name](len(hosts), payload_bytes, order), hosts, payload_bytes)

    @abstractmethod
    def choice(self, kind: str, hosts: np.ndarray, payload_bytes: float) -> str:
        """The library's own choice."""

    @abstractmethod
    def priced(self, plan: Plan, hosts: np.ndarray, payload_bytes: float) -> Plan:
        """The plan with what the library adds to it."""


@dataclass(frozen=True)
class Gloo(Protocol):
    """Gloo, the library of CPUs.

    Its default all-reduce is a ring in segments of at most 1 MiB, at least two of a rank's part, two in flight; its
    all-gather a ring in halves, both in flight; c10d makes its reduce-scatter of an all-reduce.

    Args:
        setup_s: seconds before the first step of every collective, >= 0.
        overhead_s: seconds of every transfer beyond the links' latency, >= 0.
        efficiency: payload over bytes on the wire, in (0, 1].
    """

    setup_s: float
    overhead_s: float
    efficiency: float

    library: ClassVar[str] = "gloo"
    notices_deaths: ClassVar[bool] = True  # over TCP, which the kernel closes when a process ends
    CHOICES: ClassVar[dict[str, str]] = _COMMON | {
        "all_reduce": "pipelined_ring",
        "all_gather": "halved_ring",
        "reduce_scatter": "all_reduce",
        "reduce": "ring",
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.setup_s >= 0, "hardware.protocol.setup_s", "must be >= 0", self.setup_s)
        require(self.overhead_s >= 0, "hardware.protocol.overhead_s", "must be >= 0", self.overhead_s)
        require(0 < self.efficiency <= 1, "hardware.protocol.efficiency", "must be in (0, 1]", self.efficiency)

    def choice(self, kind: str, hosts: np.ndarray, payload_bytes: float) -> str:
        """One for each kind."""
        return self.CHOICES[kind]

    def priced(self, plan: Plan, hosts: np.ndarray, payload_bytes: float) -> Plan:
        """The same for all."""
        return replace(plan, setup_s=self.setup_s, overhead_s=self.overhead_s, efficiency=self.efficiency)


@dataclass(frozen=True)
class Nccl(Protocol):
    """NCCL, the library of GPUs: trees for small payloads, rings in slices for large ones, over every rail of a host.

    NCCL's tree between hosts, whose levels overlap, is not modelled: an all-reduce of middling size goes through hosts
    in two levels, one after the other, which takes up to twice as long.

    Every transfer is made by one of three wire protocols, by size: LL sends a flag with every 4 bytes, LL128 one with
    every 120, Simple none but waits for a fence.

    Args:
        tree_below_bytes: an all-reduce of less goes along the double tree, >= 0.
        rings_above_bytes: an all-reduce over hosts of several ranks that has more for each rank goes around rings, of
            less through the two levels, >= 0.
        ll_below_bytes: payloads of less go by LL, >= 0.
        ll128_below_bytes: payloads of less go by LL128, where that begins and takes its steps sooner than Simple, >= 0.
        setup_s: of each wire protocol, seconds before the first step, >= 0.
        inside_overhead_s: of each, seconds of every transfer between two ranks of one host, >= 0.
        overhead_s: the same between two hosts, >= 0.
        efficiency: of each, payload over bytes on the wire, in (0, 1].
    """

    tree_below_bytes: float
    rings_above_bytes: float
    ll_below_bytes: float
    ll128_below_bytes: float
    setup_s: dict[str, float]
    inside_overhead_s: dict[str, float]
    overhead_s: dict[str, float]
    efficiency: dict[str, float]

    library: ClassVar[str] = "nccl"
    notices_deaths: ClassVar[bool] = False  # kernels on the device wait on, until torch's watchdog ends them
    WIRE_PROTOCOLS: ClassVar[tuple[str, ...]] = ("LL", "LL128", "Simple")
    CHOICES: ClassVar[dict[str, str]] = _COMMON | {
        "all_gather": "rail_rings",
        "reduce_scatter": "rail_rings",
        "reduce": "tree",
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("tree_below_bytes", "rings_above_bytes", "ll_below_bytes", "ll128_below_bytes"):
            require(getattr(self, name) >= 0, f"hardware.protocol.{name}", "must be >= 0", getattr(self, name))
        for name in ("setup_s", "inside_overhead_s", "overhead_s", "efficiency"):
            values = getattr(self, name)
            if set(values) != set(self.WIRE_PROTOCOLS):
                rule = f"must have exactly {', '.join(self.WIRE_PROTOCOLS)}"
                raise UserError(f"hardware.protocol.{name} {rule}, got {', '.join(values)}")
            for wire, value in values.items():
                holds = 0 < value <= 1 if name == "efficiency" else value >= 0
                rule = "must be in (0, 1]" if name == "efficiency" else "must be >= 0"
                require(holds, f"hardware.protocol.{name}.{wire}", rule, value)

    def choice(self, kind: str, hosts: np.ndarray, payload_bytes: float) -> str:
        """By size and by hosts."""
        if kind != "all_reduce":
            return self.CHOICES[kind]
        if payload_bytes < self.tree_below_bytes:
            return "double_tree"
        several = 1 < len(set(hosts.tolist())) < len(hosts)
        return "hierarchical" if several and payload_bytes / len(hosts) < self.rings_above_bytes else "rail_rings"

    def priced(self, plan: Plan, hosts: np.ndarray, payload_bytes: float) -> Plan:
        """By wire protocol: Simple also for a middling payload whose few steps LL128 would not shorten enough."""
        if payload_bytes < self.ll_below_bytes:
            return self._by("LL", plan, hosts)
        wires = ("LL128", "Simple") if payload_bytes < self.ll128_below_bytes else ("Simple",)
        return min((self._by(wire, plan, hosts) for wire in wires), key=lambda each: each.least_s)

    def _by(self, wire: str, plan: Plan, hosts: np.ndarray) -> Plan:
        return replace(
            plan,
            setup_s=self.setup_s[wire],
            overhead_s=self.overhead_s[wire],
            inside_overhead_s=self.inside_overhead_s[wire],
            hosts=hosts,
            efficiency=self.efficiency[wire],
        )
