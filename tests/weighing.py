"""A problem that keeps the weights of all models that it evaluates."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn.utils import parameters_to_vector

from harness.problems.mlp import DigitsMLP


@dataclass(frozen=True)
class Weighing(DigitsMLP):
    """The digits.

    Args:
        file: where it keeps them, shape (models, parameters).
    """

    file: str

    def evaluate(self, model):
        weights = parameters_to_vector(model.parameters()).detach().clone()[None]
        before = torch.load(self.file) if Path(self.file).exists() else weights[:0]
        torch.save(torch.cat([before, weights]), self.file)
        return super().evaluate(model)
