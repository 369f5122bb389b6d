"""The layers of a transformer that predicts the next token, as in Llama 3 (Grattafiori et al., arXiv:2407.21783).

    Embedding      token -> vector
    Block          x + attention(norm(x)), then x + feed_forward(norm(x)): norms come first (Xiong et al., ICML 2020)
    Head           norm, then a score for every token; not tied to the embedding

Attention is causal, with rotary positions (Su et al., arXiv:2104.09864, section 3.4.2) and as many key-value heads as
wanted (Ainslie et al., EMNLP 2023); the feed-forward layer is SwiGLU (Shazeer, arXiv:2002.05202, equation 6); norms are
RMSNorm (Zhang and Sennrich, NeurIPS 2019). There are no biases, and no dropout. We deviate in that the halves of a
head's vector are rotated against each other, not its even and odd elements (a permutation of weights).

Each linear layer is a module of its own, and shapes are read off what it gives: a worker that has some of the heads, or
some of the hidden units, computes with these layers too.
"""

# B: batch, T: positions, W: width, H: heads here, K: key-value heads here, S: head size

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention, silu

_EMBEDDED = 0.02  # standard deviation of initial embeddings: what blocks add soon weighs more


@dataclass(frozen=True)
class Sizes:
    """Sizes of a transformer.

    Args:
        vocabulary: distinct tokens.
        layers: blocks.
        width: of what goes from layer to layer.
        hidden: units of a feed-forward layer.
        heads: of attention; width / heads is even.
        key_value_heads: of keys and values, a divisor of heads.
        context: tokens of a sample.
        rotary_base: wavelengths of rotary positions go from 2 pi up to nearly 2 pi times this.
        norm_epsilon: added to mean squares.
    """

    vocabulary: int
    layers: int
    width: int
    hidden: int
    heads: int
    key_value_heads: int
    context: int
    rotary_base: float
    norm_epsilon: float

    @property
    def head_size(self) -> int:
        """Elements of a head's vector."""
        return self.width // self.heads

    @property
    def num_parameters(self) -> int:
        """Of the whole model."""
        return self._in_products + self.vocabulary * self.width + (2 * self.layers + 1) * self.width

    @property
    def flops_per_sample(self) -> float:
        """Floating-point operations of a forward and backward pass that the model asks for, recomputing nothing.

        Per token 6 for each weight that is multiplied by (not of norms, nor of the embedding, which is looked up), and
        12 layers x width x context for attention (Chowdhery et al., arXiv:2204.02311, appendix B): all of attention, as
        is the custom, although a causal one needs only half of that.
        """
        attention = 12 * self.layers * self.width * self.context
        return self.context * (6.0 * self._in_products + attention)

    @property
    def _in_products(self) -> int:
        """Weights of matrix products: query and output, key and value, up, gate and down, and the head."""
        key_value = self.head_size * self.key_value_heads
        block = self.width * (2 * self.width + 2 * key_value + 3 * self.hidden)
        return self.layers * block + self.vocabulary * self.width


