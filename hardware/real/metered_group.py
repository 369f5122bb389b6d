"""gloo or NCCL with a stopwatch: a `torch.distributed` backend that notes when operations began and ended, and payload.

Unmodified code (`dist.all_reduce`, DistributedDataParallel, FSDP) runs on it. Every operation is the library's own; the
calls below are timed on the way, and anything else passes through untimed. `breakdown.py` matches all ranks' notes.

Payload is what a rank hands in for others: its tensors for all-reduce, all-gather, reduce-scatter, all-to-all and send;
a broadcast's or scatter's at the root only, a reduce's or gather's everywhere but there; nothing in a group of one.
"""

# mypy: disable-error-code="attr-defined, override, call-arg"
# torch's type stubs lack half of these methods and give the others overloads that torch.distributed never calls.

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from itertools import chain
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from hardware.real import staging
from hardware.real.meter import RELEASED, Log, Meter
from hardware.real.stopwatch import stopwatch_of
from harness.errors import UserError

LOOPBACK = "127.0.0.1"


class MeteredWork(dist.Work):
    """The library's handle of an asynchronous operation, with a stopwatch in `wait`."""

    def __init__(self, work: dist.Work, meter: Meter, log: Log, place: int) -> None:
        super().__init__()
        self._work, self._meter, self._log, self._place = work, meter, log, place

    def wait(self, timeout: timedelta = timedelta(0)) -> bool:
        """Block until the operation is over."""
        blocked_s = self._meter.stopwatch.now()
        result = self._work.wait(timeout)
        if math.isnan(self._log.times[self._place + RELEASED]):  # the first wait is the one that counts
            self._meter.finish(self._log, self._place, blocked_s)
        return result

    def get_future(self) -> torch.futures.Future:
        """The future of the operation itself."""
        return self._work.get_future()

    def is_completed(self) -> bool:
        """Whether it is over."""
        return self._work.is_completed()

    def is_success(self) -> bool:
        """Whether it is over and did not fail."""
        return self._work.is_success()

    def exception(self) -> Any:
        """What it failed with."""
        return self._work.exception()

    def result(self) -> list[Tensor]:
        """The output tensors."""
        return self._work.result()

    def source_rank(self) -> int:
        """Whom a message came from."""
        return self._work.source_rank()

    def _source_rank(self) -> int:
        return self._work._source_rank()


@dataclass(frozen=True)
class GroupOptions:
    """What torch hands to a backend, for a group that torch does not know of.

    Args:
        group_id: name of the group.
        timeout: after which an operation fails.
    """

    store: dist.Store
    group_rank: int
    group_size: int
    group_id: str
    timeout: timedelta


