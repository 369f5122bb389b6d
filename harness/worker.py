"""The Worker: all an algorithm sees of the machine it runs on.

`Worker` is final and holds the rules that are the same everywhere (budget, order of samples, observations).
What differs between a pinned thread, a process and a simulated rank is behind `Place`.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from harness.batch import Samples
from harness.clock import Clock
from harness.dealing import Dealer
from harness.errors import UserError, require
from harness.interleaving import Decisions, Interleaving
from harness.kernels.access import Access
from harness.kernels.base import Kernel, Model
from harness.kernels.merge import check_mergeable
from harness.measures import Conclusion, check_told
from harness.observer import Observed, Observer
from harness.place import Place
from harness.problems.base import Problem
from harness.program import Program
from harness.streaming import Stream, Streamed, serve

MAX_CHUNK = 4096  # samples; beyond, the cost of asking for them no longer shows, two workers who ask at once included


class Worker:
    """One worker of a run.

    Attributes:
        rank: 0 .. num_workers - 1, or beyond that if it is a server.
        node: 0 .. num_nodes - 1, of the socket it sits on; each of them holds a worker of this run.
        seed: of the run; equal on every worker.
        device: where its model lives.
        generator: random numbers of this worker alone, from (seed, rank).
        budget: global samples to process; `batches` keeps to it.
        elapsed_epochs: dealt to all workers before the last batch was; equal on workers in lockstep.
        total_epochs: of the whole run.
        epoch: of the last batch dealt, from 0.
        sees_values: whether models have any; if not, nothing is copied of what is observed.
        last_observed: copies the model that this worker observed last, as it is now; None if it has observed none.
        position: of the last batch dealt by `epochs`: where in its epoch it begins, from 0.
    """

    def __init__(self, place: Place, program: Program) -> None:
        self.rank, self.num_workers = place.rank, program.workers(place.num_workers)
        self.node, self.num_nodes = place.node, place.num_nodes
        self.device, self.seed, self.sees_values = place.device, program.seed, not program.problem.is_fake
        self.generator = torch.Generator().manual_seed(program.seed * 1_000_003 + place.rank)
        self._place, self.budget, self._milestones = place, program.budget_samples, program.milestones
        self._salt = int(np.random.SeedSequence((program.seed, place.rank)).generate_state(1, np.uint64)[0]) >> 1
        self._shared: set[str] = set()  # names
        self.total_epochs, self.elapsed_epochs = program.budget_samples / program.problem.num_samples, 0.0
        self.epoch = self.position = 0
        self._thread, self._own = threading.get_ident(), threading.local()  # of each activity: `locks`, names it holds
        place.interleaving, place.measures = Interleaving(), {}
        met = self.rank, place.interleaving, program.replay
        self._sources = Decisions("sources", "receives", *met)
        self._turns, self._times = Decisions("turns", "takes turns", *met), Decisions("times", "reads the clock", *met)
        self._observer, self._dealer = Observer(place, program), Dealer(place, program)
        self.last_observed = self._observer.last
        self._data, self._stream = program.data, None
        if self.rank < self.num_workers or program.data.servers():
            self._dealer.order(program.problem.num_samples)  # now, so that no clock sees it
        if isinstance(program.data, Streamed) and self.rank < self.num_workers:
            self._stream = Stream(program.data, place.all_ranks())

    @property
    def clock(self) -> Clock:
        """The run's own clock."""
        return self._place.clock

    def batches(self, problem: Problem, batch_size: int) -> Iterator[Samples]:
        """Deal this worker's batches until the *global* budget is spent.

        Synchronous algorithms take equal batches (the budget is rounded up to a multiple of the number of workers);
        asynchronous ones take the next batch as soon as they ask. The last batch may be smaller.

        Yields:
            int32 sample indices, shape (batch_size,), or the rows where data servers send them.

        Raises:
            UserError: where the data policy moves rows, which needs `visits`.
        """
        self._dealer.check_unmoved()
        order = self._dealer.order(problem.num_samples)
        if self._stream is None:
            for position, size in self._dealt(problem.num_samples, batch_size):
                yield order.rows(position, position + size)
            return
        positions = self._dealer.positions(problem.num_samples, batch_size)
        for elapsed, batch in self._stream.batches(problem, order, positions):
            self._deal(elapsed, len(batch))
            yield batch

    def visits(self, kernel: Kernel, batch_size: int) -> Iterator[tuple[Kernel, torch.Tensor]]:
        """As `batches`, for a native kernel: rows lie where the data policy says, and are permuted if it says so.

        A batch that an epoch's end goes through comes in two parts.

        Yields:
            the kernel to run, and int32 indices of its samples, shape (<= batch_size,).
        """
        num_samples, dealer = len(kernel.indptr) - 1, self._dealer
        dealer.check_at_hand()
        with self.clock.paused():
            rows = dealer.rows(kernel, num_samples)
        for epoch, start, stop in dealer.within_epochs(self._dealt(num_samples, batch_size), num_samples):
            if rows.turn(epoch):
                self.meet()
            if start < stop:
                yield rows.kernel, rows.samples(epoch, start, stop)

    def epochs(self, problem: Problem, batch_size: int) -> Iterator[tuple[int, Iterator[torch.Tensor]]]:
        """Deal this worker's batches as `batches` does, epoch by epoch: none reaches into the next epoch.

        For asynchronous algorithms that do something between epochs. Every worker goes through all epochs, even one
        whose batches others were faster to claim.

        Yields:
            the epoch, from 0, and this worker's batches of it, all of which must be taken.

        Raises:
            UserError: where the data policy moves rows, or sends them.
        """
        self._dealer.check_unmoved()
        self._dealer.check_at_hand()
        order = self._dealer.order(problem.num_samples)

        def of_epoch(epoch: int, group: Iterator[tuple[int, int, int, int]]) -> Iterator[torch.Tensor]:
            for _, first, own, size in group:
                self.elapsed_epochs, self.epoch, self.position = epoch + first / problem.num_samples, epoch, first
                if size:
                    yield order.rows(own, own + size)

        for epoch, group in groupby(self._dealer.epochs(problem.num_samples, batch_size), key=itemgetter(0)):
            yield epoch, of_epoch(epoch, group)

    def batches_of(self, samples: torch.Tensor, batch_size: int) -> Iterator[torch.Tensor]:
        """Cut samples that the algorithm has chosen itself, whatever budget and data policy say, into batches.

        Yields:
            parts of `samples`, shape (<= batch_size,).

        Raises:
            UserError: where samples are at some workers only.
        """
        self._dealer.check_at_hand()
        self._dealer.check_everywhere()
        for batch in samples.to(self.device).split(batch_size):
            self._place.dealt(len(batch))
            yield batch

    @property
    def chunk_size(self) -> int:
        """Samples to take at a time where each is an update: few enough to observe in time and to share the budget."""
        return max(1, min(MAX_CHUNK, self._milestones[0], self.budget // (8 * self.num_workers)))

    def shared(self, name: str, tensor: torch.Tensor, node: int | None = None) -> torch.Tensor:
        """One tensor seen by all workers, initialised from rank 0's `tensor` (needs shared memory).

        Every worker calls it for the same tensors in the same order.

        Args:
            name: of this tensor alone.
            node: 0 .. num_nodes - 1, in whose memory all of it lies; None leaves that to the hardware's settings.

        Raises:
            UserError: where workers share no memory or do not agree, for a name used before, or a node there is not.
        """
        call = f"worker.shared({name!r})"
        require(name not in self._shared, call, "must be given each name once", name)
        there = node is None or 0 <= node < self.num_nodes
        require(there, call, f"must be given a node from 0 to {self.num_nodes - 1}, or None", node)
        self._shared.add(name)
        return self._place.shared(name, tensor, node)

    def run(
        self,
        kernel: Kernel,
        model: Model,
        samples: torch.Tensor,
        learning_rate: float,
        access: Access | None = None,
    ) -> None:
        """Run a native kernel: one call when real, one event per read and write when simulated.

        Args:
            model: private, shared or split.
            samples: int32 indices, shape (n,).
            access: how updates get to a shared model; lock-free by default. All workers must use the same.
        """
        self._place.run(kernel, model, samples, learning_rate, access or Access(), self._salt)
        self._salt = (self._salt + len(samples)) % 2**63

    def receive(self, tensor: torch.Tensor, tag: int = 0) -> int:
        """Receive a message from whoever sends one first; a run that is repeated hears them in the order of the first.

        Returns:
            the rank of the sender, whose message is written into `tensor`.
        """
        return self.begin_receive(tensor, tag)()

    def begin_receive(self, tensor: torch.Tensor, tag: int = 0) -> Callable[[], int]:
        """Begin to `receive`: messages of several senders are then under way together.

        Returns:
            what waits for the message, and returns the rank of its sender; to be called in the order of beginning.
        """
        source = self._sources.take()
        work = dist.irecv(tensor, source, tag=tag)
        assert work is not None  # only a rank outside the group gets none

        def wait() -> int:
            work.wait()
            sender = work._source_rank() if source is None else source
            self._sources.note(sender)
            return sender

        return wait

    def measure(self, key: str, value: float) -> None:
        """Note one value of what the summary will have the mean, the 95th percentile and the maximum of.

        Args:
            key: of docs/metrics.md, such as "async/staleness"; whole numbers get a histogram too.
        """
        check_told(self._place.measures, key, list)
        self._place.measures.setdefault(key, []).append(value)

    def conclude(self, key: str, value: Any) -> None:
        """Tell the summary something as it is: one rank of the run does, or the run fails, and the last time counts.

        Args:
            key: of docs/metrics.md.
            value: a number, a string, or lists and mappings of them.
        """
        check_told(self._place.measures, key, Conclusion)
        self._place.measures[key] = Conclusion(value)

    def advance(self, samples: int) -> None:
        """Tell who watches the run of samples that `observe` will be told of later, when a long piece of work ends."""
        self._place.advance(samples)

    def publish(self) -> None:
        """Hand over what has been measured and concluded so far, which an interrupt of the run then leaves."""
        self._place.publish()

    def settle(self) -> None:
        """Wait for all that this worker's device has been given, as who looks at the clock must on an accelerator."""
        self._place.settle()

    def merge(self, model: torch.Tensor, known: torch.Tensor, common: torch.Tensor, share: float) -> None:
        """Merge a replica into a common model in one pass: common += share * (model - known), model = known = common.

        The caller holds a lock that keeps others from merging into `common` meanwhile.

        Args:
            model: the replica, float32 or float64, shape (parameters,), contiguous; the others are like it.
            known: the common model as it was after the replica's last merge.
            share: of what the replica has learnt that the common model takes, in (0, 1].

        Raises:
            UserError: for tensors that differ in shape or dtype, lie in pieces, or hold other numbers.
        """
        check_mergeable(model, known, common)
        self._place.merge(model, known, common, share)

    def background(self, activity: Callable[[], None]) -> None:
        """Start a helper activity of this worker, such as a server or passive averaging."""
        self._place.background(activity)

    def meet(self) -> None:
        """Wait until all workers have come: `dist.barrier` for those who share memory, and may have no process group.

        Raises:
            UserError: in a background activity, or where another worker ends instead.
        """
        self._check_thread("meet()")
        if self.num_workers > 1:
            self._place.meet(self.num_workers)

    @contextmanager
    def slowed(self, factor: float) -> Iterator[None]:
        """A block of computing that takes `factor` times as long, as on a slower device; the rest passes at its end.

        Args:
            factor: >= 1; other workers are not held up by it.

        Raises:
            UserError: for a smaller factor, or in a background activity.
        """
        self._check_thread("slowed(...)")
        require(factor >= 1, "worker.slowed", "must be given a factor >= 1", factor)
        if factor == 1:
            yield
            return
        self._place.settle()
        begin_s = self.clock.now()
        yield
        self._place.settle()
        self._place.spend((factor - 1) * (self.clock.now() - begin_s), idle=False)

    def idle(self, seconds: float) -> None:
        """Do nothing for so much run time, finite and >= 0.

        Raises:
            UserError: for other seconds, or in a background activity.
        """
        self._check_thread("idle(...)")
        require(0 <= seconds < float("inf"), "worker.idle", "must be given finite seconds >= 0", seconds)
        self._place.spend(seconds, idle=True)

    def read_clock(self) -> float:
        """The run's clock, for what shall depend on it; a run that is repeated reads what the first one read."""
        return self._times.decide(self.clock.now())

    @contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """A block in which no other worker, and no background activity, is that asked for the same name.

        Raises:
            UserError: for a name whose lock the caller holds already.
        """
        held: set[str] = self._own.__dict__.setdefault("locks", set())
        if name in held:
            raise UserError(f"worker.lock({name!r}) is held by its caller already: leave it before taking it again")
        with self._place.lock(name):
            held.add(name)
            try:
                yield
            finally:
                held.remove(name)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """A block of the worker itself or of its background activity, of which there is one, but never of both.

        A run that is repeated goes through these blocks in the order of the first.
        """
        mine, waits = int(threading.get_ident() != self._thread), True
        while waits:
            with self.lock(f"turn of rank {self.rank}"):
                if self._turns.foreseen() in (None, mine):
                    self._turns.decide(mine)
                    waits = False
                    yield

    def observe(self, model: Observed, samples: int, updates: int = 1, part: torch.Tensor | None = None) -> None:
        """Tell the harness that this worker has processed `samples` in `updates` updates of `model`.

        At the sample milestones of the run the model is copied, off the clock. In a synchronous algorithm rank 0 speaks
        for all; in a decentralised one every worker's own model is copied, in one that splits it each worker's part.

        Args:
            model: itself, its flat parameters, or what makes those when they are to be copied.
            samples: of the worker's share of the step.
            part: int64 positions of these parameters among the flat ones of a model that is split; parts may overlap.

        Raises:
            Diverged: if a parameter is not finite, at a milestone or one of the 1,000 looks at it in between.
        """
        self._observer.observe(model, samples, updates, part)

    def serve_rows(self, problem: Problem) -> None:
        """Be a data server until all its workers have left."""
        assert isinstance(self._data, Streamed)
        order = self._dealer.order(problem.num_samples)
        serve(self._data, self._place.all_ranks(), problem, order, self.num_workers)

    def finish(self) -> None:
        """Leave the training: what others have yet to reach, this worker's own model is for as it is now."""
        if self._stream is not None:
            self._stream.close()
        self._observer.finish()

    def _check_thread(self, call: str) -> None:
        if threading.get_ident() != self._thread:
            raise UserError(f"worker.{call} must be called by the worker itself, not by a background activity")

    def _dealt(self, num_samples: int, batch_size: int) -> Iterator[tuple[int, int]]:
        for elapsed, position, size in self._dealer.positions(num_samples, batch_size):
            self._deal(elapsed, size)
            yield position, size

    def _deal(self, elapsed_epochs: float, size: int) -> None:
        self.elapsed_epochs, self.epoch = elapsed_epochs, int(elapsed_epochs)
        self._place.dealt(size)
