"""The tensors that a torch operator reads and writes, and how large they are."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from hardware.simulated.operators import LIKE, NEW, OVERWRITE, PICK, effects


def tensors_read(operator: Any, name: str, inputs: tuple, options: Mapping[str, Any]) -> dict[int, torch.Tensor]:
    """The tensors that a call reads; without the table that it picks from."""
    if name in LIKE or name in NEW:
        return {}
    first = 1 if name in PICK or name in OVERWRITE else 0
    _, filled = effects(operator)
    return tensors((*inputs[first:], *[value for option, value in options.items() if option not in filled]))


def tensors_written(operator: Any, inputs: tuple, options: Mapping[str, Any], output: Any) -> dict[int, torch.Tensor]:
    """The tensors that a call returns, and those that it writes in place."""
    writes, _ = effects(operator)
    if not writes:
        return tensors((output,))
    arguments = (*enumerate(inputs), *options.items())
    return tensors((output, *[value for place, value in arguments if place in writes]))


def nbytes(found: Mapping[int, torch.Tensor]) -> int:
    """Of all of them."""
    return sum([tensor.nbytes for tensor in found.values()])


def shapes(arguments: Iterable) -> tuple:
    """Arguments with shapes for tensors and tuples for lists."""
    return tuple(
        leaf.shape if isinstance(leaf, torch.Tensor) else shapes(leaf) if isinstance(leaf, list | tuple) else leaf
        for leaf in arguments
    )


def tensors(tree: Iterable) -> dict[int, torch.Tensor]:
    """The tensors among arguments and in their lists, of sparse ones the parts, each once, by identity."""
    found: dict[int, torch.Tensor] = {}
    for leaf in tree:
        if isinstance(leaf, torch.Tensor):
            for part in (leaf,) if leaf.layout is torch.strided else _parts(leaf):
                found[id(part)] = part
        elif isinstance(leaf, list | tuple):
            found |= tensors(leaf)
    return found


def _parts(sparse: torch.Tensor) -> tuple[torch.Tensor, ...]:
    if sparse.layout is torch.sparse_coo:
        return sparse._values(), sparse._indices()
    if sparse.layout in (torch.sparse_csr, torch.sparse_bsr):
        return sparse.values(), sparse.crow_indices(), sparse.col_indices()
    return sparse.values(), sparse.ccol_indices(), sparse.row_indices()
