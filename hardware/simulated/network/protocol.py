"""Protocols: which plan a communication library makes of a collective."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from hardware.simulated.network import plans
from hardware.simulated.network.plans import Plan

KINDS = (
    "all_reduce",
    "all_gather",
    "reduce_scatter",
    "broadcast",
    "reduce",
    "gather",
    "scatter",
    "all_to_all",
    "barrier",
    "message",
)


@dataclass(frozen=True)
class Protocol(ABC):
    """A communication library."""

    @abstractmethod
    def plan(self, kind: str, hosts: np.ndarray, payload_bytes: float, root: int, parts: np.ndarray | None) -> Plan:
        """The plan of one collective or message.

        Args:
            kind: one of `KINDS`.
            hosts: the host of each rank of the group, shape (ranks,); for a message, of source and destination.
            payload_bytes: of the whole: the tensor that all have in the end (all_gather, all_reduce, broadcast), had
                in the beginning (reduce_scatter, reduce), all parts together at the root (gather, scatter), what one
                rank holds (all_to_all), the message.
            root: rank of the group, where there is one.
            parts: bytes from rank i to rank j of an all_to_all with unequal parts, shape (ranks, ranks), else None.
        """


@dataclass(frozen=True)
class Gloo(Protocol):
    """gloo."""

    def plan(self, kind: str, hosts: np.ndarray, payload_bytes: float, root: int, parts: np.ndarray | None) -> Plan:
        """Rings, binomial trees and direct sends."""
        num_ranks = len(hosts)
        if kind == "all_reduce":
            return plans.ring_all_reduce(num_ranks, payload_bytes)
        if kind in ("all_gather", "reduce_scatter"):
            return plans.ring_all_gather(num_ranks, payload_bytes)
        if kind == "all_to_all":
            return plans.pairwise_all_to_all(num_ranks, payload_bytes)
        if kind == "broadcast":
            return plans.binomial_broadcast(num_ranks, payload_bytes, root)
        if kind == "reduce":
            return plans.binomial_reduce(num_ranks, payload_bytes, root)
        if kind == "gather":
            return plans.direct_gather(num_ranks, payload_bytes, root)
        if kind == "scatter":
            return plans.direct_scatter(num_ranks, payload_bytes, root)
        if kind == "barrier":
            return plans.dissemination_barrier(num_ranks)
        return plans.message(payload_bytes)
