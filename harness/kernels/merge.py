"""The merge of a replica into the common model, compiled: one pass over both.

    common_j <- common_j + share * (model_j - known_j);  model_j <- common_j;  known_j <- common_j

So replicas exchange deltas (`algorithms/shared_memory/replicas.py`). Nobody else merges into `common` meanwhile. Who
shares the replica may go on with it: an update of its coordinate j that lands between the read and the write of
model_j is lost; the two are of one trip through the loop, some nanoseconds.
"""

import numpy as np
import torch
from numba import njit

from harness.errors import require

RELATIVE_COST = 0.08  # a parameter at hand, in nonzeros of SparseLinearKernel; measured: 0.2 of 2.5 ns, another Xeon


def merge(model: torch.Tensor, known: torch.Tensor, common: torch.Tensor, share: float) -> None:
    """Merge, without the interpreter's lock.

    Args:
        model: the replica, float32 or float64, shape (parameters,), contiguous; the others are like it.
        known: what the replica knows of the common model: what it was after the last merge.
        common: the common model.
        share: of what the replica has learnt that the common model takes, in (0, 1].
    """
    replica = model.numpy()
    _merge(replica, known.numpy(), common.numpy(), replica.dtype.type(share))


def check_mergeable(*tensors: torch.Tensor) -> None:
    """Refuse what `merge` cannot merge.

    Raises:
        UserError: for tensors that differ in shape or dtype, lie in pieces, or hold other numbers.
    """
    first = tensors[0]
    alike = all(each.dtype == first.dtype and each.shape == first.shape for each in tensors)
    whole = first.dim() == 1 and all(each.is_contiguous() for each in tensors)
    rule = "must be given three contiguous tensors of one shape (parameters,), all float32 or all float64"
    given = [(tuple(each.shape), each.dtype) for each in tensors]
    require(alike and whole and first.dtype in (torch.float32, torch.float64), "worker.merge", rule, given)


@njit(nogil=True, cache=True)
def _merge(model: np.ndarray, known: np.ndarray, common: np.ndarray, share: float) -> None:
    for j in range(len(model)):
        total = common[j] + share * (model[j] - known[j])
        common[j] = total
        known[j] = total
        model[j] = total
