"""What a network is to the rest of the simulator.

A `Network` is a description; `connect` makes its `Links`, the state of one run. Whoever has a plan to carry out only
asks the links to carry it, and is told when each rank's part of it has ended.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import simpy

from hardware.simulated.network.plans import Plan


@dataclass(frozen=True)
class Traffic:
    """What one link has carried.

    Args:
        payload_bytes: of plans.
        wire_bytes: the same with what the protocol adds.
        busy_s: virtual seconds in which something was under way on it.
    """

    payload_bytes: float
    wire_bytes: float
    busy_s: float


class Links(ABC):
    """The links of one run, with what is under way on them."""

    @abstractmethod
    def carry(self, plan: Plan, devices: np.ndarray, ended: Callable[[np.ndarray], None]) -> None:
        """Begin a plan now.

        Args:
            devices: where each rank of the plan is, shape (ranks,).
            ended: called with ranks of the plan, shape (some,), at the virtual time at which all that they send and
                receive has arrived; every rank is named once.
        """

    @abstractmethod
    def traffic(self) -> dict[str, Traffic]:
        """What each link has carried so far, by name."""


@dataclass(frozen=True)
class Network(ABC):
    """How devices are connected; one device per worker."""

    @abstractmethod
    def hosts(self, num_devices: int) -> np.ndarray:
        """The host of each device, shape (num_devices,)."""

    @abstractmethod
    def connect(self, env: simpy.Environment, num_devices: int) -> Links:
        """Idle links among `num_devices` devices."""
