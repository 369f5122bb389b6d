"""What `accelerator.py` times: operators, and small models. Each case is built on a device, and then called."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

Call = Callable[[], object]
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "fp64": torch.float64}
SIDES = {"bf16": 8192, "fp16": 8192, "fp32": 4096, "fp64": 4096}  # of the largest square product
PRODUCTS = {  # rows, inner, columns, in bf16: what layers of transformers multiply
    "1x4096 4096x4096": (1, 4096, 4096),
    "32x4096 4096x4096": (32, 4096, 4096),
    "512x4096 4096x4096": (512, 4096, 4096),
    "4096x4096 4096x14336": (4096, 4096, 14336),
    "8192x8192 8192x1024": (8192, 8192, 1024),
    "16384x64 64x16384": (16384, 64, 16384),
}


@dataclass(frozen=True)
class Case:
    """One thing to time.

    Args:
        group: of which errors are summarised together.
        build: makes on a device what is then called again and again; the host reads no value in it.
        tf32: whether float32 products may use tensor cores.
    """

    group: str
    name: str
    build: Callable[[torch.device], Call]
    tf32: bool = False


def cases() -> Iterator[Case]:
    """All of them."""
    yield from _products()
    yield from _memory_bound()
    yield from _attention()
    yield from _dispatch()
    yield from _models()


def _products() -> Iterator[Case]:
    for dtype, largest in SIDES.items():
        for side in (side for side in (256, 1024, 2048, 4096, 8192) if side <= largest):
            yield Case("matmul", f"{side}^3 {dtype}", partial(_product, side, side, side, dtype))
    yield Case("matmul tf32", "4096^3 tf32", partial(_product, 4096, 4096, 4096, "fp32"), tf32=True)
    for name, sizes in PRODUCTS.items():
        yield Case("matmul", f"{name} bf16", partial(_product, *sizes, "bf16"))
    yield Case("matmul", "bmm 64x 1024^3 bf16", partial(_batched_product, 64, 1024, "bf16"))
    yield Case("matmul", "linear 4096x1024 1024x1024 fp32, with bias", partial(_linear, 4096, 1024, "fp32"))


def _memory_bound() -> Iterator[Case]:
    small, cached, large = 1, 2**20, 2**27
    for numel in (small, 2**14, cached, 2**24, large):
        yield Case("elementwise", f"add_ {numel} fp32", partial(_add, numel, "fp32"))
    for numel in (cached, large):
        for name in ("relu", "gelu", "exp", "clone"):
            yield Case("elementwise", f"{name} {numel} fp32", partial(_unary, name, numel, "fp32"))
        yield Case("elementwise", f"add_ {numel} bf16", partial(_add, numel, "bf16"))
        yield Case("elementwise", f"add_ {numel} fp64", partial(_add, numel, "fp64"))
        yield Case("elementwise", f"fp32 to bf16 {numel}", partial(_cast, numel))
        yield Case("reduction", f"sum {numel} fp32", partial(_unary, "sum", numel, "fp32"))
        yield Case("reduction", f"sum of columns {numel} fp32", partial(_sum_columns, numel // 1024, 1024))
    for rows in (1024, 65536):
        for dtype in ("bf16", "fp32"):
            yield Case("rows", f"layer_norm {rows}x1024 {dtype}", partial(_layer_norm, rows, 1024, dtype))
            yield Case("rows", f"softmax {rows}x1024 {dtype}", partial(_softmax, rows, 1024, dtype))
    yield Case("rows", "cross_entropy 4096x32000 fp32", partial(_cross_entropy, 4096, 32000))
    yield Case("rows", "embedding 16384 of 32000x1024 bf16", partial(_embedding, 16384, 32000, 1024))
    for dtype in ("fp32", "bf16"):
        yield Case("rows", f"transpose 8192x8192 {dtype}", partial(_transpose, 8192, dtype))


def _attention() -> Iterator[Case]:
    for batch, length in ((8, 512), (4, 2048), (1, 8192)):
        for causal in (False, True):
            name = f"attention {batch}x16x{length}x64 bf16{', causal' if causal else ''}"
            yield Case("attention", name, partial(_attend, batch, length, causal))


def _dispatch() -> Iterator[Case]:
    yield Case("dispatch", "64 products by a number", partial(_chain, 64, None))
    yield Case("dispatch", "64 products by a number, forward of autograd", partial(_chain, 64, False))
    yield Case("dispatch", "64 products by a number, forward and backward", partial(_chain, 64, True))
    yield Case("dispatch", "64 additions, with a view before each", partial(_viewed, 64))


def _models() -> Iterator[Case]:
    for algorithm in ("SGD", "AdamW"):
        name = f"step of {algorithm}, 64 tensors of 2^16 fp32"
        yield Case("optimizer", name, partial(_optimizer_step, algorithm, 64, 2**16, None))
        yield Case("optimizer", f"{name}, one by one", partial(_optimizer_step, algorithm, 64, 2**16, False))
    yield Case("optimizer", "step of AdamW, 8 tensors of 2^24 fp32", partial(_optimizer_step, "AdamW", 8, 2**24, None))
    yield Case("model", "perceptron 64-32-10, batch 32 fp32, step of SGD", partial(_perceptron_step, [64, 32, 10], 32))
    yield Case("model", "perceptron 3x4096, batch 4096 fp32, step of SGD", partial(_perceptron_step, [4096] * 4, 4096))
    for width, length, batch, dtype in ((256, 128, 8, "fp32"), (1024, 1024, 8, "bf16"), (4096, 2048, 2, "bf16")):
        name = f"transformer layer {width}, {batch}x{length} {dtype}"
        yield Case("model", f"{name}, forward", partial(_layer, width, length, batch, dtype, False))
        yield Case("model", f"{name}, forward and backward", partial(_layer, width, length, batch, dtype, True))
    yield Case("model", "transformer 6x384, 64x256 bf16, step of AdamW", partial(_transformer_step, 6, 384, 256, 64))


def _normal(device: torch.device, dtype: str, *shape: int) -> Tensor:
    return torch.randn(*shape, device=device, dtype=DTYPES[dtype])


def _product(rows: int, inner: int, columns: int, dtype: str, device: torch.device) -> Call:
    left, right = _normal(device, dtype, rows, inner), _normal(device, dtype, inner, columns)
    return lambda: left @ right


def _batched_product(batch: int, side: int, dtype: str, device: torch.device) -> Call:
    left, right = (_normal(device, dtype, batch, side, side) for _ in range(2))
    return lambda: torch.bmm(left, right)


def _linear(rows: int, width: int, dtype: str, device: torch.device) -> Call:
    layer = nn.Linear(width, width, device=device, dtype=DTYPES[dtype]).requires_grad_(False)
    inputs = _normal(device, dtype, rows, width)
    return lambda: layer(inputs)


def _add(numel: int, dtype: str, device: torch.device) -> Call:
    total, other = _normal(device, dtype, numel), _normal(device, dtype, numel)
    return lambda: total.add_(other, alpha=1e-3)


def _unary(name: str, numel: int, dtype: str, device: torch.device) -> Call:
    inputs = _normal(device, dtype, numel)
    function = getattr(functional, name) if name in ("relu", "gelu") else getattr(torch, name)
    return lambda: function(inputs)


def _cast(numel: int, device: torch.device) -> Call:
    inputs = _normal(device, "fp32", numel)
    return lambda: inputs.to(torch.bfloat16)


def _sum_columns(rows: int, columns: int, device: torch.device) -> Call:
    inputs = _normal(device, "fp32", rows, columns)
    return lambda: inputs.sum(dim=0)


def _layer_norm(rows: int, width: int, dtype: str, device: torch.device) -> Call:
    inputs, weight, bias = (_normal(device, dtype, *shape) for shape in ((rows, width), (width,), (width,)))
    return lambda: functional.layer_norm(inputs, (width,), weight, bias)


def _softmax(rows: int, width: int, dtype: str, device: torch.device) -> Call:
    inputs = _normal(device, dtype, rows, width)
    return lambda: torch.softmax(inputs, dim=-1)


def _cross_entropy(rows: int, classes: int, device: torch.device) -> Call:
    scores = _normal(device, "fp32", rows, classes)
    right = torch.randint(classes, (rows,), device=device)
    return lambda: functional.cross_entropy(scores, right)


def _embedding(words: int, vocabulary: int, width: int, device: torch.device) -> Call:
    table = _normal(device, "bf16", vocabulary, width)
    chosen = torch.randint(vocabulary, (words,), device=device)
    return lambda: functional.embedding(chosen, table)


def _transpose(side: int, dtype: str, device: torch.device) -> Call:
    inputs = _normal(device, dtype, side, side)
    return lambda: inputs.T.contiguous()


def _attend(batch: int, length: int, causal: bool, device: torch.device) -> Call:
    query, key, value = (_normal(device, "bf16", batch, 16, length, 64) for _ in range(3))
    return lambda: functional.scaled_dot_product_attention(query, key, value, is_causal=causal)


def _chain(length: int, backward: bool | None, device: torch.device) -> Call:
    """Products, one of the other's result, through which autograd goes back; None does without autograd."""
    inputs = torch.ones((), device=device, requires_grad=backward is not None)

    def call() -> None:
        end = inputs
        for _ in range(length):
            end = end * 1.5
        if backward:
            inputs.grad = None
            end.backward()

    return call


