"""A transformer that predicts the next character of a text, such as tinyshakespeare (Karpathy, 2015):
https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import nn

from harness import datasets
from harness.errors import UserError, require
from harness.problems.classes import AT_ONCE, MeanProbability, evenly, measure
from harness.problems.language import LanguageModel
from harness.problems.synthetic import markov_text


@dataclass(frozen=True)
class CharacterTransformer(LanguageModel):
    """Cross entropy of the next character. Samples are windows of the text, one after the other.

    Args:
        path: a text file in UTF-8, as it is or with .gz or .bz2; None for a synthetic text.
        download: fetch it where path is an address.
        test_fraction: share of the text held out, its end, in (0, 1).
        evaluated_samples: of each set, at most, evenly spaced, on which losses are measured, >= 1.
        synthetic_characters: of the text where there is no `path`, >= 2.
        synthetic_words: distinct words of it, >= 2.
        synthetic_successors: words that may follow a word, in [1, synthetic_words].
        seed: of the synthetic text, >= 0.
    """

    loss_reads: ClassVar[tuple[str, ...]] = ("_text",)

    path: str | None
    download: bool
    test_fraction: float
    evaluated_samples: int
    synthetic_characters: int
    synthetic_words: int
    synthetic_successors: int
    seed: int

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.test_fraction < 1, "problem.test_fraction", "must be in (0, 1)", self.test_fraction)
        least = {"evaluated_samples": 1, "synthetic_characters": 2, "synthetic_words": 2, "seed": 0}
        for name, bound in least.items():
            require(getattr(self, name) >= bound, f"problem.{name}", f"must be >= {bound}", getattr(self, name))
        rule, successors = f"must be in [1, synthetic_words = {self.synthetic_words}]", self.synthetic_successors
        require(1 <= successors <= self.synthetic_words, "problem.synthetic_successors", rule, successors)

    @property
    def num_tokens(self) -> int:
        """Distinct characters of the whole text."""
        return self._text[1]

    @property
    def num_samples(self) -> int:
        """Windows of the training set."""
        return self._windows(self._held_out_from)

    def gather(self, samples: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Characters, and those that follow each of them; int64, shape (batch, context) each."""
        return self._rows(samples, begin=0)

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Mean loss of the next character in both sets, and in the held-out one in bits."""
        begins, ends = (0, self._held_out_from), (self._held_out_from, len(self._text[0]))
        train, test = (measure(model, self._evaluated(*part))[0] for part in zip(begins, ends, strict=True))
        return {"train/loss": train, "eval/loss": test, "eval/bits_per_character": test / math.log(2)}

    def evaluate_ensemble(self, models: Sequence[nn.Module]) -> dict[str, float]:
        """Of the mean of their probabilities."""
        return self.evaluate(MeanProbability(models))

    def data_version(self) -> str:
        """Size and time of change of the file."""
        if self.path is None:
            return ""
        stat = self._file.stat()
        return f"{stat.st_size} {stat.st_mtime_ns}"

    def _evaluated(self, begin: int, end: int) -> Iterator[tuple[torch.Tensor, ...]]:
        samples = evenly(self._windows(end - begin), self.evaluated_samples)
        return (self._rows(part, begin) for part in samples.split(AT_ONCE))

    def _rows(self, windows: torch.Tensor, begin: int) -> tuple[torch.Tensor, ...]:
        """Of windows, counted from the one at character `begin`."""
        place = begin + torch.arange(self.context + 1, device=windows.device)
        characters = self._text[0][self.context * windows.long()[:, None] + place].long()  # (batch, context + 1)
        return characters[:, :-1], characters[:, 1:]

    def _windows(self, characters: int) -> int:
        """In so many characters, the last of which is only predicted."""
        return (characters - 1) // self.context

    @property
    def _held_out_from(self) -> int:
        """The character at which the held-out set begins."""
        length = len(self._text[0])
        return length - round(self.test_fraction * length)

    @cached_property
    def _file(self) -> Path:
        assert self.path is not None
        return datasets.find(self.path, self.download)

    @cached_property
    def _text(self) -> tuple[torch.Tensor, int]:
        """Numbers of the characters of the whole text, int32, and how many distinct ones there are."""
        text = datasets.read_text(self._file) if self.path is not None else self._generate()
        held_out = round(self.test_fraction * len(text))
        if min(held_out, len(text) - held_out) <= self.context:
            raise UserError(
                f"problem.context={self.context} is too long for a text of {len(text)} characters, of which {held_out} "
                "are held out (problem.test_fraction): lower it, or take a longer text"
            )
        codes, numbers = np.unique(np.frombuffer(text.encode("utf-32-le"), "<u4"), return_inverse=True)
        return torch.from_numpy(numbers.astype(np.int32)), len(codes)

    def _generate(self) -> str:
        return markov_text(self.synthetic_characters, self.synthetic_words, self.synthetic_successors, self.seed)
