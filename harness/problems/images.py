"""Problems in which images are to be classified: those of a folder, or scikit-learn's digits."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from harness import datasets
from harness.errors import require
from harness.problems import image_files
from harness.problems.classes import AT_ONCE, MeanProbability, evenly, measure
from harness.problems.image_files import Images
from harness.problems.layered import Layered


@dataclass(frozen=True)
class ImageClassification(Layered):
    """Cross entropy of the classes of images, whose channels have mean 0 and variance 1 over the training set.

    Images are neither cropped nor flipped at random: samples are what is stored.

    Args:
        path: a folder of Fashion-MNIST, MNIST or CIFAR-10 (see `image_files`); None for digits of 8 x 8 pixels.
        test_fraction: share of images held out where there is no `path`, in (0, 1); files have a test set.
        evaluated_samples: of each set, at most, evenly spaced, on which losses are measured, >= 1.
        seed: of what is held out of the digits, >= 0.
    """

    loss_reads: ClassVar[tuple[str, ...]] = ("train", "scale")

    path: str | None
    test_fraction: float
    evaluated_samples: int
    seed: int

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.test_fraction < 1, "problem.test_fraction", "must be in (0, 1)", self.test_fraction)
        for name, least in {"evaluated_samples": 1, "seed": 0}.items():
            require(getattr(self, name) >= least, f"problem.{name}", f"must be >= {least}", getattr(self, name))

    @property
    def num_samples(self) -> int:
        """Size of the training set."""
        return len(self.train)

    @cached_property
    def train(self) -> Images:
        """The training set, as it is stored: a byte a pixel, which become numbers when they are asked for."""
        return self._sets[0]

    @cached_property
    def labels(self) -> torch.Tensor:
        """Classes, int64, shape (samples,)."""
        return self.train.classes

    @cached_property
    def scale(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation of every channel of the training set, shape (channels, 1, 1) each."""
        return self._sets[2]

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Channels, rows and columns."""
        return tuple(self.train.images.shape[1:])

    @property
    def num_classes(self) -> int:
        """Classes are numbered from 0."""
        return 1 + int(self.train.classes.max())

    def gather(self, samples: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Pixels, shape (batch, channels, rows, columns), and classes, shape (batch,)."""
        return self._rows(self.train, samples)

    def build_model(self, device: torch.device, seed: int) -> nn.Sequential:
        """Random weights, from the seed, drawn on the CPU: equal on every device."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.layers().to(getattr(torch, self.dtype)).to(device)

    @abstractmethod
    def layers(self) -> nn.Sequential:
        """The model, with weights from torch's random numbers."""

    def objective(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Mean cross entropy over the batch."""
        return cross_entropy(outputs, targets)

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Cross entropy on both sets, and the share of test images classified correctly."""
        train_loss, _ = measure(model, self._evaluated(self.train))
        test_loss, test_accuracy = measure(model, self._evaluated(self._sets[1]))
        return {"train/loss": train_loss, "eval/loss": test_loss, "eval/accuracy": test_accuracy}

    def evaluate_ensemble(self, models: Sequence[nn.Module]) -> dict[str, float]:
        """Of the mean of their probabilities."""
        return self.evaluate(MeanProbability(models))

    def data_version(self) -> str:
        """Sizes and times of change of the files."""
        stats = [file.stat() for file in self._files]
        return " ".join(f"{stat.st_size} {stat.st_mtime_ns}" for stat in stats)

    def _evaluated(self, images: Images) -> Iterator[tuple[torch.Tensor, ...]]:
        return (self._rows(images, part) for part in evenly(len(images), self.evaluated_samples).split(AT_ONCE))

    def _rows(self, images: Images, samples: torch.Tensor) -> tuple[torch.Tensor, ...]:
        mean, deviation = self.scale
        return (images.images[samples].to(mean.dtype) - mean) / deviation, images.classes[samples]

    @cached_property
    def _files(self) -> list[Path]:
        return [] if self.path is None else image_files.files_in(datasets.find_folder(self.path))

    @cached_property
    def _sets(self) -> tuple[Images, Images, tuple[torch.Tensor, torch.Tensor]]:
        """Training and test set, and the scale: all that workers get from the process that loads the files."""
        sets = image_files.read(self._files) if self._files else image_files.digits(self.test_fraction, self.seed)
        return *sets, _scale(sets[0].images, getattr(torch, self.dtype))


def _scale(images: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    counts = [torch.bincount(channel.flatten(), minlength=256) for channel in images.unbind(1)]
    counted = torch.stack(counts).double()  # (channels, values of a byte)
    shares, values = counted / counted.sum(1, keepdim=True), torch.arange(256, dtype=torch.float64)
    mean = shares @ values  # (channels,)
    deviation = ((values - mean[:, None]).square() * shares).sum(1).sqrt()
    # A channel that is the same everywhere stays finite.
    return mean[:, None, None].to(dtype), deviation.clamp_min(1)[:, None, None].to(dtype)
