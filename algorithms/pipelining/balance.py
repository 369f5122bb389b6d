"""Where a chain of layers is cut into stages that take equally long.

    c_1 .. c_n: what each layer costs

A pipeline is as fast as its slowest stage: of all ways to cut the chain we take the one whose largest sum of costs is
least, by dynamic programming. (torchgpipe, Kim et al., arXiv:2004.09910, has the partition of Barany and Grinberg,
"Block partitions of sequences", 2015, whose sums differ by no more than the dearest layer.) What a layer costs is

    layers       1
    parameters   its parameters
    flops        of its forward pass, by torch's flop counter; 0 where nothing is multiplied
    measured     seconds of one forward and one backward pass, by the run's own clock
"""

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise

import torch
from torch import nn

from harness.errors import require

BALANCES = ("layers", "parameters", "flops", "measured")


def check_balance(balance: str) -> None:
    """Refuse what is none.

    Raises:
        UserError: naming those there are.
    """
    require(balance in BALANCES, "algorithm.balance", f"must be one of {', '.join(BALANCES)}", balance)


def cut(costs: Sequence[float], num_parts: int) -> list[range]:
    """The parts of a chain, none of them empty, whose largest sum of costs is least.

    Of equal cuts the one with the least sum of squares that follows from the best cuts of what is before.

    Args:
        costs: of each link, >= 0; at least as many as parts.

    >>> cut([1, 1, 1, 3, 1], 3)
    [range(0, 3), range(3, 4), range(4, 5)]
    """
    sums = [0.0, *accumulate(costs)]
    best: dict[int, tuple[float, float, tuple[int, ...]]] = {0: (0.0, 0.0, (0,))}  # by links cut off: of the best cut
    for _ in range(num_parts):
        ends = range(min(best) + 1, len(sums))
        best = {end: min(_extended(best[at], end, sums[end] - sums[at]) for at in best if at < end) for end in ends}
    return [range(*part) for part in pairwise(best[len(costs)][2])]


def _extended(
    cut_off: tuple[float, float, tuple[int, ...]], end: int, cost: float
) -> tuple[float, float, tuple[int, ...]]:
    largest, squares, ends = cut_off
    return max(largest, cost), squares + cost**2, (*ends, end)


def parameters(layer: nn.Module) -> int:
    """How many a layer has."""
    return sum(parameter.numel() for parameter in layer.parameters())


def seconds(layers: Sequence[nn.Module], inputs: torch.Tensor, read_clock: Callable[[], float]) -> list[float]:
    """Of one forward and one backward pass of each layer, after one that is not counted.

    Args:
        read_clock: after all that was issued has been done.
    """
    measured = []
    for layer in layers:
        for _ in range(2):
            begin_s = read_clock()
            outputs = layer(inputs)
            outputs.sum().backward()
            end_s = read_clock()
        layer.zero_grad()
        measured.append(end_s - begin_s)
        inputs = outputs.detach().requires_grad_(outputs.is_floating_point())
    return measured
