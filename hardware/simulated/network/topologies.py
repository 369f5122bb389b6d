"""Topologies as data."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import simpy

from hardware.simulated.network.base import Links, Network, Traffic
from hardware.simulated.network.plans import Plan
from harness.errors import require


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
        require(self.latency_s >= 0, "hardware.network.latency_s", "must be >= 0", self.latency_s)
        rate = self.bandwidth_bytes_per_s
        require(rate > 0, "hardware.network.bandwidth_bytes_per_s", "must be > 0", rate)

    def hosts(self, num_devices: int) -> np.ndarray:
        """One each."""
        return np.arange(num_devices)

    def connect(self, env: simpy.Environment, num_devices: int) -> Links:
        """Idle ports."""
        return _Ports(self, env, num_devices)


class _Ports(Links):
    def __init__(self, switch: Switch, env: simpy.Environment, num_hosts: int) -> None:
        self._switch, self._env = switch, env
        self._out_free_s = np.zeros(num_hosts)  # when each port has sent all it was given
        self._in_free_s = np.zeros(num_hosts)

    def carry(self, plan: Plan, devices: np.ndarray, ended: Callable[[np.ndarray], None]) -> None:
        """Step by step."""
        self._env.process(self._carry(plan, devices, ended))

    def traffic(self) -> dict[str, Traffic]:
        """Not counted."""
        return {}

    def _carry(self, plan, devices, ended):  # type: ignore[no-untyped-def]
        for step in plan.steps():
            out = np.bincount(devices[step.sources], step.payload_bytes, len(self._out_free_s))
            into = np.bincount(devices[step.destinations], step.payload_bytes, len(self._in_free_s))
            end_s = max(self._occupy(self._out_free_s, out), self._occupy(self._in_free_s, into))
            yield self._env.timeout(end_s + self._switch.latency_s - self._env.now)
        ended(np.arange(plan.num_ranks))

    def _occupy(self, free_s, payload_bytes):  # type: ignore[no-untyped-def]
        used = payload_bytes > 0
        end_s = np.maximum(free_s, self._env.now) + payload_bytes / self._switch.bandwidth_bytes_per_s
        free_s[used] = end_s[used]
        return float(end_s.max())
