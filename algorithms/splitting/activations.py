"""What workers that split a layer do to activations, in the forward pass, and to their gradients, in the backward pass.

                            forward           backward
    enter                   -                 sum                f of Shoeybi et al., arXiv:1909.08053, figure 3
    leave                   sum               -                  g
    enter, by position      gather            sum and scatter    g of Korthikanti et al., arXiv:2205.05198, figure 5
    leave, by position      sum and scatter   gather             g bar
    cut_positions           cut               gather
    join_positions          gather            cut

A sum is an all-reduce. Collectives are those of torch.distributed, which tensors without values take part in too.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

POSITIONS = 1  # dimension of an activation: samples, positions, features

Move = Callable[[torch.Tensor], torch.Tensor]


class Exchange:
    """The exchange of activations in a group.

    Args:
        group: of those who split layers.
        by_position: whether activations outside of split layers are split by position.
    """

    def __init__(self, group: dist.ProcessGroup, by_position: bool) -> None:
        self.group, self.by_position = group, by_position
        self.size, self.rank = dist.get_world_size(group), dist.get_rank(group)
        self._outside: torch.Tensor | None = None  # what `enter` was given last
        self._inside: torch.Tensor | None = None  # and what it made of it

    def enter(self, x: torch.Tensor) -> torch.Tensor:
        """What a split layer takes, made once for all that take the same tensor one after the other."""
        if self._inside is None or self._outside is not x:
            there, back = (self.gather, self.scatter) if self.by_position else (_same, self.sum)
            self._outside, self._inside = x, _moved(x, there, back)
        return self._inside

    def leave(self, y: torch.Tensor) -> torch.Tensor:
        """What a split layer gives, of this worker's part of the sum."""
        self.forget()
        return _moved(y, *((self.scatter, self.gather) if self.by_position else (self.sum, _same)))

    def forget(self) -> None:
        """Let go of what `enter` was given: nobody takes the same again."""
        self._outside = self._inside = None

    def cut_positions(self, x: torch.Tensor) -> torch.Tensor:
        """This worker's positions of what all have."""
        return _moved(x, self.cut, self.gather)

    def join_positions(self, x: torch.Tensor) -> torch.Tensor:
        """All positions, for all to go on with alike."""
        return _moved(x, self.gather, self.cut)

    def join_features(self, x: torch.Tensor) -> torch.Tensor:
        """All features, for all to go on with alike."""
        last = x.dim() - 1
        return _moved(x, partial(self.gather, dim=last), partial(self.cut, dim=last))

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        """Of all parts, in place of this one: a product, or the gradient of one, that nobody else looks at."""
        x = x.contiguous()
        dist.all_reduce(x, group=self.group)
        return x

    def largest(self, x: torch.Tensor) -> torch.Tensor:
        """Of all workers', in place of this one's."""
        dist.all_reduce(x, dist.ReduceOp.MAX, group=self.group)
        return x

    def gather(self, x: torch.Tensor, dim: int = POSITIONS) -> torch.Tensor:
        """All parts along a dimension, >= 0."""
        parts = x.new_empty((self.size * len(x), *x.shape[1:]))  # gloo takes no further dimension
        dist.all_gather_single(parts, x.contiguous(), self.group)
        return parts.unflatten(0, (self.size, -1)).movedim(0, dim).flatten(dim, dim + 1)

    def scatter(self, x: torch.Tensor) -> torch.Tensor:
        """This worker's positions of the sum of all parts."""
        parts = x.unflatten(POSITIONS, (self.size, -1)).movedim(POSITIONS, 0).flatten(0, 1).contiguous()
        own = parts.new_empty((len(x), *parts.shape[1:]))
        dist.reduce_scatter_single(own, parts, group=self.group)
        return own

    def cut(self, x: torch.Tensor, dim: int = POSITIONS) -> torch.Tensor:
        """This worker's part along a dimension."""
        return x.chunk(self.size, dim)[self.rank].contiguous()


class Features:
    """A split of the last dimension among the workers of an exchange, as problems see it (`FeatureSplit`).

    Args:
        size: features here.
    """

    def __init__(self, exchange: Exchange, size: int) -> None:
        self._exchange, self.first = exchange, size * exchange.rank

    def sum(self, parts: torch.Tensor) -> torch.Tensor:
        """Over all workers, on each."""
        return _moved(parts, self._exchange.sum, _same)

    def largest(self, values: torch.Tensor) -> torch.Tensor:
        """Over all workers, on each."""
        return self._exchange.largest(values)


class _Moved(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, there: Move, back: Move) -> torch.Tensor:
        ctx.back = back
        moved = there(x)
        if moved is x:
            ctx.mark_dirty(x)  # summed in place
        return moved

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return ctx.back(gradient), None, None


def _moved(x: torch.Tensor, there: Move, back: Move) -> torch.Tensor:
    moved: torch.Tensor = _Moved.apply(x, there, back)
    return moved


def _same(x: torch.Tensor) -> torch.Tensor:
    return x.view_as(x)
