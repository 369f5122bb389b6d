"""The numbers a shared model is stored as: floats, or fewer bits that kernels round to (`harness.kernels.numbers`)."""

import torch

from harness.errors import require

PRECISIONS = ("full", "bfloat16", "int8")


def check_precision(precision: str, quantum: float) -> None:
    """Refuse what is none of `PRECISIONS`.

    Raises:
        UserError: naming algorithm.precision or algorithm.quantum.
    """
    require(precision in PRECISIONS, "algorithm.precision", f"must be one of {', '.join(PRECISIONS)}", precision)
    require(quantum > 0, "algorithm.quantum", "must be > 0", quantum)


def encode(weights: torch.Tensor, precision: str, quantum: float) -> torch.Tensor:
    """Weights as kernels store them: int16 holds the bits of a bfloat16, int8 a number of quanta in [-127, 127].

    >>> encode(torch.tensor([0.5, -9.0]), "int8", quantum=0.25)
    tensor([  2, -36], dtype=torch.int8)
    """
    if precision == "bfloat16":
        return weights.to(torch.bfloat16).view(torch.int16)
    if precision == "int8":
        return (weights / quantum).round().clamp(-127, 127).to(torch.int8)
    return weights


def decode(weights: torch.Tensor, precision: str, quantum: float) -> torch.Tensor:
    """What stored weights mean.

    >>> decode(torch.tensor([2, -36], dtype=torch.int8), "int8", quantum=0.25)
    tensor([ 0.5000, -9.0000])
    """
    if precision == "bfloat16":
        return weights.view(torch.bfloat16).float()
    if precision == "int8":
        return weights * quantum
    return weights
