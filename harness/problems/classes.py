"""What is measured of models that give scores to classes, the last dimension of their outputs."""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import nn
from torch.nn.functional import cross_entropy

AT_ONCE = 512  # samples that a model measured sees at a time


class MeanProbability(nn.Module):
    """Logarithms of the mean of the probabilities that models give to classes, shape (batch, ..., classes)."""

    def __init__(self, models: Sequence[nn.Module]) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """What each of the models takes."""
        logs = torch.stack([model(inputs).log_softmax(-1) for model in self.models])
        return logs.logsumexp(0) - math.log(len(logs))


@torch.no_grad()
def measure(model: nn.Module, batches: Iterable[tuple[torch.Tensor, ...]]) -> tuple[float, float]:
    """Mean cross entropy, and the share of those classes that have the highest score.

    Args:
        batches: inputs and classes.
    """
    device = next(model.parameters()).device
    loss, right, count = 0.0, 0, 0
    for inputs, classes in batches:
        scores, wanted = model(inputs.to(device)).cpu().flatten(0, -2), classes.flatten()
        loss += float(cross_entropy(scores, wanted, reduction="sum"))
        right += int((scores.argmax(1) == wanted).sum())
        count += len(wanted)
    return loss / count, right / count


def evenly(num_samples: int, most: int) -> torch.Tensor:
    """Numbers of all samples, or of so many of them, evenly spaced, int64.

    >>> evenly(10, 4).tolist()
    [0, 2, 5, 7]
    """
    count = min(num_samples, most)
    return torch.arange(count) * num_samples // count
