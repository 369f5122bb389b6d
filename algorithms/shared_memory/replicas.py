"""How workers share a model: one for all, or replicas that are merged now and then.

    shared              all workers on one model (Hogwild!, Niu et al., NIPS 2011)
    replica_per_worker  every worker on its own: nothing is contended between two merges
    replica_per_node    one for the workers of a socket: cache lines never cross sockets between two merges
                        (DimmWitted, Zhang and Re, VLDB 2014, section 3.3: PerMachine, PerCore and PerNode)
    hot_replica         every worker has its own replica of the hottest coordinates, the rest is shared

A merge gives what the replica has learnt since its last one, its *delta*, to the common model, and takes the model:

    delta_sum   w <- w + delta
    average     w <- w + delta / replicas
    ring        as delta_sum, but in turn: a token goes round the replicas, and who does not hold it goes on without
                (HogWild++, Zhang, Hsieh, Akella, ICDM 2016, without its decay of old deltas)

Samples count as processed once the common model has learnt of them, which is also the model that is observed.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from algorithms.shared_memory.precision import decode, encode
from harness.kernels.access import Access
from harness.kernels.base import Model, SplitModel
from harness.kernels.merge import merge
from harness.worker import Worker

SHARING = ("shared", "replica_per_worker", "replica_per_node", "hot_replica")
MERGES = ("delta_sum", "average", "ring")


def as_it_is(model: torch.Tensor) -> torch.Tensor:
    """The model itself: how one is seen that lies in the problem's order."""
    return model


class Replica(ABC):
    """The model that a worker works on.

    Attributes:
        model: what updates are applied to.
        access: how kernels apply them.
        max_chunk: samples between two calls of `processed`, at most; None for any number.
    """

    model: Model
    access: Access
    max_chunk: int | None = None

    @abstractmethod
    def processed(self, samples: int, updates: int = 1) -> None:
        """Note what has been done to the model."""

    @abstractmethod
    def whole(self) -> torch.Tensor:
        """The common model in numbers, shape (parameters,): what is observed. It may be the memory of the model."""

    def merge(self) -> None:  # noqa: B027 - one model for all needs none
        """Give to the others what they do not know yet."""

    def finish(self) -> None:  # noqa: B027 - one model for all is finished at any time
        """Merge a last time."""

    @contextmanager
    def locked(self, worker: Worker) -> Iterator[None]:
        """Around an update that no kernel does."""
        if self.access.locking == "none":
            yield
        else:
            with worker.lock("model"):
                yield


class Alone(Replica):
    """A model of one worker's own."""

    def __init__(self, worker: Worker, weights: torch.Tensor) -> None:
        self.model: torch.Tensor = weights
        self.access = Access()
        self._worker = worker

    def whole(self) -> torch.Tensor:
        """The model."""
        return self.model

    def processed(self, samples: int, updates: int = 1) -> None:
        """Observe the model."""
        self._worker.observe(self.model, samples, updates)


class Shared(Replica):
    """One model for all workers.

    Args:
        weights: initial, as they lie in memory, shape (parameters,).
        precision: the numbers it is stored as, one of `PRECISIONS`.
        restore: gives the weights in the problem's order.
    """

    def __init__(
        self,
        worker: Worker,
        weights: torch.Tensor,
        access: Access,
        precision: str,
        restore: Callable[[torch.Tensor], torch.Tensor] = as_it_is,
    ) -> None:
        self.model: torch.Tensor = worker.shared("model", encode(weights, precision, access.quantum))
        self.access = access
        self._worker, self._precision, self._restore = worker, precision, restore

    def processed(self, samples: int, updates: int = 1) -> None:
        """Observe the model."""
        self._worker.observe(self.whole, samples, updates)

    def whole(self) -> torch.Tensor:
        """The model, decoded, in the problem's order."""
        return self._restore(decode(self.model, self._precision, self.access.quantum))


