"""What sees the torch operators of a thread as they are called."""

from torch.utils._python_dispatch import TorchDispatchMode

# operators that take no more than the shape of their first argument
LIKE = ("empty_like", "full_like", "ones_like", "rand_like", "randn_like", "zeros_like")
NEW = ("new_empty", "new_empty_strided", "new_full", "new_ones", "new_zeros")
# those that write nothing
ALLOCATE = ("empty", "empty_like", "empty_permuted", "empty_strided", "new_empty", "new_empty_strided")

# those that read no more of their first argument than they write, and those that only overwrite it
PICK = ("embedding", "gather", "index", "index_select")
OVERWRITE = ("copy_", "fill_", "zero_")
# those that move values and compute nothing
MOVE = {"_to_copy", "cat", "clone", "constant_pad_nd", "copy_", "embedding", "fill_", "flip", "full_like", "gather"}
MOVE |= {"index", "index_put_", "index_select", "new_full", "new_ones", "new_zeros", "ones_like", "repeat", "roll"}
MOVE |= {"scatter", "scatter_", "select_backward", "slice_backward", "stack", "tril", "triu", "zero_", "zeros_like"}


class Operators(TorchDispatchMode):
    """A block of the calling thread whose operators come to `__torch_dispatch__`, those of backward passes too."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nobody compiles these: do not load torch's compiler, a second, to say so at every call
