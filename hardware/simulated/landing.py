"""What torch operators cost on shared models, and when their writes land.

An operator reads a shared model where it takes a tensor of its storage, and writes it where its schema says so: in
place, in a list or as `out=`. Reading fetches the lines the rank lacks; then writing makes the rank their only holder.
What is written without being read (`copy_`, `zero_`) is fetched all the same, as cores do; `out=` is only owned.
Views read nothing, nor do operators that take no more than a shape.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from hardware.simulated.engine import Engine
from hardware.simulated.operators import LIKE, NEW, Operators, effects
from hardware.simulated.shared_models import SharedModels


class Landing(Operators):
    """Charges a rank for the lines of shared models, and lets its updates land when their computation is paid for.

    Args:
        rank: whose operators they are.
        charge: spends seconds of the rank.
    """

    def __init__(self, engine: Engine, models: SharedModels, rank: int, charge: Callable[[float], None]) -> None:
        super().__init__()
        self._engine, self._models, self._rank, self._charge = engine, models, rank, charge

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if self._engine.current.uncharged or not _touches_memory(func):
            return func(*args, **kwargs)
        read, written = self._shared(func, args, kwargs)
        if read:
            self._engine.catch_up()
            self._charge(self._models.read_s(self._rank, read))
        if not written:
            return func(*args, **kwargs)
        self._engine.sync()
        output = func(*args, **kwargs)
        self._charge(self._models.write_s(self._rank, written))
        return output

    def _shared(self, func: Any, args: tuple, kwargs: dict) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """The tensors on shared models that a call reads, and those that it writes."""
        read, written = [], []
        writes, fills = effects(func)
        for name, argument in (*enumerate(args), *kwargs.items()):
            for tensor in _plain_tensors(argument):
                if self._models.shares_storage(tensor):
                    if name in writes:
                        written.append(tensor)
                    if name not in fills:
                        read.append(tensor)
        return read, written


def _touches_memory(func: Any) -> bool:
    return not func.is_view and func.overloadpacket.__name__ not in LIKE + NEW


def _plain_tensors(argument: Any) -> Iterator[torch.Tensor]:
    """Its tensors with memory of their own; operators on what a subclass wraps arrive here themselves."""
    for leaf in tree_leaves(argument):
        if type(leaf) in (torch.Tensor, torch.nn.Parameter) and leaf.layout is torch.strided:
            yield leaf
