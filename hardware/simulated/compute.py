"""What computing costs in virtual time. A missing cost is an error, never zero."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils.flop_counter import flop_registry

from hardware.simulated.linear_algebra import FLOPS
from hardware.simulated.operands import nbytes, shapes, tensors, tensors_read, tensors_written
from hardware.simulated.operators import (
    ALIAS,
    ALLOCATE,
    MOVE,
    PICK,
    Operators,
    wraps_others,
)
from hardware.simulated.optimizers import StepCounters
from hardware.simulated.pace import drawn
from harness.errors import UserError, require
from harness.kernels.base import Kernel

Charge = Callable[[float, float], None]  # seconds to launch an operator, seconds to run it
Made = Callable[[Any], None]  # what an operator returns


@dataclass(frozen=True)
class KernelCost:
    """Seconds of a native kernel, of one core: rows come from memory, the model is in its caches."""

    sample_s: float
    nonzero_s: float

    def of(self, kernel: Kernel) -> "KernelCost":
        """Of another kernel than per-sample SGD, a sample and each of its coordinates."""
        sample_s = self.sample_s + kernel.relative_sample_cost * self.nonzero_s
        return KernelCost(sample_s, self.nonzero_s * kernel.block * kernel.relative_cost)


@dataclass(frozen=True)
class Compute(ABC):
    """How long a worker computes.

    Args:
        jitter: random factor of every charge: "none", "exponential" or "lognormal(<sigma>)", of mean 1.
        streams: whether it is an accelerator: the host issues ahead, and streams execute.
    """

    jitter: str
    streams: bool

    def __post_init__(self) -> None:
        drawn(self.jitter)

    def meter(self) -> Callable[[], float] | None:
        """What measures the calling thread: seconds since last asked; None where nothing is measured."""
        return None

    @property
    def launch_s(self) -> float:
        """Seconds in which a host issues one thing to an accelerator."""
        return 0.0

    @abstractmethod
    def batch_s(self, num_samples: int) -> float:
        """Seconds a batch costs as such, whatever operators work on it."""

    @abstractmethod
    def watch(
        self, charge: Charge, read: Callable[[], None], free: Callable[[], bool], made: Made | None = None
    ) -> AbstractContextManager[object]:
        """A block of the calling thread in which torch operators are charged.

        Args:
            charge: called with the seconds that an operator takes to launch, and to run.
            read: called when the host reads the value of a tensor.
            free: whether operators cost nothing just now.
            made: called with what each operator returns that is no view.
        """

    @property
    @abstractmethod
    def kernel(self) -> KernelCost | None:
        """What native kernels cost; None where they cannot run."""


@dataclass(frozen=True)
class Fixed(Compute):
    """Every sample costs the same, operators are free.

    A batch is charged when its worker next looks at the time, before messages that it begins once it has the batch:
    what is to overlap with computing, as D-PSGD's averaging is, needs a `Roofline`.

    Args:
        seconds_per_sample: > 0.
    """

    seconds_per_sample: float

    def __post_init__(self) -> None:
        super().__post_init__()
        cost = self.seconds_per_sample
        require(cost > 0, "hardware.compute.seconds_per_sample", "must be > 0", cost)

    def batch_s(self, num_samples: int) -> float:
        """In proportion."""
        return num_samples * self.seconds_per_sample

    def watch(
        self, charge: Charge, read: Callable[[], None], free: Callable[[], bool], made: Made | None = None
    ) -> AbstractContextManager[object]:
        """Charges nothing."""
        return _Reader(read) if self.streams else nullcontext()

    @property
    def kernel(self) -> KernelCost | None:
        """Per sample."""
        return None if self.streams else KernelCost(self.seconds_per_sample, 0.0)


@dataclass(frozen=True)
class Roofline(Compute):
    """Every operator costs overhead + max(flops / peak, bytes / bandwidth).

    (Williams, Waterman, Patterson, CACM 2009.) Flops are those of torch's flop counter where it knows the operator, of
    `linear_algebra.FLOPS`, else one per element of the largest tensor; bytes are those of the tensors read and of those
    written: what is overwritten is not read, and of a table from which rows are picked no more than they. Integers,
    booleans and what only moves values have bytes alone. Views and allocations move nothing. Fused attention that is
    causal has half the flops, since it skips what is masked. There are no caches: what was just written is read from
    memory. Small tensors, which a real device holds in its own, are charged more than they cost.

    Args:
        flops_per_s: by dtype of the result, e.g. {float32: 1e11}: the peak, or what large products reach. `tf32` is
            that of float32 products where torch may use it: `torch.set_float32_matmul_precision`, and for convolutions
            `torch.backends.cudnn.allow_tf32`.
        memory_bytes_per_s: memory bandwidth of one worker.
        operator_overhead_s: dispatch of one operator, >= 0.
        nonzero_s: one nonzero of the native sparse kernel, read and written, the model in the core's own caches; other
            kernels cost a multiple of it (`Kernel.relative_cost`); None where native kernels cannot run.
        kernel_latency_s: of an operator on the device beside its flops and bytes, to start and to drain, >= 0.
        backward_overhead_s: dispatch of one operator in a backward pass, beyond `operator_overhead_s`, >= 0: of the
            autograd engine, which runs in a thread of its own where there is a device.
        attention_efficiency: share of `flops_per_s` that fused attention reaches, in (0, 1].
        memory_bytes: of the device's own memory, > 0; None where nothing is said of it.
        peak_flops_per_s: of the data sheet, by dtype, where `flops_per_s` is less: what an MFU is a share of.
    """

    flops_per_s: dict[str, float]
    memory_bytes_per_s: float
    operator_overhead_s: float
    nonzero_s: float | None
    kernel_latency_s: float = 0.0
    backward_overhead_s: float = 0.0
    attention_efficiency: float = 1.0
    memory_bytes: float | None = None
    peak_flops_per_s: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        for dtype, reached in self.flops_per_s.items():
            require(reached > 0, f"hardware.compute.flops_per_s.{dtype}", "must be > 0", reached)
        for dtype, peak in self.peak_flops_per_s.items():
            reached = self.flops_per_s.get(dtype, 0.0)
            rule = f"must be no less than hardware.compute.flops_per_s.{dtype}={reached:.4g}"
            require(peak >= reached and peak > 0, f"hardware.compute.peak_flops_per_s.{dtype}", rule, peak)
        bandwidth, efficiency = self.memory_bytes_per_s, self.attention_efficiency
        require(bandwidth > 0, "hardware.compute.memory_bytes_per_s", "must be > 0", bandwidth)
        require(0 < efficiency <= 1, "hardware.compute.attention_efficiency", "must be in (0, 1]", efficiency)
        held = self.memory_bytes
        require(held is None or held > 0, "hardware.compute.memory_bytes", "must be > 0, or null", held)
        for name in ("operator_overhead_s", "kernel_latency_s", "backward_overhead_s"):
            require(getattr(self, name) >= 0, f"hardware.compute.{name}", "must be >= 0", getattr(self, name))
        require(
            self.nonzero_s is None or self.nonzero_s > 0, "hardware.compute.nonzero_s", "must be > 0", self.nonzero_s
        )

    def batch_s(self, num_samples: int) -> float:
        """Nothing: its operators are charged."""
        return 0.0

    def watch(
        self, charge: Charge, read: Callable[[], None], free: Callable[[], bool], made: Made | None = None
    ) -> AbstractContextManager[object]:
        """Charges every operator as it is called, those of backward passes too."""
        return _Meter(self, charge, read, free, made)

    @property
    def launch_s(self) -> float:
        """That of an operator."""
        return self.operator_overhead_s

    @property
    def kernel(self) -> KernelCost | None:
        """Per nonzero."""
        return None if self.nonzero_s is None else KernelCost(0.0, self.nonzero_s)

    def peak(self, dtype: str) -> float | None:
        """The data sheet's, of products of a dtype; None where there is none."""
        return self.peak_flops_per_s.get(dtype, self.flops_per_s.get(dtype))

    def operator_s(self, operator: Any, inputs: tuple, options: Mapping[str, Any], output: Any) -> float:
        """Seconds in which a torch operator runs, beyond its launch.

        Raises:
            UserError: if `flops_per_s` has no peak for the dtype.
        """
        name = operator.overloadpacket.__name__
        if name in ALLOCATE:
            return 0.0
        loaded = tensors_read(operator, name, inputs, options)
        stored = tensors_written(operator, inputs, options, output)
        moved = nbytes(loaded) + nbytes(stored)
        if name in PICK:
            moved += min(nbytes(stored), nbytes(tensors(inputs[:1])))
        move_s = moved / self.memory_bytes_per_s
        dtype = next((tensor.dtype for tensor in stored.values() if tensor.dtype.is_floating_point), None)
        if dtype is None or name in PICK or name in MOVE:
            return self.kernel_latency_s + move_s
        counted = _COUNTED_AS.get(operator.overloadpacket, operator.overloadpacket)
        reached = self._reached(dtype, counted)
        if counted in flop_registry:
            flops = _flops(counted, shapes(inputs), tuple(options), *shapes((*options.values(), output)))
            if name.startswith("_scaled_dot_product"):
                flops *= 0.5 if _is_causal(operator, inputs, options) else 1.0
                reached *= self.attention_efficiency
        elif name in FLOPS:
            flops = FLOPS[name](*[argument.shape for argument in inputs if isinstance(argument, torch.Tensor)])
        else:
            flops = max([tensor.numel() for tensor in (loaded | stored).values()])
        return self.kernel_latency_s + max(move_s, flops / reached)

    def _reached(self, dtype: torch.dtype, counted: Any) -> float:
        name = _name(dtype)
        if name == "float32" and "tf32" in self.flops_per_s and counted in flop_registry and _allows_tf32(counted):
            name = "tf32"
        if name not in self.flops_per_s:
            raise UserError(
                f"hardware.compute.flops_per_s must have a peak for every dtype computed with, got {self.flops_per_s} "
                f"and an operator on {name}: add hardware.compute.flops_per_s.{name}"
            )
        return self.flops_per_s[name]


