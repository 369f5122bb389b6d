"""Transformers of the shapes of Llama 3 (Grattafiori et al., arXiv:2407.21783, table 3), too large to hold."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from harness.errors import require
from harness.problems.classes import AT_ONCE, measure
from harness.problems.language import LanguageModel


@dataclass(frozen=True)
class Llama(LanguageModel):
    """A transformer on tokens that mean nothing: there is a step to time, and nothing to learn.

    Args:
        vocabulary: distinct tokens, >= 2.
        samples: of the training set, >= 1; their tokens are arithmetic.
        seed: of the tokens, >= 0.
        fake: the model has shapes and no values, so that it fits into any memory; false computes with values.
    """

    dtypes: ClassVar[tuple[str, ...]] = ("float32", "float64", "bfloat16")  # in the last they are trained

    vocabulary: int
    samples: int
    seed: int
    fake: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in {"vocabulary": 2, "samples": 1, "seed": 0}.items():
            require(getattr(self, name) >= least, f"problem.{name}", f"must be >= {least}", getattr(self, name))

    @property
    def is_fake(self) -> bool:
        """As asked for."""
        return self.fake

    @property
    def num_tokens(self) -> int:
        """The vocabulary."""
        return self.vocabulary

    @property
    def num_samples(self) -> int:
        """Size of the training set."""
        return self.samples

    def gather(self, samples: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Tokens, and those that follow each of them; int64, shape (batch, context) each.

        An arithmetic progression for every sample, so that none of them needs memory before it is asked for.
        """
        place = torch.arange(self.context + 1, device=samples.device)
        step = 1 + (samples.long()[:, None] + self.seed) % 1_009
        tokens = (samples.long()[:, None] + step * place) % self.vocabulary  # (batch, context + 1)
        return tokens[:, :-1], tokens[:, 1:]

    def tensor_plan(self) -> Mapping[str, str]:
        """Heads, hidden units and the vocabulary are split: each worker looks up, and scores, some of the tokens."""
        return {**super().tensor_plan(), "0": "row", f"{self.layers + 1}.output": "column"}

    def tensor_divisors(self, sequence_parallel: bool) -> Mapping[str, int]:
        """The vocabulary too."""
        return {**super().tensor_divisors(sequence_parallel), "problem.vocabulary": self.vocabulary}

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """The objective over all samples."""
        loss, _ = measure(model, (self.gather(part) for part in torch.arange(self.samples).split(AT_ONCE)))
        return {"train/loss": loss}
