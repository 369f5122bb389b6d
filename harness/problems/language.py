"""Problems in which a transformer predicts the next token of a text."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from harness.errors import require
from harness.problems.layered import FeatureSplit, Layered
from harness.problems.transformer_layers import Sizes, tensor_plan, transformer


@dataclass(frozen=True)
class LanguageModel(Layered):
    """Cross entropy of the next token; a sample is as many consecutive tokens as the model sees at a time.

    Args:
        layers: blocks of attention and feed-forward, >= 1.
        width: of what goes from layer to layer, a multiple of 2 heads.
        hidden: units of a feed-forward layer, >= 1.
        heads: of attention, >= 1.
        key_value_heads: of keys and values, a divisor of heads.
        context: tokens of a sample, >= 1.
        rotary_base: wavelengths of rotary positions go from 2 pi up to nearly 2 pi times this, > 1.
        norm_epsilon: added to mean squares, > 0.
    """

    layers: int
    width: int
    hidden: int
    heads: int
    key_value_heads: int
    context: int
    rotary_base: float
    norm_epsilon: float

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("layers", "width", "hidden", "heads", "key_value_heads", "context"):
            require(getattr(self, name) >= 1, f"problem.{name}", "must be >= 1", getattr(self, name))
        rule = f"must be a multiple of 2 x problem.heads={self.heads}"  # halves of heads are rotated
        require(self.width % (2 * self.heads) == 0, "problem.width", rule, self.width)
        rule = f"must divide problem.heads={self.heads}"
        require(self.heads % self.key_value_heads == 0, "problem.key_value_heads", rule, self.key_value_heads)
        require(self.rotary_base > 1, "problem.rotary_base", "must be > 1", self.rotary_base)
        require(self.norm_epsilon > 0, "problem.norm_epsilon", "must be > 0", self.norm_epsilon)

    @property
    @abstractmethod
    def num_tokens(self) -> int:
        """Distinct tokens: the vocabulary."""

    @property
    def sizes(self) -> Sizes:
        """Of the model."""
        given = (self.num_tokens, self.layers, self.width, self.hidden, self.heads, self.key_value_heads)
        return Sizes(*given, self.context, self.rotary_base, self.norm_epsilon)

    @property
    def num_parameters(self) -> int:
        """Of the whole model."""
        return self.sizes.num_parameters

    @property
    def tokens_per_sample(self) -> int:
        """As many are predicted as are seen."""
        return self.context

    @property
    def flops_per_sample(self) -> float:
        """See `Sizes.flops_per_sample`: what the model asks for, with the whole of causal attention."""
        return self.sizes.flops_per_sample

    def build_model(self, device: torch.device, seed: int) -> nn.Sequential:
        """Random weights, from the seed, drawn on the CPU: equal on every device."""
        return transformer(self.sizes, getattr(torch, self.dtype), device, seed)

    def deepened(self, layers: int) -> str:
        """More blocks, beside the embedding and the head."""
        return f"problem.layers={layers - 2}"

    def objective(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Mean cross entropy over all tokens, in float32 at least, as its sum is over the whole vocabulary."""
        scores = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
        return cross_entropy(scores.flatten(0, 1), targets.flatten())

    def objective_of_part(self, outputs: torch.Tensor, targets: torch.Tensor, split: FeatureSplit) -> torch.Tensor:
        """As `objective`, of scores of some tokens: log of the sum of all exponentials - that of the target.

        Three numbers are exchanged for every position (Shoeybi et al., arXiv:1909.08053, section 3).
        """
        scores = outputs.to(torch.promote_types(outputs.dtype, torch.float32)).flatten(0, 1)  # (positions, tokens here)
        own = targets.flatten() - split.first
        elsewhere = (own < 0) | (own >= scores.shape[1])
        found = scores.gather(1, own.masked_fill(elsewhere, 0)[:, None])[:, 0].masked_fill(elsewhere, 0)
        top = split.largest(scores.detach().amax(1))  # (positions,)
        rest = (scores - top[:, None]).exp().sum(1)
        total, target = split.sum(torch.stack([rest, found]))
        return (total.log() + top - target).mean()

    def tensor_plan(self) -> Mapping[str, str]:
        """Heads and hidden units are split."""
        return tensor_plan(self.sizes)

    def tensor_divisors(self, sequence_parallel: bool) -> Mapping[str, int]:
        """Heads, hidden units and, where activations are split by position, tokens."""
        names = ("heads", "key_value_heads", "hidden", *(("context",) if sequence_parallel else ()))
        return {f"problem.{name}": getattr(self, name) for name in names}