def _viewed(length: int, device: torch.device) -> Call:
    total = torch.ones(2, 2, device=device)

    def call() -> None:
        for _ in range(length):
            total.view(4).add_(1.0)

    return call


def _optimizer_step(algorithm: str, tensors: int, numel: int, foreach: bool | None, device: torch.device) -> Call:
    parameters = [nn.Parameter(_normal(device, "fp32", numel)) for _ in range(tensors)]
    for parameter in parameters:
        parameter.grad = _normal(device, "fp32", numel)
    return getattr(torch.optim, algorithm)(parameters, lr=1e-3, foreach=foreach).step


def _perceptron_step(widths: list[int], batch: int, device: torch.device) -> Call:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs, device=device), nn.ReLU()]
    model = nn.Sequential(*layers[:-1])
    images = _normal(device, "fp32", batch, widths[0])
    classes = torch.randint(widths[-1], (batch,), device=device)
    return partial(_step, model, torch.optim.SGD(model.parameters(), lr=1e-3), images, classes)


def _layer(width: int, length: int, batch: int, dtype: str, backward: bool, device: torch.device) -> Call:
    layer = Layer(width, device, DTYPES[dtype])
    inputs = _normal(device, dtype, batch, length, width).requires_grad_(backward)
    if not backward:
        return torch.no_grad()(lambda: layer(inputs))
    slope = _normal(device, dtype, batch, length, width)
    return lambda: layer(inputs).backward(slope)


