"""Convolutional networks on images: a small one, and ResNet-20."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import pad, relu

from harness.errors import require
from harness.problems.images import ImageClassification


@dataclass(frozen=True)
class SmallCNN(ImageClassification):
    """Two convolutions, each followed by maxima of 2 x 2 pixels, and two linear layers (as LeCun et al., 1998).

    Args:
        channels: of the first convolution, >= 1; the second one has twice as many.
        hidden: units between the linear layers, >= 1.
    """

    channels: int
    hidden: int

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.channels >= 1, "problem.channels", "must be >= 1", self.channels)
        require(self.hidden >= 1, "problem.hidden", "must be >= 1", self.hidden)

    def layers(self) -> nn.Sequential:
        """Torch's default initialisation."""
        inputs, rows, columns = self.image_shape
        pixels = (rows // 4) * (columns // 4)
        return nn.Sequential(
            *(nn.Conv2d(inputs, self.channels, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(self.channels, 2 * self.channels, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(2 * self.channels * pixels, self.hidden), nn.ReLU()),
            nn.Linear(self.hidden, self.num_classes),
        )

    def tensor_plan(self) -> Mapping[str, str]:
        """The linear layers, as a pair; convolutions are whole."""
        return {"7": "column", "9": "row"}


class Residual(nn.Module):
    """x + f(x), f being two convolutions; where channels grow, images shrink, and x is padded with channels of zeros.

    Option A of He et al.'s section 4.2, which has no weights.
    """

    def __init__(self, inputs: int, outputs: int, groups: int) -> None:
        super().__init__()
        self.stride, self.added = (1, 0) if inputs == outputs else (2, outputs - inputs)
        self.first = nn.Conv2d(inputs, outputs, 3, stride=self.stride, padding=1, bias=False)
        self.first_norm = nn.GroupNorm(groups, outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.second_norm = nn.GroupNorm(groups, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Shape (batch, inputs, rows, columns) to (batch, outputs, rows / stride, columns / stride)."""
        change = self.second_norm(self.second(relu(self.first_norm(self.first(x)))))
        before, behind = self.added // 2, self.added - self.added // 2
        return relu(pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, behind)) + change)


class Head(nn.Module):
    """A score for each class, of the means of all channels."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Shape (batch, channels, rows, columns) to (batch, classes)."""
        return self.linear(x.mean((2, 3)))


@dataclass(frozen=True)
class ResNet(ImageClassification):
    """The residual networks of He, Zhang, Ren and Sun (CVPR 2016), section 4.2, of 6 n + 2 layers; n = 3 is ResNet-20.

    We deviate in that batch normalisation is replaced by that of groups of channels of one image (Wu and He, ECCV
    2018). With the former the gradient of a batch is not the mean of those of its parts, and a model has statistics
    beside its parameters: neither workers that share a batch nor micro-batches would do what one worker does.

    Args:
        channels: of the first stage, >= 1; the second and third have two and four times as many. 16 in the paper.
        blocks: of two convolutions, in each of three stages, >= 1: n.
        groups: of channels that are normalised together, a divisor of channels.
    """

    channels: int
    blocks: int
    groups: int

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("channels", "blocks", "groups"):
            require(getattr(self, name) >= 1, f"problem.{name}", "must be >= 1", getattr(self, name))
        rule = f"must divide problem.channels={self.channels}"
        require(self.channels % self.groups == 0, "problem.groups", rule, self.groups)

    def deepened(self, layers: int) -> str:
        """More blocks in each stage, beside the first layer and the head."""
        return f"problem.blocks={-(-(layers - 2) // 3)}"

    def layers(self) -> nn.Sequential:
        """Initialisation of He et al., ICCV 2015, section 2.2, of convolutions; torch's default of the linear layer."""
        first = nn.Conv2d(self.image_shape[0], self.channels, 3, padding=1, bias=False)
        stages = [stage * self.channels for stage in (1, 2, 4) for _ in range(self.blocks)]
        sizes = zip([self.channels, *stages], stages, strict=False)
        model = nn.Sequential(
            nn.Sequential(first, nn.GroupNorm(self.groups, self.channels), nn.ReLU()),
            *(Residual(inputs, outputs, self.groups) for inputs, outputs in sizes),
            Head(4 * self.channels, self.num_classes),
        )
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        return model
