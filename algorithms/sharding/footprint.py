"""What a worker's tensors take, by what they are for: measured from those that live, in the first step.

Parameters, gradients and the optimiser's state are what the worker keeps as it takes the step; activations what is
alive of the forward pass when it ends, so that the backward pass may need it. In none of them are layers that are
gathered for a moment, and what computing needs in passing.
"""

import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from harness.worker import Worker


class Footprint:
    """Measures a worker's first step.

    with footprint.forward(model.parameters()):
        loss = problem.loss(model, batch)
    loss.backward()
    optimizer.step()
    footprint.tell(kept, optimizer.state)
    """

    def __init__(self, worker: Worker) -> None:
        self._worker, self._told = worker, False
        self._activation_bytes = 0

    @contextmanager
    def forward(self, parameters: Iterable[torch.Tensor]) -> Iterator[None]:
        """A block that is a forward pass, or a part of one.

        Args:
            parameters: of the model, as they are at its end.
        """
        if self._told:
            yield
            return
        with _Births() as births:
            yield
        alive = {id(storage): storage for storage in births.storages}
        for parameter in parameters:
            alive.pop(id(parameter.untyped_storage()), None)
        self._activation_bytes += sum(storage.nbytes() for storage in alive.values())

    def tell(self, parameters: Iterable[torch.Tensor], state: Mapping[Any, Any]) -> None:
        """Tell what the step took, as it is over and the gradients are there yet.

        Args:
            parameters: that the worker keeps, each with its gradient.
            state: of the optimiser, by parameter.
        """
        if self._told:
            return
        self._told = True
        kept = list(parameters)
        states = [leaf for leaf in tree_leaves(list(state.values())) if isinstance(leaf, torch.Tensor)]
        bytes_of = {
            "parameter": _nbytes(kept),
            "gradient": _nbytes(each.grad for each in kept),
            "optimizer": _nbytes(states),
        }
        for name, taken_bytes in (bytes_of | {"activation": self._activation_bytes}).items():
            self._worker.measure(f"mem/{name}_bytes", float(taken_bytes))


def _nbytes(tensors: Iterable[torch.Tensor | None]) -> int:
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)


class _Births(TorchDispatchMode):
    """A block in which new memory that operators return is remembered, as long as it lives."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nobody compiles these: do not load torch's compiler, a second, to say so at every call

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if func.namespace == "fsdp":  # it gathers, or cuts what it has gathered, which it may keep for a while
            self.storages -= {*_storages((args, kwargs, output))}
        elif not (func.is_view or func._schema.is_mutable):
            self.storages.update(_storages(output))
        return output


def _storages(tree: Any) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