def _transformer_step(depth: int, width: int, length: int, batch: int, device: torch.device) -> Call:
    words, bf16 = 256, torch.bfloat16
    layers = [Layer(width, device, bf16) for _ in range(depth)]
    head = nn.Linear(width, words, bias=False, device=device, dtype=bf16)
    model = nn.Sequential(nn.Embedding(words, width, device=device, dtype=bf16), *layers, head, nn.Flatten(0, 1))
    text = torch.randint(words, (batch, length), device=device)
    return partial(_step, model, torch.optim.AdamW(model.parameters(), lr=1e-4), text, text.flatten())


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, inputs: Tensor, classes: Tensor) -> None:
    functional.cross_entropy(model(inputs), classes).backward()
    optimizer.step()
    optimizer.zero_grad()


class Layer(nn.Module):
    """A layer of a transformer, of heads of 64."""

    def __init__(self, width: int, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        self.heads = width // 64
        made = partial(nn.Linear, bias=False, device=device, dtype=dtype)
        self.norm, self.norm_inner = (nn.LayerNorm(width, device=device, dtype=dtype) for _ in range(2))
        self.project, self.out = made(width, 3 * width), made(width, width)
        self.widen, self.narrow = made(width, 4 * width), made(4 * width, width)

    def forward(self, inputs: Tensor) -> Tensor:
        """Shape (batch, length, width) to the same."""
        split = (*inputs.shape[:2], self.heads, 64)
        query, key, value = (each.view(split).transpose(1, 2) for each in self.project(self.norm(inputs)).chunk(3, -1))
        attended = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        inputs = inputs + self.out(attended.transpose(1, 2).reshape(inputs.shape))
        return inputs + self.narrow(functional.gelu(self.widen(self.norm_inner(inputs))))
