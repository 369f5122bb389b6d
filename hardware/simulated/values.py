"""What collectives compute: functions of the calls of all ranks, in rank order; reductions fold from rank 0 upwards."""
# mypy: disable-error-code="attr-defined"

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, cast

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.distributed import ReduceOp

from harness.errors import WorkerFailed


@dataclass(slots=True, eq=False)
class Call:
    """One rank's part in a collective.

    Args:
        operation: with its parameters: "all_reduce(SUM)"; equal on all ranks, or the program is wrong.
        matched: tensors whose dtypes and shapes are equal on all ranks; likewise.
        inputs: tensors this rank gives.
        outputs: tensors this rank gets.
        gives: whether its inputs are for others; false off the root of a broadcast, at the root of a reduce or gather.
        factor: of its inputs before they are reduced: a number or a tensor of one; None for 1.

    Attributes:
        place: where in the user's code it was made, if that may be asked for.
    """

    operation: str
    matched: Sequence[torch.Tensor] = ()
    inputs: Sequence[torch.Tensor] = ()
    outputs: Sequence[torch.Tensor] = ()
    gives: bool = True
    factor: float | torch.Tensor | None = None
    place: object = field(default="", init=False)

    @property
    def sent_bytes(self) -> int:
        """Payload this rank hands in for others, whatever the plan then makes of it."""
        return sum([nbytes(tensor) for tensor in self.inputs]) if self.gives else 0

    @property
    def is_fake(self) -> bool:
        """Whether its tensors have no values."""
        return any(is_fake(tensor) for tensor in (*self.inputs[:1], *self.outputs[:1]))

    def multiple(self, place: int) -> torch.Tensor:
        """The input at a place, times the factor."""
        return self.inputs[place] if self.factor is None else self.inputs[place] * self.factor

    def agrees(self, other: "Call") -> bool:
        """Whether both are the same call."""
        if self.operation != other.operation or len(self.matched) != len(other.matched):
            return False
        pairs = zip(self.matched, other.matched, strict=True)
        return all([one.dtype == two.dtype and one.shape == two.shape for one, two in pairs])

    def __str__(self) -> str:
        """In words: "all_reduce(SUM) of float32[3]"."""
        return f"{self.operation} of {', '.join(map(described, self.matched))}" if self.matched else self.operation


def described(tensor: torch.Tensor) -> str:
    """Its dtype and shape: "float32[2, 3]"."""
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"


def is_fake(tensor: torch.Tensor) -> bool:
    """Whether it has no values."""
    return isinstance(tensor, FakeTensor)


def nbytes(tensor: torch.Tensor) -> int:
    """Bytes of its values; of a sparse one with their indices."""
    if tensor.layout is torch.strided:
        return tensor.nbytes
    return tensor._indices().nbytes + tensor._values().nbytes


class Reduction(NamedTuple):
    """A way to reduce.

    Args:
        name: torch's.
        fold: adds its second argument to its first, in place.
        mean: whether the sum is divided by the number of tensors.
        bitwise: whether it has a meaning for integers and booleans only.
    """

    name: str
    fold: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    mean: bool = False
    bitwise: bool = False


_REDUCTIONS: dict[ReduceOp.RedOpType, Reduction] = {
    ReduceOp.SUM: Reduction("SUM", torch.Tensor.add_),
    ReduceOp.AVG: Reduction("AVG", torch.Tensor.add_, mean=True),
    ReduceOp.PRODUCT: Reduction("PRODUCT", torch.Tensor.mul_),
    ReduceOp.MIN: Reduction("MIN", lambda a, b: torch.minimum(a, b, out=a)),
    ReduceOp.MAX: Reduction("MAX", lambda a, b: torch.maximum(a, b, out=a)),
    ReduceOp.BAND: Reduction("BAND", torch.Tensor.bitwise_and_, bitwise=True),
    ReduceOp.BOR: Reduction("BOR", torch.Tensor.bitwise_or_, bitwise=True),
    ReduceOp.BXOR: Reduction("BXOR", torch.Tensor.bitwise_xor_, bitwise=True),
    ReduceOp.PREMUL_SUM: Reduction("PREMUL_SUM", torch.Tensor.add_),
}


