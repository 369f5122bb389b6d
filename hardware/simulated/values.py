"""What collectives compute: functions of the calls of all ranks, in rank order; reductions fold from rank 0 upwards."""
# mypy: disable-error-code="attr-defined"

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.distributed import ReduceOp

from harness.errors import WorkerFailed


@dataclass(frozen=True)
class Call:
    """One rank's part in a collective.

    Args:
        description: operation, parameters, dtype and shape: equal on all ranks, or the program is wrong.
        inputs: tensors this rank gives.
        outputs: tensors this rank gets.
        gives: whether its inputs are for others; false off the root of a broadcast, at the root of a reduce or gather.
    """

    description: str
    inputs: Sequence[torch.Tensor] = ()
    outputs: Sequence[torch.Tensor] = ()
    gives: bool = True

    @property
    def sent_bytes(self) -> int:
        """Payload this rank hands in for others, whatever the plan then makes of it."""
        return sum(tensor.nbytes for tensor in self.inputs) if self.gives else 0


_FOLDS: dict[ReduceOp.RedOpType, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    ReduceOp.SUM: torch.Tensor.add_,
    ReduceOp.AVG: torch.Tensor.add_,
    ReduceOp.PRODUCT: torch.Tensor.mul_,
    ReduceOp.MIN: lambda a, b: torch.minimum(a, b, out=a),
    ReduceOp.MAX: lambda a, b: torch.maximum(a, b, out=a),
    ReduceOp.BAND: torch.Tensor.bitwise_and_,
    ReduceOp.BOR: torch.Tensor.bitwise_or_,
    ReduceOp.BXOR: torch.Tensor.bitwise_xor_,
}


def op_name(op: ReduceOp) -> str:
    """The name of a reduction.

    Raises:
        NotImplementedError: if it is not simulated.
    """
    if op.op not in _FOLDS:
        known = ", ".join(known.name for known in _FOLDS)
        raise NotImplementedError(f"the simulator reduces by {known}, not by {op.op.name}")
    return op.op.name


def all_reduce(calls: Sequence[Call], op: ReduceOp) -> None:
    """Every output is the reduction of the inputs at its place."""
    for place in range(len(calls[0].inputs)):
        result = _reduced([call.inputs[place] for call in calls], op)
        for call in calls:
            _fill([call.outputs[place]], [result])


def reduce(calls: Sequence[Call], op: ReduceOp, root: int) -> None:
    """The root's outputs are the reductions."""
    _fill(calls[root].outputs, [_reduced([call.inputs[0] for call in calls], op)])


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


def reduce_scatter(calls: Sequence[Call], op: ReduceOp) -> None:
    """The output of rank i at a place is the reduction of everyone's i-th input for that place."""
    for rank, call in enumerate(calls):
        mine = range(rank, len(call.inputs), len(calls))
        _fill(call.outputs, [_reduced([other.inputs[index] for other in calls], op) for index in mine])


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
                    f"ranks disagree on {call.description}: rank {source} of the group sends {sent} elements to rank "
                    f"{rank}, which expects {expected}"
                )
        _fill(call.outputs, [other.inputs[rank] for other in calls])


def nothing(calls: Sequence[Call]) -> None:
    """A barrier moves no values."""


def _reduced(tensors: Sequence[torch.Tensor], op: ReduceOp) -> torch.Tensor:
    fold = _FOLDS[op.op]
    result = tensors[0].detach().clone()
    for tensor in tensors[1:]:
        fold(result, tensor)
    return result.div_(len(tensors)) if op.op == ReduceOp.AVG else result


def _fill(targets: Sequence[torch.Tensor], sources: Sequence[torch.Tensor]) -> None:
    for target, source in zip(targets, sources, strict=True):
        target.detach().copy_(source.reshape(target.shape))
