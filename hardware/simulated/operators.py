"""What sees the torch operators of a thread as they are called."""

from torch.utils._python_dispatch import TorchDispatchMode


class Operators(TorchDispatchMode):
    """A block of the calling thread whose operators come to `__torch_dispatch__`, those of backward passes too."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nobody compiles these: do not load torch's compiler, a second, to say so at every call
