"""What a worker process is given, and what it offers to the `Worker` on it."""

from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from threading import Lock

import torch

from hardware.real.counters import SharedCounters
from hardware.real.crew import Crew
from hardware.real.locks import SharedLocks
from hardware.real.messages import Arrived, Line, Observed
from hardware.real.parcel import Parcel
from hardware.real.placement import apply_policy, prove, tensor_over
from hardware.real.rank_place import RankPlace, say_failed
from hardware.real.segment import Segment
from harness.place import Observation


@dataclass(frozen=True)
class Launch:
    """All a worker process starts from.

    Args:
        name: who it is, in words.
        environment: the parent's environment variables, which the fork server may not have.
        program: the packed `Program`.
        rendezvous: where the ranks find each other.
        counters, locks, shared: common to all workers.
        snapshots: this worker's own.
    """

    rank: int
    name: str
    crew: Crew
    environment: dict[str, str]
    program: Parcel
    connection: Connection
    rendezvous: Segment
    counters: Segment
    locks: Segment
    shared: Segment
    snapshots: Segment


class ProcessPlace(RankPlace):
    """Where a worker process runs: what all have in common is memory of this machine."""

    def __init__(self, launch: Launch, line: Line) -> None:
        locks = SharedLocks(launch.locks, launch.crew.timeout_s, partial(say_failed, line))
        super().__init__(launch.rank, launch.name, launch.crew, line, SharedCounters(launch.counters), locks)
        self.placement: dict[str, dict[str, object]] = {}
        self._launch = launch
        self._shared: dict[str, torch.Tensor] = {}
        self._appending = Lock()

    def shared(self, name: str, tensor: torch.Tensor, node: int | None) -> torch.Tensor:
        """One tensor in shared memory, placed on the node or by the policy, and initialised by rank 0."""
        self._refuse_on_device(f"worker.shared({name!r}) needs memory that all workers share")
        offset = self.ask(Arrived.to_share(name, tensor, node))
        common = tensor_over(self._launch.shared.map(max(tensor.nbytes, 1), offset), tensor.shape, tensor.dtype)
        policy = self.crew.policy(node)
        if self.rank == 0:
            policy = apply_policy(common, policy, self.crew.numa_nodes)
            common.copy_(tensor.detach())
        self.ask(Arrived("filled", repr(name)))
        self.placement[name] = self.crew.placed(node, policy)
        self._shared[name] = common
        return common

    def report(self, observation: Observation) -> None:
        """Put the snapshot where the parent finds it even if this process is killed next."""
        flat, part = observation.parameters, observation.part
        with self._appending:
            offset = self._append(flat)
            part_offset = None if part is None else self._append(part)
        self.line.say(
            Observed(
                observation.time_s, observation.host_s, observation.samples, observation.updates,
                offset, tuple(flat.shape), flat.dtype, observation.member, observation.milestone, part_offset,
            )
        )  # fmt: skip

    def _append(self, tensor: torch.Tensor) -> int:
        """Put a tensor where the parent finds it; returns where."""
        return self._launch.snapshots.append(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)

    def prove_placement(self) -> dict[str, dict[str, object]]:
        """Where the pages of each shared tensor lie."""
        for name, tensor in self._shared.items():
            self.placement[name]["pages_by_node"] = prove(tensor)
        return self.placement