def reduction(op: ReduceOp) -> Reduction:
    """What torch's object means."""
    return _REDUCTIONS[op.op]


def factor(op: ReduceOp) -> float | torch.Tensor | None:
    """What the rank that gives this object multiplies its inputs by; None for 1."""
    return cast(tuple, op.__getstate__())[1] if op.op == ReduceOp.PREMUL_SUM else None


def all_reduce(calls: Sequence[Call], by: Reduction) -> None:
    """Every output is the reduction of the inputs at its place."""
    for place in range(len(calls[0].inputs)):
        result = _reduced([call.multiple(place) for call in calls], by)
        for call in calls:
            _fill([call.outputs[place]], [result])


def all_reduce_sparse(calls: Sequence[Call]) -> None:
    """Every output is the sum of the inputs, with the indices of them all."""
    total = calls[0].inputs[0].detach()
    for call in calls[1:]:
        total = total + call.inputs[0].detach()
    total = total.coalesce()
    for call in calls:
        call.outputs[0].copy_(total)  # a view of another kind, such as `data`, would keep its own indices


def reduce(calls: Sequence[Call], by: Reduction, root: int) -> None:
    """The root's outputs are the reductions."""
    _fill(calls[root].outputs, [_reduced([call.multiple(0) for call in calls], by)])


def broadcast(calls: Sequence[Call], root: int) -> None:
    """Every output is the root's input."""
    for rank, call in enumerate(calls):
        if rank != root:
            _fill(call.outputs, calls[root].inputs)


def all_gather(calls: Sequence[Call]) -> None:
    """The outputs of everyone are, for each place, the inputs of all ranks at that place."""
    for call in calls:
        _fill(call.outputs, [other.inputs[place] for place in range(len(call.inputs)) for other in calls])


def gather(calls: Sequence[Call], root: int) -> None:
    """The root's i-th output is the input of rank i."""
    _fill(calls[root].outputs, [call.inputs[0] for call in calls])


def scatter(calls: Sequence[Call], root: int) -> None:
    """The output of rank i is the root's i-th input."""
    for rank, call in enumerate(calls):
        _fill(call.outputs, [calls[root].inputs[rank]])


def reduce_scatter(calls: Sequence[Call], by: Reduction) -> None:
    """The output of rank i at a place is the reduction of everyone's i-th input for that place."""
    for rank, call in enumerate(calls):
        mine = range(rank, len(call.inputs), len(calls))
        _fill(call.outputs, [_reduced([other.multiple(index) for other in calls], by) for index in mine])


def all_to_all(calls: Sequence[Call]) -> None:
    """The j-th output of rank i is the i-th input of rank j.

    Raises:
        WorkerFailed: if they differ in size.
    """
    for rank, call in enumerate(calls):
        for source, other in enumerate(calls):
            sent, expected = other.inputs[rank].numel(), call.outputs[source].numel()
            if sent != expected:
                raise WorkerFailed(
                    f"ranks disagree on {call}: rank {source} of the group sends {sent} elements to rank {rank}"
                    f"{other.place}; that expects {expected}{call.place}"
                )
        _fill(call.outputs, [other.inputs[rank] for other in calls])


def nothing(calls: Sequence[Call]) -> None:
    """A barrier moves no values."""


def _reduced(tensors: Sequence[torch.Tensor], by: Reduction) -> torch.Tensor:
    result = tensors[0].detach().clone()
    for tensor in tensors[1:]:
        by.fold(result, tensor)
    if not by.mean:
        return result
    rounding = None if result.is_floating_point() or result.is_complex() else "trunc"  # as NCCL's
    return result.div_(len(tensors), rounding_mode=rounding)


def _fill(targets: Sequence[torch.Tensor], sources: Sequence[torch.Tensor]) -> None:
    for target, source in zip(targets, sources, strict=True):
        # like a communication library, which autograd does not see write: `data` has a version counter of its own
        target.data.copy_(source if source.shape == target.shape else source.reshape(target.shape))