class Merged(Replica):
    """A replica that is merged into a common model.

    Args:
        weights: initial, as they lie in memory, shape (parameters,).
        member: the replica's number, 0 .. members - 1; the worker's own, or its node's.
        rule: of merging, one of `MERGES`.
        every: samples of this worker between two merges.
        part: name of the part of the model that this is.
        whole: the whole model, of which this is a part; None where it is the whole.
        restore: gives the whole model in the problem's order.
    """

    def __init__(
        self,
        worker: Worker,
        weights: torch.Tensor,
        access: Access,
        member: int,
        members: int,
        rule: str,
        every: int,
        part: str = "model",
        whole: Callable[[], torch.Tensor] | None = None,
        restore: Callable[[torch.Tensor], torch.Tensor] = as_it_is,
    ) -> None:
        self.common = worker.shared(part, weights)
        self.model: torch.Tensor = _of_member(worker, f"{part} of replica", weights, member, members)
        self.access, self.max_chunk = access, every
        self._worker, self._member, self._members, self._rule, self._every = worker, member, members, rule, every
        self._known = _of_member(worker, f"{part} known to replica", weights, member, members)
        self._turn = worker.shared("turn", torch.zeros((), dtype=torch.int64))
        self._workers = worker.shared("workers of replicas", torch.zeros(members, dtype=torch.int64))
        with worker.lock("merge"):
            self._workers[member] += 1
        worker.meet()
        self._whole, self._restore = whole or (lambda: self.common), restore
        self._samples = self._updates = 0
        with worker.clock.paused():
            none = weights[:0]
            merge(none, none, none, 1.0)  # so that no clock sees the compiler

    def processed(self, samples: int, updates: int = 1) -> None:
        """Merge if it is time."""
        self._samples, self._updates = self._samples + samples, self._updates + updates
        if self._samples >= self._every:
            with self._worker.lock("merge"):
                if self._rule == "ring" and int(self._turn) != self._member:
                    return
                self._merge()
            self._tell()

    def whole(self) -> torch.Tensor:
        """The common model, or the one that this is a part of, in the problem's order."""
        return self._restore(self._whole())

    def merge(self) -> None:
        """Merge now, in turn or not."""
        with self._worker.lock("merge"):
            self._merge()
        self._tell()

    def finish(self) -> None:
        """Merge a last time, in turn or not, and leave the ring."""
        with self._worker.lock("merge"):
            self._merge()
            self._workers[self._member] -= 1
            self._pass_on()
        self._tell()

    def _merge(self) -> None:
        share = 1 / self._members if self._rule == "average" else 1.0
        self._worker.merge(self.model, self._known, self.common, share)
        self._pass_on()

    def _pass_on(self) -> None:
        """Give the token to the next replica that somebody works on."""
        if self._rule == "ring" and int(self._turn) == self._member:
            round_trip = [(self._member + step) % self._members for step in range(1, self._members + 1)]
            self._turn.fill_(next((member for member in round_trip if self._workers[member] > 0), self._member))

    def _tell(self) -> None:
        samples, updates, self._samples, self._updates = self._samples, self._updates, 0, 0
        if samples:
            self._worker.observe(self.whole, samples, updates)


class HotReplica(Replica):
    """One model for all workers but for its hottest coordinates, of which each has a replica.

    Args:
        weights: initial, as they lie in memory, shape (parameters,).
        hot: the parameters to replicate, as they lie, int64, shape (K,).
        restore: gives the weights in the problem's order.
    """

    def __init__(
        self,
        worker: Worker,
        weights: torch.Tensor,
        access: Access,
        hot: torch.Tensor,
        rule: str,
        every: int,
        restore: Callable[[torch.Tensor], torch.Tensor] = as_it_is,
    ) -> None:
        self._cold = worker.shared("model", weights)
        own = (worker, weights[hot], access, worker.rank, worker.num_workers, rule, every)
        self._hot, self._places = Merged(*own, "hot coordinates", self._laid, restore), hot
        self.max_chunk = every
        slots = torch.full((len(weights),), -1, dtype=torch.int32)
        slots[hot] = torch.arange(len(hot), dtype=torch.int32)
        self.model: SplitModel = SplitModel(self._cold, self._hot.model, slots)
        self.access = access

    def processed(self, samples: int, updates: int = 1) -> None:
        """Merge the hot coordinates if it is time."""
        self._hot.processed(samples, updates)

    def merge(self) -> None:
        """Merge the hot coordinates now."""
        self._hot.merge()

    def finish(self) -> None:
        """Merge the hot coordinates a last time."""
        self._hot.finish()

    def whole(self) -> torch.Tensor:
        """The shared coordinates, with the common hot ones in their places, in the problem's order."""
        return self._hot.whole()

    def _laid(self) -> torch.Tensor:
        return self._cold.index_copy(0, self._places, self._hot.common)


def _of_member(worker: Worker, name: str, weights: torch.Tensor, member: int, members: int) -> torch.Tensor:
    """A tensor of one replica: private to a worker, or shared by the workers of a node and in its memory."""
    if members == worker.num_workers:
        return weights.clone()
    return [worker.shared(f"{name} {node}", weights, node) for node in range(members)][member]
