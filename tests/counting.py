"""Counting kernels over rows spelt out: whatever was lost shows."""

import numpy as np
import torch

from harness.kernels.counting import CountingKernel


def CountKernel(touched, num_coordinates, block=1):  # named as the class it makes
    """Sample i adds 1 to each of `touched[i]`."""
    indptr = torch.tensor([0, *np.cumsum([len(row) for row in touched])])
    indices = torch.tensor([j for row in touched for j in row], dtype=torch.int32)
    return CountingKernel(indptr, indices, num_coordinates, block)
