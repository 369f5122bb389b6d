"""Messages of bytes: two tensors in one, and whole numbers of few bits, several in a byte."""

import torch


def packed(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Whole numbers below 2^bits, 8 / bits of them in a byte.

    Args:
        codes: shape (n,).
        bits: 1, 2, 4 or 8.

    Returns:
        uint8, shape (ceil(n * bits / 8),).

    >>> packed(torch.tensor([1, 2, 3]), bits=4).tolist(), unpacked(packed(torch.tensor([1, 2, 3]), 4), 4, 3).tolist()
    ([33, 3], [1, 2, 3])
    """
    each = 8 // bits
    padded = torch.zeros(-(-len(codes) // each) * each, dtype=torch.uint8, device=codes.device)
    padded[: len(codes)] = codes.to(torch.uint8)
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=codes.device)
    return (padded.view(-1, each) << shifts).sum(dim=1, dtype=torch.uint8)


def unpacked(packed: torch.Tensor, bits: int, size: int) -> torch.Tensor:
    """The first `size` numbers that `packed` was given."""
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=packed.device)
    return ((packed[:, None] >> shifts) & (2**bits - 1)).view(-1)[:size]


def joined(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """The bytes of both, one after the other."""
    return torch.cat([first.view(torch.uint8), second.view(torch.uint8)])


def split(message: torch.Tensor, first_bytes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Both parts, each with a memory of its own: values of several bytes must be aligned."""
    return message[:first_bytes].clone(), message[first_bytes:].clone()
