"""Tensors of shapes without values, of all ranks of a run together."""

import threading

from torch._subclasses.fake_tensor import FakeTensorMode


class FakeTensors(FakeTensorMode):
    """Torch's mode, which several threads may be in at a time: what they go back to is each one's own."""

    def __init__(self) -> None:
        self._of_thread = threading.local()
        super().__init__()

    @property
    def enter_stack(self) -> list:
        """What the calling thread goes back to."""
        return self._of_thread.__dict__.setdefault("stack", [])

    @enter_stack.setter
    def enter_stack(self, stack: list) -> None:
        self._of_thread.__dict__["stack"] = stack

    def __deepcopy__(self, memo: dict) -> "FakeTensors":
        """Itself: copies of its tensors are of the same mode."""
        return self
