"""What a rank of a world says of itself before the run, and what follows for all: cores, devices, addresses."""

import fcntl
import os
import platform
import socket
import struct
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

import torch

from hardware.real import cuda
from hardware.real.topology import Topology, read_topology
from hardware.real.world import World
from harness.errors import UserError

BOOT_ID, TIME_NAMESPACE = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/time")
SIOCGIFADDR = 0x8915  # netdevice(7)


@dataclass(frozen=True)
class Card:
    """One rank.

    Args:
        host: its name, for people.
        machine: equal for ranks that share cores.
        clock: equal for ranks that read the same monotonic clock.
        address: at which others reach it.
        cores: that it may run on.
        device: number of its CUDA device, or None where it sees none.
        device_id: of that device, unique in the world.
    """

    host: str
    pid: int
    machine: str
    clock: str
    address: str
    cores: Topology
    device: int | None
    device_id: str | None
    device_facts: cuda.CudaDevice | None


def own_card(world: World) -> Card:
    """This rank's."""
    boot = BOOT_ID.read_text().strip()
    found = cuda.devices()
    # a launcher may show each rank one device, and it is every rank's first
    device = world.local_rank if world.local_rank < len(found) else 0 if len(found) == 1 else None
    return Card(
        host=platform.node(),
        pid=os.getpid(),
        machine=boot,
        clock=f"{boot} {os.readlink(TIME_NAMESPACE) if TIME_NAMESPACE.is_symlink() else ''}",
        address=_address_of(os.environ.get("GLOO_SOCKET_IFNAME")) or address_towards(world.address),
        cores=read_topology(),
        device=device,
        device_id=None if device is None else str(torch.cuda.get_device_properties(device).uuid),
        device_facts=None if device is None else found[device],
    )


def address_towards(host: str) -> str:
    """The address that this host has on the way to another.

    Raises:
        UserError: if there is no way.
    """
    try:
        family, kind, _, _, to = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
        with closing(socket.socket(family, kind)) as probe:
            probe.connect(to)  # sends nothing
            return str(probe.getsockname()[0])
    except OSError as error:
        raise UserError(f"MASTER_ADDR={host} is no host that this one can reach ({error.strerror})") from error


def _address_of(interface: str | None) -> str | None:
    """The address of a network interface that the user has chosen for gloo."""
    if not interface:
        return None
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as probe:
        request = struct.pack("256s", interface.encode()[:15])
        try:
            return socket.inet_ntoa(fcntl.ioctl(probe.fileno(), SIOCGIFADDR, request)[20:24])
        except OSError as error:
            raise UserError(f"GLOO_SOCKET_IFNAME={interface} has no address here ({error.strerror})") from error


def addresses(cards: Sequence[Card]) -> list[str]:
    """Where each rank listens. For rank 0, whose host may know itself by an address that no other host reaches."""
    outside = [card.address for card in cards if not ip_address(card.address).is_loopback]
    if not outside:
        return [card.address for card in cards]
    return [address_towards(outside[0]) if ip_address(c.address).is_loopback else c.address for c in cards]


def seats(cards: Sequence[Card], threads: int, policy: str) -> list[tuple[int, ...]]:
    """The hardware threads of each rank: those of a machine are dealt to its ranks, unless the launcher has done so."""
    dealt: dict[int, tuple[int, ...]] = {}
    for ranks in together(card.machine for card in cards):
        cores = {cards[rank].cores for rank in ranks}
        if len(cores) > 1:
            dealt |= {rank: every_cpu(cards[rank]) for rank in ranks}
            continue
        dealt |= zip(ranks, (seat.cpus for seat in cores.pop().seats(len(ranks), threads, policy)), strict=True)
    return [dealt[rank] for rank in range(len(cards))]


def every_cpu(card: Card) -> tuple[int, ...]:
    """All hardware threads that a rank may run on."""
    return tuple(sorted({cpu for core in card.cores.cores for cpu in core.cpus}))


def together(keys: Iterable[str]) -> list[list[int]]:
    """Ranks by what they have in common, in the order of their first ones.

    >>> together(["here", "there", "here"])
    [[0, 2], [1]]
    """
    groups: dict[str, list[int]] = {}
    for rank, key in enumerate(keys):
        groups.setdefault(key, []).append(rank)
    return list(groups.values())
