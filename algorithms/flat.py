"""The model as one flat vector: what is averaged, shared and sent is one buffer, not many small ones."""

import torch
from torch import nn
from torch.nn.utils import parameters_to_vector


def flat_parameters(model: nn.Module) -> torch.Tensor:
    """A flat copy of the parameters, shape (parameters,), detached and contiguous."""
    return parameters_to_vector(model.parameters()).detach().clone()


def flatten_(
    model: nn.Module, weights: torch.Tensor | None = None, gradient: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Make parameters and gradients of `model` views into two flat vectors: writing one writes the other.

    `backward()` then adds to the flat gradient; whoever has used it sets it to zero.

    Args:
        weights: the vector to use, shape (parameters,), whose values the model takes on; None for a copy of its own.
        gradient: likewise; None for zeros of its own.

    Returns:
        weights and gradient, shape (parameters,) each.
    """
    weights = flat_parameters(model) if weights is None else weights
    gradient = torch.zeros_like(weights) if gradient is None else gradient
    start = 0
    for p in model.parameters():
        part = slice(start, start + p.numel())
        p.data, p.grad = weights[part].view_as(p), gradient[part].view_as(p)
        start += p.numel()
    return weights, gradient