def _allows_tf32(operator: Any) -> bool:
    """Whether a float32 product may be one of tf32, by the switches that torch has for CUDA."""
    if "convolution" in operator.__name__:
        return torch.backends.cudnn.allow_tf32
    return torch.get_float32_matmul_precision() != "highest"


def _is_causal(operator: Any, inputs: tuple, options: Mapping[str, Any]) -> bool:
    """Whether attention is told that what comes later is masked."""
    names = [argument.name for argument in operator._schema.arguments]
    return bool(dict(zip(names, inputs, strict=False), **options).get("is_causal", False))


@lru_cache(4096)
def _flops(operator: Any, inputs: tuple, options: tuple[str, ...], *values: Any) -> float:
    """By torch's formula for an operator it counts, of shapes: those of its inputs, options and, last, its output."""
    return flop_registry[operator](*inputs, **dict(zip(options, values, strict=False)), out_val=values[-1])


@cache
def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@dataclass(frozen=True)
class Measured(Compute):
    """The CPU time of the worker's thread on this host, times a ratio (Clauss et al., IPDPS 2011: SMPI).

    What runs between two communications or looks at the clock is charged at the second. Times differ from run to run.

    Args:
        ratio: seconds of the simulated worker over seconds of this host, > 0.
    """

    ratio: float

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.ratio > 0, "hardware.compute.ratio", "must be > 0", self.ratio)
        require(not self.streams, "hardware.compute.streams", "must be false: a host's thread has none", self.streams)

    def meter(self) -> Callable[[], float]:
        """Thread time."""
        import torch._dynamo  # noqa: F401, PLC0415 - torch's optimizers would, in a second of their first step

        last_s = time.thread_time()

        def since() -> float:
            nonlocal last_s
            before_s, last_s = last_s, time.thread_time()
            return self.ratio * (last_s - before_s)

        return since

    def batch_s(self, num_samples: int) -> float:
        """Nothing: it is measured."""
        return 0.0

    def watch(
        self, charge: Charge, read: Callable[[], None], free: Callable[[], bool], made: Made | None = None
    ) -> AbstractContextManager[object]:
        """Charges nothing by itself."""
        return nullcontext()

    @property
    def kernel(self) -> KernelCost | None:
        """Kernels of shared memory take turns sample by sample: nothing to measure."""
        return None


