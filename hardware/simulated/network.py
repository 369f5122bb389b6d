"""The network: how long a step of transfers takes.

A `Network` is a description; `connect` makes its `Links`, the state of one run. Whoever executes a plan only asks the
links when a step has arrived, so another model of contention is another pair of these classes.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import simpy

from hardware.simulated.collectives import Step
from harness.errors import require


class Links(ABC):
    """The links of one run, with what is under way on them."""

    @abstractmethod
    def send(self, step: Step, hosts: np.ndarray) -> simpy.Event:
        """Begin all transfers of a step now.

        Args:
            hosts: the host of every rank the step speaks of, shape (ranks,).

        Returns:
            an event that happens when the last byte has arrived.
        """


@dataclass(frozen=True)
class Network(ABC):
    """How hosts are connected; one host per worker."""

    @abstractmethod
    def connect(self, env: simpy.Environment, num_hosts: int) -> Links:
        """Links among `num_hosts` hosts, idle."""


@dataclass(frozen=True)
class Switch(Network):
    """Hosts on one switch that is never the bottleneck; each has one full-duplex port.

    A step takes the latency plus the bytes of its busiest port over the bandwidth. What is sent while a port is busy
    queues behind it, first in, first out.

    Args:
        latency_s: from port to port, >= 0.
        bandwidth_bytes_per_s: of a port in each direction, > 0.
    """

    latency_s: float
    bandwidth_bytes_per_s: float

    def __post_init__(self) -> None:
        require(self.latency_s >= 0, "hardware.network.latency_s", "must be >= 0", self.latency_s)
        rate = self.bandwidth_bytes_per_s
        require(rate > 0, "hardware.network.bandwidth_bytes_per_s", "must be > 0", rate)

    def connect(self, env: simpy.Environment, num_hosts: int) -> Links:
        """Idle ports."""
        return _Ports(self, env, num_hosts)


class _Ports(Links):
    def __init__(self, switch: Switch, env: simpy.Environment, num_hosts: int) -> None:
        self._switch, self._env = switch, env
        self._out_free_s = np.zeros(num_hosts)  # when each port has sent all it was given
        self._in_free_s = np.zeros(num_hosts)

    def send(self, step: Step, hosts: np.ndarray) -> simpy.Event:
        """Queue every transfer at the port it leaves and the port it enters."""
        senders, sent_bytes = step.sent
        receivers, received_bytes = step.received
        end_s = max(
            self._occupy(self._out_free_s, hosts[senders], sent_bytes),
            self._occupy(self._in_free_s, hosts[receivers], received_bytes),
        )
        return self._env.timeout(end_s + self._switch.latency_s - self._env.now)

    def _occupy(self, free_s: np.ndarray, ports: np.ndarray, payload_bytes: np.ndarray) -> float:
        end_s = np.maximum(free_s[ports], self._env.now) + payload_bytes / self._switch.bandwidth_bytes_per_s
        free_s[ports] = end_s
        return float(end_s.max())
