"""What sees the torch operators of a thread as they are called."""

from functools import cache
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass_type

# operators that take no more than the shape of their first argument
LIKE = ("empty_like", "full_like", "ones_like", "rand_like", "randn_like", "zeros_like")
NEW = ("new_empty", "new_empty_strided", "new_full", "new_ones", "new_zeros")
# those that write nothing
ALLOCATE = ("empty", "empty_like", "empty_permuted", "empty_strided", "new_empty", "new_empty_strided")

# those that move values and compute nothing
MOVE = {"_to_copy", "cat", "clone", "constant_pad_nd", "copy_", "embedding", "fill_", "flip", "full_like", "gather"}
MOVE |= {"index", "index_put_", "index_select", "new_full", "new_ones", "new_zeros", "ones_like", "repeat", "roll"}
MOVE |= {"scatter", "scatter_", "select_backward", "slice_backward", "stack", "tril", "triu", "zero_", "zeros_like"}

# those that read of their first argument no more than they write, and those that write it without reading it
PICK = {"embedding", "gather", "index", "index_select", "take"}
OVERWRITE = {"bernoulli_", "copy_", "exponential_", "fill_", "normal_", "random_", "uniform_", "zero_"}
OVERWRITE |= {"_foreach_copy_", "_foreach_zero_"}

ALIAS = {torch.ops.aten._unsafe_view.default}  # those that are views, though torch does not call them so


@cache
def effects(operator: Any) -> tuple[frozenset[int | str], frozenset[int | str]]:
    """Positions and names of the arguments an operator writes, and of those (`out=`) it writes without reading."""
    writes: set[int | str] = set()
    fills: set[int | str] = set()
    for position, argument in enumerate(operator._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            writes |= {position, argument.name}
            if argument.kwarg_only:
                fills |= {position, argument.name}
    return frozenset(writes), frozenset(fills)


@cache
def wraps_others(kind: type) -> bool:
    """Whether it is a kind of tensor that is made of others, with which it computes: a DTensor is."""
    return is_traceable_wrapper_subclass_type(kind)


class Operators(TorchDispatchMode):
    """A block of the calling thread whose operators come to `__torch_dispatch__`, those of backward passes too."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nobody compiles these: do not load torch's compiler, a second, to say so at every call
