"""A multilayer perceptron on the handwritten digits of scikit-learn (Alpaydin and Kaynak, UCI 1998): 1,797 images of
8 x 8 pixels, 10 classes. The smallest problem that is not convex."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import ClassVar

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from harness.errors import require
from harness.problems.classes import AT_ONCE, MeanProbability, measure
from harness.problems.image_files import digits
from harness.problems.layered import Layered

_PIXELS, _CLASSES, _WHITE = 64, 10, 16.0


@dataclass(frozen=True)
class DigitsMLP(Layered):
    """Cross entropy of a ReLU network.

    Args:
        hidden_sizes: units of each hidden layer, each >= 1; an empty list gives softmax regression.
        test_fraction: share of images held out, in (0, 1).
        seed: of the split into training and test set, >= 0.
    """

    loss_reads: ClassVar[tuple[str, ...]] = ("train",)

    hidden_sizes: list[int]
    test_fraction: float
    seed: int

    def __post_init__(self) -> None:
        super().__post_init__()
        sizes_fit = all(size >= 1 for size in self.hidden_sizes)
        require(sizes_fit, "problem.hidden_sizes", "must be >= 1 each", self.hidden_sizes)
        require(0 < self.test_fraction < 1, "problem.test_fraction", "must be in (0, 1)", self.test_fraction)
        require(self.seed >= 0, "problem.seed", "must be >= 0", self.seed)

    @property
    def num_samples(self) -> int:
        """Size of the training set."""
        return len(self.train[1])

    @cached_property
    def train(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Pixels in [0, 1], shape (samples, 64), and classes, int64, shape (samples,)."""
        return self._sets[0]

    @cached_property
    def labels(self) -> torch.Tensor:
        """Classes, int64, shape (samples,)."""
        return self.train[1]

    @cached_property
    def test(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Like `train`."""
        return self._sets[1]

    def build_model(self, device: torch.device, seed: int) -> nn.Sequential:
        """Torch's default initialisation, from the seed, on the CPU: equal on every device."""
        layers: list[nn.Module] = []
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for fan_in, fan_out in pairwise([_PIXELS, *self.hidden_sizes, _CLASSES]):
                layers += [nn.Linear(fan_in, fan_out, dtype=getattr(torch, self.dtype), device="cpu"), nn.ReLU()]
        return nn.Sequential(*layers[:-1]).to(device)

    def gather(self, samples: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Images and classes."""
        images, classes = self.train
        return images.index_select(0, samples), classes.index_select(0, samples)

    def objective(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Mean cross entropy over the batch."""
        return cross_entropy(outputs, targets)

    def deepened(self, layers: int) -> str:
        """More hidden layers like the last one."""
        sizes = [*self.hidden_sizes, *[*self.hidden_sizes[-1:], _PIXELS][:1] * (layers - 1 - len(self.hidden_sizes))]
        return f"problem.hidden_sizes=[{','.join(map(str, sizes))}]"

    def tensor_plan(self) -> Mapping[str, str]:
        """Hidden layers in pairs: what one gives in parts, the next one takes in parts; a last one alone is whole."""
        linear = range(0, 2 * len(self.hidden_sizes) + 1, 2)  # between them are ReLUs
        pairs = zip(linear[::2], linear[1::2], strict=False)
        return {str(layer): how for pair in pairs for layer, how in zip(pair, ("column", "row"), strict=True)}

    def tensor_divisors(self, sequence_parallel: bool) -> Mapping[str, int]:
        """The first hidden layer of each pair."""
        split = range(0, len(self.hidden_sizes), 2)
        return {f"problem.hidden_sizes[{layer}]": self.hidden_sizes[layer] for layer in split}

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Cross entropy on both sets, and the share of test images classified correctly."""
        train, test = (zip(*(part.split(AT_ONCE) for part in each), strict=True) for each in (self.train, self.test))
        train_loss, _ = measure(model, train)
        test_loss, test_accuracy = measure(model, test)
        return {"train/loss": train_loss, "eval/loss": test_loss, "eval/accuracy": test_accuracy}

    def evaluate_ensemble(self, models: Sequence[nn.Module]) -> dict[str, float]:
        """Of the mean of their probabilities."""
        return self.evaluate(MeanProbability(models))

    @cached_property
    def _sets(self) -> tuple[tuple[torch.Tensor, torch.Tensor], ...]:
        """Training and test set."""
        sets = digits(self.test_fraction, self.seed)
        dtype = getattr(torch, self.dtype)
        return tuple((each.images.flatten(1).to(dtype) / _WHITE, each.classes) for each in sets)