class Attention(nn.Module):
    """Causal self-attention of the heads whose weights are here."""

    rotation: torch.Tensor

    def __init__(self, sizes: Sizes, rotation: torch.Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        self.head_size = sizes.head_size
        key_value = sizes.head_size * sizes.key_value_heads
        self.query = _linear(sizes.width, sizes.width, dtype)
        self.key = _linear(sizes.width, key_value, dtype)
        self.value = _linear(sizes.width, key_value, dtype)
        self.output = _linear(sizes.width, sizes.width, dtype)
        self.register_buffer("rotation", rotation, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Shape (B, T, W) to (B, T, W), or to the part of a sum that these heads make."""
        query, key, value = (
            project(x).unflatten(-1, (-1, self.head_size)).transpose(1, 2)
            for project in (self.query, self.key, self.value)
        )  # (B, H, T, S), (B, K, T, S) twice
        query, key = self._rotated(query), self._rotated(key)
        mixed = scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
        return self.output(mixed.transpose(1, 2).flatten(2))

    def _rotated(self, x: torch.Tensor) -> torch.Tensor:
        cosine, sine = self.rotation[:, : x.shape[2]]  # (T, S / 2) each
        left, right = x.chunk(2, dim=-1)
        return torch.cat([left * cosine - right * sine, right * cosine + left * sine], dim=-1).to(x.dtype)


class FeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self, sizes: Sizes, dtype: torch.dtype) -> None:
        super().__init__()
        self.gate = _linear(sizes.width, sizes.hidden, dtype)
        self.up = _linear(sizes.width, sizes.hidden, dtype)
        self.down = _linear(sizes.hidden, sizes.width, dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Shape (B, T, W) to (B, T, W), or to the part of a sum that these hidden units make."""
        return self.down(silu(self.gate(x)) * self.up(x))


class Block(nn.Module):
    """Attention and a feed-forward layer, each added to what it is of."""

    def __init__(self, sizes: Sizes, rotation: torch.Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        self.attention_norm = _norm(sizes, dtype)
        self.attention = Attention(sizes, rotation, dtype)
        self.feed_forward_norm = _norm(sizes, dtype)
        self.feed_forward = FeedForward(sizes, dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Shape (B, T, W) to (B, T, W)."""
        x = x + self.attention(self.attention_norm(x))
        return x + self.feed_forward(self.feed_forward_norm(x))


class Head(nn.Module):
    """Scores of the next token."""

    def __init__(self, sizes: Sizes, dtype: torch.dtype) -> None:
        super().__init__()
        self.norm = _norm(sizes, dtype)
        self.output = _linear(sizes.width, sizes.vocabulary, dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Shape (B, T, W) to (B, T, vocabulary)."""
        return self.output(self.norm(x))


def transformer(sizes: Sizes, dtype: torch.dtype, device: torch.device, seed: int) -> nn.Sequential:
    """Embedding, blocks and head, with normal weights from the seed, drawn on the CPU.

    What linear layers give has variance 1 where that of their inputs is 1 (LeCun et al., 1998, section 4.6), but for
    what is added to the sum of all layers, which is smaller by sqrt(2 layers) (Radford et al., 2019, section 2.3).
    """
    rotation = _rotation(sizes, dtype).to(device)  # one for all blocks
    with torch.device("meta"):  # where no module draws weights that would be drawn again
        embedding = nn.Embedding(sizes.vocabulary, sizes.width, dtype=dtype)
        blocks = [Block(sizes, rotation, dtype) for _ in range(sizes.layers)]
        model = nn.Sequential(embedding, *blocks, Head(sizes, dtype))
    if device.type == "meta":
        return model  # its shapes are asked for
    generator = torch.Generator().manual_seed(seed)
    for path, weight in list(model.named_parameters()):
        owner, _, name = path.rpartition(".")
        values = torch.ones(weight.shape, dtype=dtype)
        if weight.dim() == 2:
            values.normal_(std=_deviation(owner, weight, sizes.layers), generator=generator)
        setattr(model.get_submodule(owner), name, nn.Parameter(values.to(device)))
    return model


def _deviation(owner: str, weight: torch.Tensor, layers: int) -> float:
    """Of the initial weights of a module, by its name."""
    if owner == "0":
        return _EMBEDDED
    added = owner.endswith(("attention.output", "feed_forward.down"))
    return (weight.shape[1] * (2 * layers if added else 1)) ** -0.5


def tensor_plan(sizes: Sizes) -> dict[str, str]:
    """Heads and hidden units are split; norms are whole. See `Layered.tensor_plan`."""
    attention = {"query": "column", "key": "column", "value": "column", "output": "row"}
    feed_forward = {"gate": "column", "up": "column", "down": "row"}
    block = {f"attention.{name}": how for name, how in attention.items()}
    block |= {f"feed_forward.{name}": how for name, how in feed_forward.items()}
    block |= {"attention_norm": "sequence", "feed_forward_norm": "sequence"}
    plan = {f"{layer}.{name}": how for layer in range(1, sizes.layers + 1) for name, how in block.items()}
    return plan | {f"{sizes.layers + 1}.norm": "sequence"}


def _linear(inputs: int, outputs: int, dtype: torch.dtype) -> nn.Linear:
    return nn.Linear(inputs, outputs, bias=False, dtype=dtype)


def _norm(sizes: Sizes, dtype: torch.dtype) -> nn.RMSNorm:
    return nn.RMSNorm(sizes.width, eps=sizes.norm_epsilon, dtype=dtype)


def _rotation(sizes: Sizes, dtype: torch.dtype) -> torch.Tensor:
    """Cosine and sine of every position's angles, in float32 at least, shape (2, context, head size / 2)."""
    half = sizes.head_size // 2
    speeds = sizes.rotary_base ** -(torch.arange(half, dtype=torch.float64) / half)
    angles = torch.arange(sizes.context, dtype=torch.float64)[:, None] * speeds
    return torch.stack([angles.cos(), angles.sin()]).to(torch.promote_types(dtype, torch.float32))