class _Meter(Operators):
    """Charges operators, and announces those that hand a value to the host."""

    def __init__(
        self, roofline: Roofline, charge: Charge, read: Callable[[], None], free: Callable[[], bool], made: Made | None
    ) -> None:
        super().__init__()
        self._roofline, self._charge, self._read, self._free, self._made = roofline, charge, read, free, made
        self._steps = StepCounters()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is _DEVICE and isinstance(args[0], FakeTensor):  # two of three calls: the quickest way
            return torch.device("meta") if args[0].fake_mode.in_kernel_invocation else args[0].fake_device
        if types and any(map(wraps_others, types)):
            return NotImplemented  # what a wrapper such as a DTensor makes of it comes here itself
        output = func(*args, **(kwargs or {}))
        if self._made is not None and not func.is_view:
            self._made(output)
        on_host = self._roofline.streams and self._steps.concern(func, args, output)
        if not (func.is_view or func.namespace in _UNLAUNCHED or func in ALIAS or self._free()):
            run_s = 0.0 if on_host else self._roofline.operator_s(func, args, kwargs or {}, output)
            self._charge(self._launch_s(), run_s)
        if func in _READS and not on_host:
            self._read()
        return output

    def _launch_s(self) -> float:
        backward = torch._C._current_graph_task_id() != -1
        return self._roofline.operator_overhead_s + backward * self._roofline.backward_overhead_s


class _Reader(Operators):
    """Announces operators that hand a value to the host."""

    def __init__(self, read: Callable[[], None]) -> None:
        super().__init__()
        self._read = read

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if func in _READS:
            self._read()
        return output


_aten = torch.ops.aten
_COUNTED_AS = {  # what torch counts by another name alone
    _aten._scaled_dot_product_flash_attention_for_cpu: _aten._scaled_dot_product_flash_attention,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: _aten._scaled_dot_product_flash_attention_backward,
}
_DEVICE = torch.ops.prim.device.default
_UNLAUNCHED = {"prim", "profiler"}  # namespaces: questions, such as where a fake tensor is, and labels of a trace
_READS = {_aten._local_scalar_dense.default, _aten.nonzero.default, _aten.equal.default, _aten.masked_select.default}
