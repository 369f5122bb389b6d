"""The gradient of a batch, in one pass or in several over parts of it."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

from torch import nn

from harness.batch import Samples
from harness.errors import require
from harness.problems.base import Problem


def check_passes(passes: int) -> None:
    """Refuse fewer than one.

    Raises:
        UserError: naming the field.
    """
    require(passes >= 1, "algorithm.accumulate", "must be >= 1", passes)


def notices_of_passes(passes: int, batch_size: int) -> list[str]:
    """Say where there are more passes than samples to share out."""
    more = f"algorithm.accumulate={passes} is more than algorithm.batch_size={batch_size}: a pass for each sample"
    return [more] if passes > batch_size else []


def add_gradient(
    problem: Problem,
    model: nn.Module,
    batch: Samples,
    passes: int = 1,
    before_last: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> None:
    """Add the gradient of the mean loss over a batch to the model's.

    Args:
        batch: sample indices, shape (samples,), or rows.
        passes: into how many parts the batch is cut, of which one at a time is held in memory.
        before_last: makes a block for each pass but the last.
    """
    if passes == 1:
        problem.loss(model, batch).backward()
        return
    parts: Sequence[Samples] = batch.tensor_split(min(passes, len(batch)))
    for number, part in enumerate(parts, start=1):
        with before_last() if number < len(parts) else nullcontext():
            (problem.loss(model, part) * (len(part) / len(batch))).backward()