class MeteredGroup(dist.ProcessGroup):
    """One rank's view of a group of gloo or NCCL, measured.

    Args:
        options: as torch hands them to a backend: store, rank, size, name.
        meter: takes the notes.
        timeout_s: after which an operation fails.
        device: where this worker's tensors lie.
        name: of the library, "gloo" or "nccl".
        address: at which gloo listens; on this machine alone by default.
    """

    def __init__(
        self, options: Any, meter: Meter, timeout_s: float, device: torch.device, name: str, address: str = LOOPBACK
    ) -> None:
        super().__init__(options.group_rank, options.group_size)
        timeout = min(options.timeout, timedelta(seconds=timeout_s))
        self._library = _nccl(options, timeout) if name == "nccl" else _gloo(options, timeout, address)
        self._name, self._staged = name, name == "gloo" and device.type != "cpu"
        kind = getattr(dist.ProcessGroup.BackendType, name.upper())
        self._register_backend(torch.device(device.type), kind, self._library)
        self._set_default_backend(kind)
        self._plain = dist.ProcessGroup(options.store, options.group_rank, options.group_size)
        self._plain._register_backend(torch.device("cuda" if name == "nccl" else "cpu"), kind, self._library)
        self._own_rank, self._alone = options.group_rank, options.group_size == 1
        self._meter = meter
        self._log = meter.collectives.setdefault(options.group_id, Log())

    def getBackendName(self) -> str:
        """The backend that does the work."""
        return self._name

    def allreduce(self, tensors: list[Tensor], opts: Any = None) -> dist.Work:
        """Sum, or another reduction, on every rank."""
        return self._collective(self._library.allreduce, tensors, opts or dist.AllreduceOptions(), tensors)

    def allreduce_coalesced(self, tensors: list[Tensor], opts: Any = None) -> dist.Work:
        """Several all-reduces as one."""
        opts = opts or dist.AllreduceCoalescedOptions()
        return self._collective(self._library.allreduce_coalesced, tensors, opts, tensors)

    def broadcast(self, tensors: list[Tensor], opts: Any = None) -> dist.Work:
        """The root's tensor on every rank."""
        opts = opts or dist.BroadcastOptions()
        return self._collective(self._library.broadcast, self._at_root(tensors, opts), opts, tensors)

    def reduce(self, tensors: list[Tensor], opts: Any) -> dist.Work:
        """A reduction, on the root."""
        return self._collective(self._library.reduce, self._off_root(tensors, opts), opts, tensors)

    def allgather(self, outputs: list[list[Tensor]], inputs: list[Tensor], opts: Any = None) -> dist.Work:
        """Every rank's tensor on every rank."""
        return self._collective(self._library.allgather, inputs, opts or dist.AllgatherOptions(), outputs, inputs)

    def all_gather_single(self, output: Tensor, input: Tensor, opts: Any = None) -> dist.Work:
        """Every rank's tensor on every rank, in one buffer."""
        opts = opts or dist.AllgatherOptions()
        return self._collective(self._library._allgather_base, [input], opts, output, input)

    def all_gather_single_coalesced(self, outputs: list[Tensor], inputs: list[Tensor], opts: Any = None) -> dist.Work:
        """Several all-gathers as one."""
        opts = opts or dist.AllgatherOptions()
        return self._collective(self._plain.all_gather_single_coalesced, inputs, opts, outputs, inputs)

    def gather(self, outputs: list[list[Tensor]], inputs: list[Tensor], opts: Any) -> dist.Work:
        """Every rank's tensor on the root."""
        return self._collective(self._library.gather, self._off_root(inputs, opts), opts, outputs, inputs)

    def scatter(self, outputs: list[Tensor], inputs: list[list[Tensor]], opts: Any) -> dist.Work:
        """A part of the root's tensors on each rank."""
        sent = self._at_root(chain.from_iterable(inputs), opts)
        return self._collective(self._library.scatter, sent, opts, outputs, inputs)

    def reduce_scatter(self, outputs: list[Tensor], inputs: list[list[Tensor]], opts: Any = None) -> dist.Work:
        """A part of the reduction on each rank."""
        opts = opts or dist.ReduceScatterOptions()
        return self._collective(self._library.reduce_scatter, chain.from_iterable(inputs), opts, outputs, inputs)

    def reduce_scatter_single(self, output: Tensor, input: Tensor, opts: Any = None) -> dist.Work:
        """A part of the reduction on each rank, in one buffer."""
        opts = opts or dist.ReduceScatterOptions()
        return self._collective(self._library._reduce_scatter_base, [input], opts, output, input)

    def reduce_scatter_single_coalesced(
        self, outputs: list[Tensor], inputs: list[Tensor], opts: Any = None
    ) -> dist.Work:
        """Several reduce-scatters as one."""
        opts = opts or dist.ReduceScatterOptions()
        return self._collective(self._plain.reduce_scatter_single_coalesced, inputs, opts, outputs, inputs)

    def alltoall(self, outputs: list[Tensor], inputs: list[Tensor], opts: Any = None) -> dist.Work:
        """A part of every rank's tensors on each rank."""
        return self._collective(self._library.alltoall, inputs, opts or dist.AllToAllOptions(), outputs, inputs)

    def all_to_all_single(
        self, output: Tensor, input: Tensor, output_splits: list[int], input_splits: list[int], opts: Any = None
    ) -> dist.Work:
        """A part of every rank's tensor on each rank, in one buffer."""
        opts = opts or dist.AllToAllOptions()
        call = self._library.alltoall_base
        return self._collective(call, [input], opts, output, input, output_splits, input_splits)

    def barrier(self, opts: Any = None) -> dist.Work:
        """Wait for every rank."""
        return self._collective(self._library.barrier, (), opts or dist.BarrierOptions())

    def send(self, tensors: list[Tensor], destination: int, tag: int) -> dist.Work:
        """A message to one rank."""
        return self._message(self._library.send, False, tensors, destination, tag)

    def recv(self, tensors: list[Tensor], source: int, tag: int) -> dist.Work:
        """A message from one rank."""
        return self._message(self._library.recv, True, tensors, source, tag)

    def recv_anysource(self, tensors: list[Tensor], tag: int) -> dist.Work:
        """A message from whoever sends one."""
        return self._message(self._library.recv_anysource, True, tensors, tag)

    def _message(
        self, call: Callable[..., dist.Work], receives: bool, tensors: list[Tensor], *arguments: int
    ) -> dist.Work:
        if self._name == "nccl":
            raise UserError(
                "hardware.backend=nccl carries collectives, and this algorithm sends messages from worker to worker: "
                "set hardware.backend=gloo"
            )
        meter, log = self._meter, self._meter.messages
        place = meter.start(log, 0 if receives else _count_bytes(tensors))
        begun = staging.message(call, receives, tensors, *arguments) if self._staged else call(tensors, *arguments)
        return MeteredWork(begun, meter, log, place)

    def _collective(
        self, call: Callable[..., dist.Work], sent: Iterable[Tensor], opts: Any, *arguments: Any
    ) -> dist.Work:
        meter, log = self._meter, self._log
        place = meter.start(log, 0 if self._alone else _count_bytes(sent))
        work = staging.collective(call, *arguments, opts) if self._staged else call(*arguments, opts)
        if opts.asyncOp and not self._staged:
            _when_done(work, lambda _: meter.complete(log, place))
            return MeteredWork(work, meter, log, place)
        if work is not None:  # NCCL has no handle of what it put on the caller's own stream
            work.wait()
        meter.finish(log, place, log.times[place])
        return work

    def _at_root(self, tensors: Iterable[Tensor], opts: Any) -> Iterable[Tensor]:
        return tensors if opts.rootRank == self._own_rank else ()

    def _off_root(self, tensors: Iterable[Tensor], opts: Any) -> Iterable[Tensor]:
        return () if opts.rootRank == self._own_rank else tensors


