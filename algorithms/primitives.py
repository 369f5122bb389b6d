"""How long the primitives of communication take, by size of the message: what every algorithm here is made of.

    push             every other worker sends to worker 0, which stands for a server
    pull             worker 0 sends to every other worker that has asked for it
    broadcast        the message of worker 0, to all
    reduce           the sum of all messages, to worker 0
    all_reduce       the sum of all messages, to all
    all_gather       all messages, to all
    reduce_scatter   a part of the sum of all messages, to each
    barrier          nothing, once all have come

Each is timed as it blocks (sync), and as it is begun (async: `issue`) and then waited for at once (`wait`). Worker 0
issues its answers to a pull once it has heard all questions, which come together. Before each
all workers meet at a barrier, so what is timed is the primitive and not who came late: nearly so on real hardware,
whose barrier lets some go before others. A worker measures the median of its repetitions. There is nothing to train.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median
from typing import ClassVar

import torch
import torch.distributed as dist

from algorithms.base import Algorithm
from harness.errors import require
from harness.problems.base import Problem
from harness.worker import Worker

UNTIMED = 2  # repetitions before those that count: first ones open connections

Works = list[dist.Work | None]  # of operations under way


class Buffers:
    """What primitives send and receive, float32.

    Args:
        size_bytes: of the message; reduce_scatter's is as much longer as it takes to give every worker an equal part.
    """

    def __init__(self, worker: Worker, size_bytes: int) -> None:
        length, self.others = size_bytes // 4, range(1, worker.num_workers)
        part = -(-length // worker.num_workers)
        self.message, self.part, self.whole, self.all, self.questions = (
            torch.zeros(n, device=worker.device)
            for n in (length, part, part * worker.num_workers, length * worker.num_workers, worker.num_workers)
        )

    def of(self, rank: int) -> torch.Tensor:
        """Where the message of a worker goes."""
        return self.all.view(-1, len(self.message))[rank]

    def question(self, rank: int) -> torch.Tensor:
        """That a worker asks."""
        return self.questions[rank : rank + 1]


Primitive = Callable[[int, Buffers, bool], Works]  # at a rank, with messages, blocking or not


def push(rank: int, buffers: Buffers, blocks: bool) -> Works:
    """To worker 0, from all others."""
    if rank > 0:
        return _done(dist.send(buffers.message, 0)) if blocks else [dist.isend(buffers.message, 0)]
    if blocks:
        return _done(*[dist.recv(buffers.of(other), other) for other in buffers.others])
    return [dist.irecv(buffers.of(other), other) for other in buffers.others]


def pull(rank: int, buffers: Buffers, blocks: bool) -> Works:
    """From worker 0, to all others, who ask for it."""
    if blocks:
        _pull_in_turn(rank, buffers)
        return []
    if rank > 0:
        return [dist.isend(buffers.question(rank), 0), dist.irecv(buffers.message, 0)]
    _wait([dist.irecv(buffers.question(other), other) for other in buffers.others])
    return [dist.isend(buffers.message, other) for other in buffers.others]


def _pull_in_turn(rank: int, buffers: Buffers) -> None:
    if rank > 0:
        dist.send(buffers.question(rank), 0)
        dist.recv(buffers.message, 0)
        return
    for other in buffers.others:
        dist.recv(buffers.question(other), other)
        dist.send(buffers.message, other)


def broadcast(rank: int, buffers: Buffers, blocks: bool) -> Works:
    """From worker 0, to all."""
    return [dist.broadcast(buffers.message, 0, async_op=not blocks)]


def reduce(rank: int, buffers: Buffers, blocks: bool) -> Works:
    """A sum, to worker 0."""
    return [dist.reduce(buffers.message, 0, async_op=not blocks)]


def all_reduce(rank: int, buffers: Buffers, blocks: bool) -> Works:
    """A sum, to all."""
    return [dist.all_reduce(buffers.message, async_op=not blocks)]


def all_gather(rank: int, buffers: Buffers, blocks: bool) -> Works:
    """All messages, to all."""
    return [dist.all_gather_single(buffers.all, buffers.message, async_op=not blocks)]


def reduce_scatter(rank: int, buffers: Buffers, blocks: bool) -> Works:
    """A sum, a part to each."""
    return [dist.reduce_scatter_single(buffers.part, buffers.whole, async_op=not blocks)]


def barrier(rank: int, buffers: Buffers, blocks: bool) -> Works:
    """Nothing but coming."""
    return [dist.barrier(async_op=not blocks)]


MESSAGES: tuple[Primitive, ...] = (push, pull, broadcast, reduce, all_reduce, all_gather, reduce_scatter)


@dataclass(frozen=True)
class Primitives(Algorithm):
    """Time every primitive, with messages of some sizes.

    Args:
        sizes_bytes: of the message that a worker hands in (of `pull`, gets), each a multiple of 4, > 0.
        repetitions: of each, timed, >= 1.
    """

    synchronous: ClassVar[bool] = True
    is_sgd: ClassVar[bool] = False
    trains: ClassVar[bool] = False
    learning_rate: ClassVar[float] = 1.0  # type: ignore[misc]  # no settings here: there are no steps,
    batch_size: ClassVar[int] = 1  # type: ignore[misc]  # and no batches

    sizes_bytes: list[int]
    repetitions: int

    def __post_init__(self) -> None:
        fit = bool(self.sizes_bytes) and all(size > 0 and size % 4 == 0 for size in self.sizes_bytes)
        require(fit, "algorithm.sizes_bytes", "must be multiples of 4 above 0", self.sizes_bytes)
        require(self.repetitions >= 1, "algorithm.repetitions", "must be >= 1", self.repetitions)

    def train(self, worker: Worker, problem: Problem) -> None:
        """Time them, all workers alike."""
        for size, primitive in self._chosen(worker.num_workers):
            buffers, key = Buffers(worker, size), f"primitives/{primitive.__name__}/{size}_bytes"
            times = [timed(worker, primitive, buffers) for _ in range(UNTIMED + self.repetitions)][UNTIMED:]
            for name in times[0]:
                worker.measure(f"{key}/{name}", median(each[name] for each in times))
            worker.publish()

    def _chosen(self, num_workers: int) -> Iterator[tuple[int, Primitive]]:
        yield 0, barrier
        for primitive in MESSAGES:
            if num_workers > 1 or primitive not in (push, pull):  # alone, there is nobody to send to
                yield from ((size, primitive) for size in self.sizes_bytes)


def timed(worker: Worker, primitive: Primitive, buffers: Buffers) -> dict[str, float]:
    """Seconds of one call that blocks, and of one that is waited for."""
    begin_s = _meet(worker)
    primitive(worker.rank, buffers, True)
    worker.settle()
    sync_s = worker.clock.now() - begin_s
    begin_s = _meet(worker)
    works = primitive(worker.rank, buffers, False)
    issued_s = worker.clock.now()
    _wait(works)
    worker.settle()
    return {"sync_s": sync_s, "issue_s": issued_s - begin_s, "wait_s": worker.clock.now() - issued_s}


def _meet(worker: Worker) -> float:
    dist.barrier()
    worker.settle()
    return worker.clock.now()


def _wait(works: Works) -> None:
    for work in works:
        assert work is not None
        work.wait()


def _done(*_: object) -> Works:
    return []
