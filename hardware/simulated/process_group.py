"""A `torch.distributed` backend whose ranks are threads and whose time is virtual.

Importing this module registers the backend under the name `simulated`; its groups exist only inside a simulation.
Deviations from gloo: reductions are folded in rank order, and a collective begins when its last rank has arrived. A
message begins when both its sides are posted and ends for both when it has arrived.

Where no rank dies and no link breaks, a wait without end that has one of torch's usual time-outs (NCCL's 600 s, gloo's
1800 s) is told at once, as a deadlock; one with any other time-out times out.
"""
# mypy: disable-error-code="call-arg, override"

from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial, wraps
from typing import Any, NoReturn

import torch
import torch.distributed as dist

from hardware.simulated import arguments, values
from hardware.simulated.device import ConnectionLost, Device, ExchangeTimedOut
from hardware.simulated.fabric import Channel
from hardware.simulated.torch_world import current_world
from hardware.simulated.values import Call, Reduction

BACKEND = "simulated"

Tensor = torch.Tensor


class SimulatedGroup(dist.ProcessGroup):
    """One rank's handle on a group; the methods are those that `torch.distributed` calls."""

    def __init__(self, channel: Channel, device: Device, rank: int, timeout_s: float) -> None:
        super().__init__(rank, len(channel.ranks))
        self._channel, self._device, self._my_rank, self._num_ranks = channel, device, rank, len(channel.ranks)
        self._timeout_s = timeout_s
        self._calls = 0
        self._name = self._description = ""

    @property
    def _device_types(self) -> list[torch.device]:
        """Of the tensors it takes; torch asks."""
        return [torch.device("cpu")]

    def getBackendName(self) -> str:
        """The name it is registered under."""
        return BACKEND

    def getGroupName(self) -> str:
        """Torch's name of the group."""
        return self._name

    def setGroupName(self, name: str) -> None:
        """Called by torch, once."""
        self._name = name

    def getGroupDesc(self) -> str:
        """Torch's description of the group."""
        return self._description

    def setGroupDesc(self, description: str) -> None:
        """Called by torch, once."""
        self._description = description

    def allreduce(self, tensors: list[Tensor], opts: Any) -> dist.Work:
        """Reduce in place on every rank."""
        if tensors[0].layout is not torch.strided:
            return self._all_reduce_sparse(tensors, values.reduction(opts.reduceOp))
        by, factor = self._reduction(opts.reduceOp, tensors)
        call = Call(f"all_reduce({by.name})", tensors, tensors, tensors, factor=factor)
        return self._meet(call, partial(values.all_reduce, by=by), "all_reduce", _nbytes(tensors))

    def _all_reduce_sparse(self, tensors: list[Tensor], by: Reduction) -> dist.Work:
        """As gloo: everyone gathers everyone's indices and values, and sums them."""
        arguments.check_sparse(by, tensors, self._library)
        call = Call(f"all_reduce({by.name}) of sparse", tensors, [tensors[0].coalesce().detach()], tensors)
        payload_bytes = values.nbytes(call.inputs[0]) * self._num_ranks
        return self._meet(call, values.all_reduce_sparse, "all_gather", payload_bytes, unequal=True, dense=False)

    def allreduce_coalesced(self, tensors: list[Tensor], opts: Any) -> dist.Work:
        """Reduce several tensors as one message."""
        return self.allreduce(tensors, opts)

    def broadcast(self, tensors: list[Tensor], opts: Any) -> dist.Work:
        """Copy the root's tensors."""
        root = self._root("broadcast", opts)
        call = Call(f"broadcast(root {root})", tensors, tensors, tensors, self._my_rank == root)
        return self._meet(call, partial(values.broadcast, root=root), "broadcast", _nbytes(tensors), root)

    def reduce(self, tensors: list[Tensor], opts: Any) -> dist.Work:
        """Reduce into the root's tensor."""
        root, (by, factor) = self._root("reduce", opts), self._reduction(opts.reduceOp, tensors)
        call = Call(f"reduce({by.name}, root {root})", tensors, tensors, tensors, self._my_rank != root, factor)
        return self._meet(call, partial(values.reduce, by=by, root=root), "reduce", _nbytes(tensors), root)

    def allgather(self, outputs: list[list[Tensor]], inputs: list[Tensor], opts: Any = None) -> dist.Work:
        """Everyone gets everyone's tensor; they may differ in size."""
        arguments.check_list("all_gather", "its list", outputs[0], self._num_ranks)
        arguments.check_fit("all_gather", inputs[0], outputs[0][self._my_rank])
        if len({tensor.numel() for tensor in outputs[0]}) == 1:
            return self._all_gather(outputs[0], inputs)
        call = Call("all_gather", outputs[0], inputs, outputs[0])
        return self._meet(call, values.all_gather, "all_gather", _nbytes(outputs[0]), unequal=True)

    def allgather_coalesced(self, outputs: list[list[Tensor]], inputs: list[Tensor], opts: Any = None) -> dist.Work:
        """Everyone gets everyone's tensors, as one message; `outputs[rank][place]`."""
        arguments.check_list("all_gather", "its list", outputs, self._num_ranks)
        by_place = [row[place] for place in range(len(inputs)) for row in outputs]
        for place, given in enumerate(inputs):
            arguments.check_fit("all_gather", given, outputs[self._my_rank][place])
        return self._all_gather(by_place, inputs)

    def all_gather_single_coalesced(self, outputs: list[Tensor], inputs: list[Tensor], opts: Any = None) -> dist.Work:
        """Everyone gets everyone's tensors, those of each place back to back, as one message."""
        for given, output in zip(inputs, outputs, strict=True):
            arguments.check_fit("all_gather_single", given, output, self._num_ranks)
        return self._all_gather([chunk for output in outputs for chunk in self._chunks(output)], inputs)

    def allgather_into_tensor_coalesced(
        self, outputs: list[Tensor], inputs: list[Tensor], opts: Any = None
    ) -> dist.Work:
        """The same by its older name."""
        return self.all_gather_single_coalesced(outputs, inputs, opts)

    def _all_gather(self, outputs: list[Tensor], inputs: list[Tensor]) -> dist.Work:
        call = Call("all_gather", inputs, inputs, outputs)
        return self._meet(call, values.all_gather, "all_gather", _nbytes(inputs) * self._num_ranks)

    def all_gather_single(self, output: Tensor, input: Tensor, opts: Any = None) -> dist.Work:
        """Everyone gets everyone's tensor, back to back."""
        arguments.check_fit("all_gather_single", input, output, self._num_ranks)
        return self._all_gather(self._chunks(output), [input])

    def reduce_scatter(self, outputs: list[Tensor], inputs: list[list[Tensor]], opts: Any) -> dist.Work:
        """Rank i gets the reduction of everyone's i-th tensor."""
        arguments.check_list("reduce_scatter", "its list", inputs[0], self._num_ranks)
        for part in inputs[0]:
            arguments.check_fit("reduce_scatter", part, outputs[0])
        return self._reduce_scatter(outputs, inputs[0], opts.reduceOp)

    def reduce_scatter_single_coalesced(self, outputs: list[Tensor], inputs: list[Tensor], opts: Any) -> dist.Work:
        """Rank i gets the reductions of everyone's i-th parts, as one message."""
        for output, given in zip(outputs, inputs, strict=True):
            arguments.check_fit("reduce_scatter_single", output, given, self._num_ranks)
        parts = [chunk for tensor in inputs for chunk in self._chunks(tensor)]
        return self._reduce_scatter(outputs, parts, opts.reduceOp)

    def reduce_scatter_tensor_coalesced(self, outputs: list[Tensor], inputs: list[Tensor], opts: Any) -> dist.Work:
        """The same by its older name."""
        return self.reduce_scatter_single_coalesced(outputs, inputs, opts)

    def _reduce_scatter(self, outputs: list[Tensor], inputs: list[Tensor], op: Any) -> dist.Work:
        by, factor = self._reduction(op, outputs)
        call = Call(f"reduce_scatter({by.name})", outputs, inputs, outputs, factor=factor)
        return self._meet(call, partial(values.reduce_scatter, by=by), "reduce_scatter", _nbytes(inputs))

    def reduce_scatter_single(self, output: Tensor, input: Tensor, opts: Any) -> dist.Work:
        """Rank i gets the reduction of everyone's i-th part."""
        return self.reduce_scatter_single_coalesced([output], [input], opts)

    def gather(self, outputs: list[list[Tensor]], inputs: list[Tensor], opts: Any) -> dist.Work:
        """The root gets everyone's tensor."""
        root = self._root("gather", opts)
        if self._my_rank == root:
            arguments.check_list("gather", "its list", outputs[0], self._num_ranks)
            arguments.check_shapes("gather", outputs[0], inputs[0])
        call = Call(f"gather(root {root})", inputs, inputs, outputs[0] if outputs else (), self._my_rank != root)
        payload_bytes = _nbytes(inputs) * self._num_ranks
        return self._meet(call, partial(values.gather, root=root), "gather", payload_bytes, root)

    def scatter(self, outputs: list[Tensor], inputs: list[list[Tensor]], opts: Any) -> dist.Work:
        """Rank i gets the root's i-th tensor."""
        root = self._root("scatter", opts)
        if self._my_rank == root:
            arguments.check_list("scatter", "its list", inputs[0], self._num_ranks)
            arguments.check_shapes("scatter", inputs[0], outputs[0])
        call = Call(f"scatter(root {root})", outputs, inputs[0] if inputs else (), outputs)
        payload_bytes = _nbytes(outputs) * self._num_ranks
        return self._meet(call, partial(values.scatter, root=root), "scatter", payload_bytes, root)

    def alltoall(self, outputs: list[Tensor], inputs: list[Tensor], opts: Any = None) -> dist.Work:
        """Rank i's j-th output is rank j's i-th input."""
        arguments.check_list("all_to_all", "its input list", inputs, self._num_ranks)
        arguments.check_list("all_to_all", "its output list", outputs, self._num_ranks)
        return self._all_to_all("all_to_all", outputs, inputs)

    def all_to_all_single(
        self, output: Tensor, input: Tensor, output_sizes: list[int], input_sizes: list[int], opts: Any = None
    ) -> dist.Work:
        """The same with parts back to back, equal ones or as many rows as the sizes say."""
        arguments.check_split(input, input_sizes, self._num_ranks)
        arguments.check_split(output, output_sizes, self._num_ranks)
        if not (output_sizes or input_sizes):
            arguments.check_fit("all_to_all_single", input, output)
            parts = self._chunks(input)
            call = Call("all_to_all", parts, parts, self._chunks(output))
            return self._meet(call, values.all_to_all, "all_to_all", _nbytes(parts))
        return self._all_to_all("all_to_all_single", self._rows(output, output_sizes), self._rows(input, input_sizes))

    def _all_to_all(self, name: str, outputs: list[Tensor], inputs: list[Tensor]) -> dist.Work:
        arguments.check_fit(name, inputs[self._my_rank], outputs[self._my_rank])
        operation = f"{name} of {inputs[0].dtype} in parts".replace("torch.", "")
        call = Call(operation, inputs=inputs, outputs=outputs)
        return self._meet(call, values.all_to_all, "all_to_all", _nbytes(inputs), unequal=True)

    def barrier(self, opts: Any = None) -> dist.Work:
        """Everyone waits for everyone."""
        return self._meet(Call("barrier"), values.nothing, "barrier", 0.0, blocks=True)

    def monitored_barrier(self, timeout: timedelta | None = None, wait_all_ranks: bool = False) -> None:
        """Everyone's host waits for everyone's, whatever their devices do, and says who does not come.

        Args:
            wait_all_ranks: whether all who do not come are named, by their rank in the group, or the first of them.

        Raises:
            RuntimeError: as gloo does, after the time-out.
        """
        timeout_s = self._timeout_s if timeout is None else timeout.total_seconds()
        number, self._calls = self._calls, self._calls + 1
        call = Call("monitored_barrier")
        part = self._channel.meet(number, self._my_rank, call, values.nothing, "barrier", 0.0, 0, False)
        try:
            self._device.host_work(part, (), lambda: 0, timeout_s).wait()
        except (ConnectionLost, ExchangeTimedOut) as error:
            raise RuntimeError(self._not_passed(error, timeout_s, wait_all_ranks)) from None

    def _not_passed(self, error: ConnectionLost | ExchangeTimedOut, timeout_s: float, all_of_them: bool) -> str:
        missing = [self._channel.ranks.index(rank) for rank in error.missing]
        if not missing:
            return str(error)
        first, *others = missing
        named = f"Ranks {', '.join(map(str, missing))}" if others and all_of_them else f"Rank {first}"
        return f"{named} failed to pass monitored_barrier in {timeout_s * 1e3:.0f} ms of virtual time"

    def send(self, tensors: list[Tensor], dst_rank: int, tag: int = 0) -> dist.Work:
        """Send one tensor; ends when it has arrived."""
        return self._post(True, tensors, dst_rank, tag)

    def recv(self, tensors: list[Tensor], src_rank: int, tag: int = 0) -> dist.Work:
        """Receive one tensor."""
        return self._post(False, tensors, src_rank, tag)

    def recv_anysource(self, tensors: list[Tensor], tag: int = 0) -> dist.Work:
        """Receive one tensor from whoever sends first."""
        return self._post(False, tensors, None, tag)

    def _meet(
        self,
        call: Call,
        combine: Callable[[Sequence[Call]], None],
        kind: str,
        payload_bytes: float,
        root: int = 0,
        unequal: bool = False,
        dense: bool = True,
        blocks: bool = False,
    ) -> dist.Work:
        if dense:
            for tensors in (call.inputs,) if call.inputs is call.outputs else (call.inputs, call.outputs):
                for tensor in tensors[:1]:
                    arguments.check_place(kind, tensor)
        self._check_owner(kind)
        number, self._calls = self._calls, self._calls + 1
        part = self._channel.meet(number, self._my_rank, call, combine, kind, payload_bytes, root, unequal)
        return self._device.work(part, call.outputs, lambda: root, self._timeout_s, blocks)

    def _post(self, sends: bool, tensors: list[Tensor], peer: int | None, tag: int) -> dist.Work:
        (tensor,) = tensors
        self._check_owner("send" if sends else "recv")
        arguments.check_peer(peer, tag, self._num_ranks)
        arguments.check_place("send" if sends else "recv", tensor)
        kept = self._device.handed(tensor) if sends else tensor
        post = self._channel.post(sends, self._my_rank, peer, tag, kept)

        def source() -> int:
            return self._my_rank if sends or post.peer is None else post.peer

        return self._device.work(post.part, tensors, source, self._timeout_s)

    def _check_owner(self, operation: str) -> None:
        """A group is one rank's handle; a module that ranks share may hold on to that of the first one."""
        if current_world().device is not self._device:
            self._channel.fail(  # torch's report of an exception would trip over the same group
                f"{operation} is called on another rank's process group, which a module that ranks share has kept, "
                "such as the default of an argument (group=dist.group.WORLD): give it the group"
            )

    @property
    def _library(self) -> str:
        """What moves the bytes: what the script asked for by name, else what the machine has."""
        asked = str(dist.get_backend(self))
        return asked if asked in ("gloo", "nccl") else self._channel.library

    def _root(self, operation: str, opts: Any) -> int:
        arguments.check_root(operation, opts.rootRank, self._num_ranks)
        return opts.rootRank

    def _reduction(self, op: Any, tensors: list[Tensor]) -> tuple[Reduction, float | Tensor | None]:
        """How to reduce, and by what this rank's inputs are multiplied before."""
        by = values.reduction(op)
        if by.name in arguments.EVERYWHERE:
            return by, None
        arguments.check_reduction(by, tensors, self._library)
        return by, values.factor(op)

    def _chunks(self, tensor: Tensor) -> list[Tensor]:
        if values.is_fake(tensor):
            return [tensor]  # nothing is in its parts
        return list(tensor.detach().view(-1).chunk(self._num_ranks))

    def _rows(self, tensor: Tensor, sizes: list[int]) -> list[Tensor]:
        equal = [len(tensor) // self._num_ranks] * self._num_ranks
        return list(tensor.detach().split(sizes or equal))


def _nbytes(tensors: Sequence[Tensor]) -> float:
    return float(sum([tensor.nbytes for tensor in tensors]))


def _missing(name: str) -> Callable[..., NoReturn]:
    def missing(self: SimulatedGroup, *arguments: object, **options: object) -> NoReturn:
        raise NotImplementedError(f"the simulator has no {name} yet: use one of the collectives it has")

    return missing


for _name in (
    "merge_remote_group",
    "split_group",
):
    setattr(SimulatedGroup, _name, _missing(_name))


def _in_any_form(name: str) -> Callable[..., dist.Work]:
    """The method of this name, taking its arguments as torch's own does, which makes one form of several."""
    method, general = getattr(SimulatedGroup, name), getattr(dist.ProcessGroup, name)

    @wraps(method)
    def call(self: SimulatedGroup, *given: Any, **named: Any) -> dist.Work:
        plain = not named and given and type(given[-1]).__name__.endswith("Options")
        return method(self, *given) if plain else general(self, *given, **named)

    return call


for _name in ("allreduce", "allreduce_coalesced", "broadcast", "allgather", "reduce_scatter"):
    setattr(SimulatedGroup, _name, _in_any_form(_name))


def _create(options: Any, backend_options: object) -> SimulatedGroup:
    world = current_world()
    ranks = tuple(options.global_ranks_in_group) or tuple(range(options.group_size))
    channel = world.fabric.channel((options.group_id, ranks), options.group_rank)
    return SimulatedGroup(channel, world.device, options.group_rank, options.timeout.total_seconds())


dist.Backend.register_backend(BACKEND, _create, extended_api=True, devices=["cpu"])