def init_metered_group(
    store: dist.Store,
    rank: int,
    num_workers: int,
    timeout_s: float,
    device: torch.device,
    name: str,
    address: str = LOOPBACK,
) -> Meter:
    """Make a metered group this process's default group, and all later groups metered too; see `MeteredGroup`."""
    meter = Meter(stopwatch_of(device, name))
    dist.Backend.register_backend(
        "metered",
        lambda options, _: MeteredGroup(options, meter, timeout_s, device, name, address),
        extended_api=True,
        devices=[device.type],
    )
    timeout = timedelta(seconds=timeout_s)
    dist.init_process_group("metered", store=store, rank=rank, world_size=num_workers, timeout=timeout)
    return meter


def _gloo(options: Any, timeout: timedelta, address: str) -> Any:
    chosen = dist.ProcessGroupGloo._Options()
    chosen._timeout, chosen._devices = timeout, [dist.ProcessGroupGloo.create_device(hostname=address)]
    return dist.ProcessGroupGloo(options.store, options.group_rank, options.group_size, chosen)


def _nccl(options: Any, timeout: timedelta) -> Any:
    chosen = dist.ProcessGroupNCCL.Options()
    chosen._timeout = timeout
    return dist.ProcessGroupNCCL(options.store, options.group_rank, options.group_size, chosen)


def _when_done(work: dist.Work, callback: Callable[[Any], None]) -> None:
    try:
        future = work.get_future()
    except RuntimeError:  # some of gloo's coalesced operations have no future: they are over when they are waited for
        return
    future.add_done_callback(callback)


def _count_bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
