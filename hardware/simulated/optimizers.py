"""What torch's optimizers do otherwise where parameters lie on a device, than on the CPU that simulates it."""

import importlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from hardware.simulated.replaced import replaced

MODULE = importlib.import_module("torch.optim.optimizer")  # which torch.optim does not show
_COUNTING = ("Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "ASGD", "NAdam", "RAdam", "RMSprop", "Rprop")
_LABELS = {f"Optimizer.step#{name}.step" for name in _COUNTING}  # of their steps in a trace
_ENTER = torch.ops.profiler._record_function_enter_new.default


def for_each(applies: Callable[[], bool]) -> AbstractContextManager[None]:
    """A block in which optimizers, unless told otherwise, launch an operator once for all parameters where `applies()`.

    That is torch's choice (`foreach`) for parameters on a device, and on none for those of a CPU.
    """
    meanings = {"_get_foreach_kernels_supported_devices": lambda: ["cpu"]}
    return replaced(MODULE, meanings, applies)


class StepCounters:
    """Tells the counters of an optimizer's steps, which lie on the host even where its parameters do not."""

    def __init__(self) -> None:
        self._stepping = False

    def concern(self, operator: Any, inputs: tuple, output: Any) -> bool:
        """Whether an operator, called just now, counts steps or reads how many there were."""
        if operator.namespace == "profiler":
            self._stepping = operator is _ENTER and inputs[0] in _LABELS
            return False
        if not self._stepping:
            return False
        return all(leaf.dim() == 0 for leaf in tree_leaves((inputs, output)) if isinstance(leaf, torch.Tensor))
