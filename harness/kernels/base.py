"""The Kernel, and the three functions that each kind defines.

A kernel is data (rows, labels, ...) and an update, cut in two so that the simulator can let time pass between them:

    read      what the gradient needs of the model, as it is then: one number, the slope
    write     the additions to the model that follow from it, landing on the model as it is by then
    prefetch  asks for the rows of a sample that will be visited soon; optional in effect

The three are compiled for each kind of kernel: `define` has numba choose by the class of `Kernel.native()`.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numba import types
from numba.extending import overload

from harness.kernels.access import Access
from harness.kernels.native import INLINE, prefetch
from harness.kernels.numbers import Hot, Step
from harness.kernels.row_data import RowData


@dataclass(frozen=True)
class SplitModel:
    """A model whose hottest coordinates are replicated.

    Args:
        cold: shape (parameters,), shared; its hot coordinates are not used.
        hot: shape (K,), the replica, block after block.
        slots: int32, shape (parameters,): where in `hot` a coordinate lies, or -1.
    """

    cold: torch.Tensor
    hot: torch.Tensor
    slots: torch.Tensor


Model = torch.Tensor | SplitModel


class Kernel(ABC):
    """Per-sample updates of a flat model.

    Real hardware runs a chunk of samples in one call; the simulator interleaves the updates in virtual time.

    Attributes:
        name: of the algorithm that runs it.
        relative_cost: time of a parameter at hand, in nonzeros of `SparseLinearKernel`
            (experiments/benchmarks/relative_costs.py).
        relative_sample_cost: by which a sample takes longer than one of that kernel, in its nonzeros.
        block: parameters, contiguous, that a coordinate stands for.
        rows_name: what its samples lie in.
        model_name: what its model is, where that is not the run's.
        adds_beyond_model: whether it adds to something per sample, too, that two workers on one sample share.
    """

    name: ClassVar[str]
    rows_name: ClassVar[str] = "rows"
    model_name: ClassVar[str] = "model"
    adds_beyond_model: ClassVar[bool] = False
    relative_cost: float = 1.0
    relative_sample_cost: float = 0.0
    block: int = 1

    @property
    @abstractmethod
    def indptr(self) -> torch.Tensor:
        """int64, shape (samples + 1,): where in `indices` the coordinates of each sample begin."""

    @property
    @abstractmethod
    def indices(self) -> torch.Tensor:
        """int32, shape (touched,): coordinates, ascending within a sample."""

    @property
    @abstractmethod
    def num_coordinates(self) -> int:
        """Coordinates of the model, of `block` parameters each."""

    @abstractmethod
    def native(self) -> Any:
        """What compiled code sees: a NamedTuple of numpy views and numbers, with `indptr` and `indices` among them.

        Made anew for every call: sharing a tensor with another process moves its storage.
        """

    @property
    def row_data(self) -> RowData | None:
        """The rows it reads; None where they cannot be moved. Where they can, `over` and `renumbered` work."""
        return None

    @property
    def arrays(self) -> dict[str, torch.Tensor]:
        """Its rows, by what the manifest calls their arrays."""
        data = self.row_data
        data = RowData(self.indptr, {"indices": self.indices}, {}) if data is None else data
        found = {"indptr": data.indptr, **data.by_nonzero, **data.by_sample}
        return {f"{self.rows_name}: {name}": array for name, array in found.items()}

    def over(self, data: RowData) -> "Kernel":
        """The same updates over other rows of the same coordinates.

        Args:
            data: with the names of `row_data`.
        """
        raise NotImplementedError

    def renumbered(self, places: torch.Tensor, num_coordinates: int) -> "Kernel":
        """The same updates on a model whose coordinate j is at places[j].

        Args:
            places: int64, shape (coordinates,), different numbers below `num_coordinates`.
        """
        raise NotImplementedError

    def __call__(
        self,
        model: Model,
        samples: torch.Tensor,
        learning_rate: float,
        access: Access | None = None,
        salt: int = 0,
    ) -> None:
        """Apply one update per sample, in order, to `model` in place. Releases the interpreter's lock.

        Args:
            model: shape (parameters,), contiguous, possibly written by others meanwhile.
            samples: int32 indices, shape (n,).
            access: how updates get to the model; lock-free by default.
            salt: of the random numbers, < 2^63; n from here on are used.
        """
        from harness.kernels.loop import run, run_uncached  # noqa: PLC0415 - the loop is compiled over what is here

        access = access or Access()
        (run if self.is_cached else run_uncached)(
            self.native(),
            native_model(model),
            samples.numpy(),
            native_step(learning_rate, access),
            np.uint64(salt),
            access.code,
            access.words.numpy(),
            access.delay_s,
        )

    @property
    def is_cached(self) -> bool:
        """Whether its compiled code is kept between runs: a cache would not see that another file has changed."""
        return type(self).__module__.startswith("harness.kernels.")

    def agrees(self, other: "Kernel") -> bool:
        """Whether it is the same update of the same data, in the same memory."""
        return self is other or (type(self) is type(other) and _places(self.native()) == _places(other.native()))

    def warm_up(self, model: Model, access: Access | None = None) -> None:
        """Compile, so that no clock sees it, for models like `model`, which is not changed."""
        self(model, torch.empty(0, dtype=torch.int32), 0.0, access)

    def nonzeros(self, samples: torch.Tensor) -> int:
        """Coordinates that a chunk of samples touches, exactly: what the chunk costs."""
        return int((self.indptr[samples + 1] - self.indptr[samples]).sum())


def _places(native: tuple) -> list[Any]:
    """What a NamedTuple holds, with where its arrays lie instead of what is in them."""
    places: list[Any] = []
    for part in native:
        if isinstance(part, np.ndarray):
            places.append((part.ctypes.data, part.shape, part.dtype))
        else:
            places.append(_places(part) if isinstance(part, tuple) else part)
    return places


def native_model(model: Model) -> np.ndarray | Hot:
    """What compiled code sees of a model."""
    if isinstance(model, SplitModel):
        parts = (model.cold.data_ptr(), model.hot.data_ptr(), model.slots.data_ptr())
        return Hot(*parts, model.cold[:0].numpy())
    return model.numpy()


def native_step(learning_rate: float, access: Access) -> Step:
    """What compiled code sees of how a chunk is applied."""
    return Step(float(learning_rate), access.locking == "atomic", float(access.quantum))


def read(kernel: Any, weights: Any, sample: int, step: Step) -> float:
    """What the gradient of a sample needs of the model: one number. Changes nothing of the model."""
    raise NotImplementedError


def write(kernel: Any, weights: Any, sample: int, slope: float, step: Step, salt: int) -> None:
    """Add a sample's update to the model.

    Args:
        slope: what `read` returned.
        salt: uint64, of the random numbers of this update.
    """
    raise NotImplementedError


def prefetch_sample(kernel: Any, weights: Any, sample: int) -> None:
    """Ask for the cache lines of a sample's data, without waiting for them."""
    raise NotImplementedError


