"""What collectives compute: functions of the calls of all ranks, in rank order; reductions fold from rank 0 upwards."""
# mypy: disable-error-code="attr-defined"

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
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
    """

    operation: str
    matched: Sequence[torch.Tensor] = ()
    inputs: Sequence[torch.Tensor] = ()
    outputs: Sequence[torch.Tensor] = ()
    gives: bool = True

    @property
    def sent_bytes(self) -> int:
        """Payload this rank hands in for others, whatever the plan then makes of it."""
        return sum([tensor.nbytes for tensor in self.inputs]) if self.gives else 0

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


class Reduction(NamedTuple):
    """A way to reduce.

    Args:
        name: torch's.
        fold: adds its second argument to its first, in place.
        factor: of this rank's tensors before: a number or a tensor of one; None for 1.
        mean: whether the sum is divided by the number of tensors.
    """

    name: str
    fold: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    factor: float | torch.Tensor | None = None
    mean: bool = False

    def given(self, tensors: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        """What a rank gives to the others of its tensors: each has a factor of its own."""
        return tensors if self.factor is None else [tensor * self.factor for tensor in tensors]


_REDUCTIONS: dict[ReduceOp.RedOpType, Reduction] = {
    ReduceOp.SUM: Reduction("SUM", torch.Tensor.add_),
    ReduceOp.AVG: Reduction("AVG", torch.Tensor.add_, mean=True),
    ReduceOp.PRODUCT: Reduction("PRODUCT", torch.Tensor.mul_),
    ReduceOp.MIN: Reduction("MIN", lambda a, b: torch.minimum(a, b, out=a)),
    ReduceOp.MAX: Reduction("MAX", lambda a, b: torch.maximum(a, b, out=a)),
    ReduceOp.BAND: Reduction("BAND", torch.Tensor.bitwise_and_),
    ReduceOp.BOR: Reduction("BOR", torch.Tensor.bitwise_or_),
    ReduceOp.BXOR: Reduction("BXOR", torch.Tensor.bitwise_xor_),
    ReduceOp.PREMUL_SUM: Reduction("PREMUL_SUM", torch.Tensor.add_),
}


def reduction(op: ReduceOp) -> Reduction:
    """What torch's object means."""
    known = _REDUCTIONS[op.op]
    if known.name != "PREMUL_SUM":
        return known
    _, factor = cast(tuple, op.__getstate__())
    return known._replace(factor=factor)


def all_reduce(calls: Sequence[Call], by: Reduction) -> None:
    """Every output is the reduction of the inputs at its place."""
    for place in range(len(calls[0].inputs)):
        result = _reduced([call.inputs[place] for call in calls], by)
        for call in calls:
            _fill([call.outputs[place]], [result])


def reduce(calls: Sequence[Call], by: Reduction, root: int) -> None:
    """The root's outputs are the reductions."""
    _fill(calls[root].outputs, [_reduced([call.inputs[0] for call in calls], by)])


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
        _fill(call.outputs, [_reduced([other.inputs[index] for other in calls], by) for index in mine])


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
                    f"ranks disagree on {call}: rank {source} of the group sends {sent} elements to rank "
                    f"{rank}, which expects {expected}"
                )
        _fill(call.outputs, [other.inputs[rank] for other in calls])


def nothing(calls: Sequence[Call]) -> None:
    """A barrier moves no values."""


def _reduced(tensors: Sequence[torch.Tensor], by: Reduction) -> torch.Tensor:
    result = tensors[0].detach().clone()
    for tensor in tensors[1:]:
        by.fold(result, tensor)
    return result.div_(len(tensors)) if by.mean else result


def _fill(targets: Sequence[torch.Tensor], sources: Sequence[torch.Tensor]) -> None:
    for target, source in zip(targets, sources, strict=True):
        # like a communication library, which autograd does not see write: `data` has a version counter of its own
        target.data.copy_(source if source.shape == target.shape else source.reshape(target.shape))
