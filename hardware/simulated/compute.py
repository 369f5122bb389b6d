"""What computing costs in virtual time. A missing cost is an error, never zero."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from harness.errors import UserError, require

Charge = Callable[[float, float], None]  # seconds to launch an operator, seconds to run it


@dataclass(frozen=True)
class KernelCost:
    """Seconds of a native kernel, of one core: rows come from memory, the model is in its caches."""

    sample_s: float
    nonzero_s: float


@dataclass(frozen=True)
class Compute(ABC):
    """How long a worker computes."""

    @abstractmethod
    def batch_s(self, num_samples: int) -> float:
        """Seconds a batch costs as such, whatever operators work on it."""

    @abstractmethod
    def watch(self, charge: Charge) -> AbstractContextManager[object]:
        """A block of the calling thread in which torch operators are charged: seconds to launch, seconds to run."""

    @property
    @abstractmethod
    def kernel(self) -> KernelCost:
        """What native kernels cost."""


@dataclass(frozen=True)
class Fixed(Compute):
    """Every sample costs the same, operators are free.

    Args:
        seconds_per_sample: > 0; charged for a batch when its worker next looks at the time.
    """

    seconds_per_sample: float

    def __post_init__(self) -> None:
        cost = self.seconds_per_sample
        require(cost > 0, "hardware.compute.seconds_per_sample", "must be > 0", cost)

    def batch_s(self, num_samples: int) -> float:
        """In proportion."""
        return num_samples * self.seconds_per_sample

    def watch(self, charge: Charge) -> AbstractContextManager[object]:
        """Charges nothing."""
        return nullcontext()

    @property
    def kernel(self) -> KernelCost:
        """Per sample."""
        return KernelCost(self.seconds_per_sample, 0.0)


@dataclass(frozen=True)
class Roofline(Compute):
    """Every operator costs overhead + max(flops / peak, bytes / bandwidth).

    (Williams, Waterman, Patterson, CACM 2009.) Flops are those of torch's flop counter where it knows the operator,
    else one per element of the largest tensor; bytes are those of the tensors read and of those written. Integers and
    booleans have bytes only. Views are free: they move nothing.

    Args:
        flops_per_s: peak by dtype of the result, e.g. {float32: 1e11}.
        memory_bytes_per_s: memory bandwidth of one worker.
        operator_overhead_s: dispatch of one operator, >= 0.
        nonzero_s: one nonzero of the native sparse kernel, read and written, the model in the core's own caches.
    """

    flops_per_s: dict[str, float]
    memory_bytes_per_s: float
    operator_overhead_s: float
    nonzero_s: float

    def __post_init__(self) -> None:
        for dtype, peak in self.flops_per_s.items():
            require(peak > 0, f"hardware.compute.flops_per_s.{dtype}", "must be > 0", peak)
        bandwidth, overhead = self.memory_bytes_per_s, self.operator_overhead_s
        require(bandwidth > 0, "hardware.compute.memory_bytes_per_s", "must be > 0", bandwidth)
        require(overhead >= 0, "hardware.compute.operator_overhead_s", "must be >= 0", overhead)
        require(self.nonzero_s > 0, "hardware.compute.nonzero_s", "must be > 0", self.nonzero_s)

    def batch_s(self, num_samples: int) -> float:
        """Nothing: its operators are charged."""
        return 0.0

    def watch(self, charge: Charge) -> AbstractContextManager[object]:
        """Charges every operator as it is called, those of backward passes too."""
        return _Meter(self, charge)

    @property
    def kernel(self) -> KernelCost:
        """Per nonzero."""
        return KernelCost(0.0, self.nonzero_s)

    def operator_s(self, operator: Any, inputs: tuple, options: Mapping[str, Any], output: Any) -> float:
        """Seconds in which a torch operator runs, beyond its launch.

        Raises:
            UserError: if `flops_per_s` has no peak for the dtype.
        """
        read, written = _tensors((inputs, dict(options))), _tensors(output)
        moved_bytes = sum(tensor.nbytes for tensor in read + written)
        dtypes = [tensor.dtype for tensor in written if tensor.dtype.is_floating_point]
        if not dtypes:
            return moved_bytes / self.memory_bytes_per_s
        count = flop_registry.get(operator.overloadpacket)
        if count is None:
            flops = max(tensor.numel() for tensor in read + written)
        else:
            flops = count(*inputs, **options, out_val=output)
        return max(moved_bytes / self.memory_bytes_per_s, flops / self._peak(dtypes[0]))

    def _peak(self, dtype: torch.dtype) -> float:
        name = str(dtype).removeprefix("torch.")
        if name not in self.flops_per_s:
            raise UserError(
                f"hardware.compute.flops_per_s must have a peak for every dtype computed with, got {self.flops_per_s} "
                f"and an operator on {name}: add hardware.compute.flops_per_s.{name}"
            )
        return self.flops_per_s[name]


def _tensors(tree: Any) -> list[torch.Tensor]:
    """The tensors of a nested structure, each once."""
    return list({id(leaf): leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)}.values())


class _Meter(TorchDispatchMode):
    def __init__(self, roofline: Roofline, charge: Charge) -> None:
        super().__init__()
        self._roofline, self._charge = roofline, charge

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if not func.is_view:
            run_s = self._roofline.operator_s(func, args, kwargs or {}, output)
            self._charge(self._roofline.operator_overhead_s, run_s)
        return output