def prefetch_data(kernel: Any, sample: int) -> None:
    """Ask for what `prefetch_sample` will read, earlier: where its row begins, or a method of `Kernel.native()`."""
    raise NotImplementedError


@overload(prefetch_data, jit_options=INLINE)
def _prefetch_data(kernel, sample):
    return getattr(kernel.instance_class, "prefetch_data", _ask_where_the_row_begins)


def _ask_where_the_row_begins(kernel, sample):
    prefetch(kernel.indptr, np.uint64(np.uint32(sample)))


def define(native: type, ask: Any, slope: Any, update: Any, ask_hot: Any = None) -> None:
    """Compile these functions where a kernel's `native()` is of the class `native`.

    Args:
        ask: as `prefetch_sample`.
        slope: as `read`.
        update: as `write`.
        ask_hot: instead of `ask` on a `Hot`, if its addresses cannot be asked for alike.
    """

    def chosen(kernel: Any, function: Any) -> Any:
        return function if isinstance(kernel, types.NamedTuple) and kernel.instance_class is native else None

    def asked(weights: Any) -> Any:
        return ask if ask_hot is None or isinstance(weights, types.Array) else ask_hot

    overload(prefetch_sample, jit_options=INLINE)(lambda kernel, weights, sample: chosen(kernel, asked(weights)))
    overload(read, jit_options=INLINE)(lambda kernel, weights, sample, step: chosen(kernel, slope))
    overload(write, jit_options=INLINE)(lambda kernel, weights, sample, slope, step, salt: chosen(kernel, update))
