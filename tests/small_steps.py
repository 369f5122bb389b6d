"""Small steps on a model, spelt out: what tests compare with."""

import torch
from torch import nn


def flat_gradient(model: nn.Module) -> torch.Tensor:
    """A flat copy of the gradient, shape (parameters,); zero where a parameter has none."""
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in model.parameters()])


def view_parameters_(model: nn.Module, flat: torch.Tensor) -> None:
    """Make every parameter of `model` a view into `flat`, shape (parameters,): writing one writes the other."""
    start = 0
    for p in model.parameters():
        p.data = flat[start : start + p.numel()].view_as(p)
        start += p.numel()


@torch.no_grad()
def set_gradient_(model: nn.Module, flat: torch.Tensor) -> None:
    """Copy the slices of `flat`, shape (parameters,), into the gradients."""
    start = 0
    for p in model.parameters():
        p.grad = flat[start : start + p.numel()].view_as(p)
        start += p.numel()


@torch.no_grad()
def sgd_step_(model: nn.Module, learning_rate: float) -> None:
    """W <- w - learning_rate * gradient, in place; clears the gradient."""
    for p in model.parameters():
        if p.grad is not None:
            p.add_(p.grad, alpha=-learning_rate)
            p.grad = None
