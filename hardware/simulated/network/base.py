"""What a network is: a description, and the links it comes down to."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches

import numpy as np

from harness.errors import UserError, require

Route = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True, eq=False)
class Wires:
    """Directed links, and the ways over them.

    Args:
        names: of the links.
        latency_s: of each link, shape (links,).
        bandwidth_bytes_per_s: of each link, shape (links,).
        route: from devices `sources` to `destinations`, both of shape (transfers,): the links of each in order, shape
            (transfers, most hops), filled up with -1.
    """

    names: list[str]
    latency_s: np.ndarray
    bandwidth_bytes_per_s: np.ndarray
    route: Route


@dataclass(frozen=True)
class Network(ABC):
    """How devices are connected; one device per worker.

    Args:
        background: bytes/s that others take of a link all the time, by link.
        changes: by link, factors of its bandwidth, each from a virtual time in seconds on; 0 is broken.
    """

    background: dict[str, float]
    changes: dict[str, dict[float, float]]

    def __post_init__(self) -> None:
        for link, factors in self.changes.items():
            for time_s, factor in factors.items():
                require(time_s >= 0, f"hardware.network.changes.{link}", "must have times >= 0 s", time_s)
                require(factor >= 0, f"hardware.network.changes.{link}", "must have factors >= 0", factor)

    @abstractmethod
    def hosts(self, num_devices: int) -> np.ndarray:
        """The host of each device, shape (num_devices,)."""

    @abstractmethod
    def wires(self, num_devices: int) -> Wires:
        """The links among `num_devices` devices.

        Raises:
            UserError: if it cannot have so many.
        """

    @property
    def breaks(self) -> bool:
        """Whether some link is broken at some time."""
        return any(factor == 0 for factors in self.changes.values() for factor in factors.values())

    def check(self, num_devices: int) -> None:
        """Refuse what cannot be.

        Raises:
            UserError: if there is no way between two devices, or a link is named that there is not, or has less
                bandwidth than others take of it.
        """
        wires = self.wires(num_devices)
        wires.route(np.zeros(num_devices, np.int64), np.arange(num_devices))  # links go both ways: this is to all
        bandwidth = dict(zip(wires.names, wires.bandwidth_bytes_per_s.tolist(), strict=True))
        for field, links in (("background", self.background), ("changes", self.changes)):
            for link in links:
                if link not in bandwidth:
                    near = get_close_matches(link, wires.names, 3, 0.0)
                    raise UserError(f"hardware.network.{field} must name links, such as {', '.join(near)}, got {link}")
        for link, taken in self.background.items():
            rule = f"must be in [0, {bandwidth[link]:g}), the link's bandwidth"
            require(0 <= taken < bandwidth[link], f"hardware.network.background.{link}", rule, taken)
            for factor in self.changes.get(link, {}).values():
                rule = f"must leave more than the background takes, {taken:g} bytes/s, or be 0 for a break"
                fits = factor == 0 or factor * bandwidth[link] > taken
                require(fits, f"hardware.network.changes.{link}", rule, factor)
