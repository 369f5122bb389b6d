import copy

import pytest
import torch
from composed import setup
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from harness.errors import UserError
from harness.problems.transformer_layers import Block
from tests.harness.test_problems import CPU, problem, small

PUBLISHED = {"transformer_8b": "8.03", "transformer_70b": "70.6", "transformer_405b": "405.9"}  # 1e9 parameters


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_as_many_as_published(name):
    p = problem(name)
    with FakeTensorMode():
        model = p.build_model(CPU, seed=0)
    assert all(isinstance(each, FakeTensor) and each.dtype == torch.bfloat16 for each in model.parameters())
    assert sum(each.numel() for each in model.parameters()) == p.num_parameters
    digits = len(PUBLISHED[name].partition(".")[2])
    assert f"{p.num_parameters / 1e9:.{digits}f}" == PUBLISHED[name]


def test_a_fake_step_has_gradients_of_every_weight():
    p = problem("transformer_8b", layers=2)
    with FakeTensorMode():
        model = p.build_model(CPU, seed=0)
        p.loss(model, torch.arange(3)).backward()
        assert {weight.grad.shape for weight in model.parameters()} == {weight.shape for weight in model.parameters()}


def test_flops_are_those_of_the_formula():
    # per token 6 N + 12 L W T, for N = 6.98e9 weights of blocks and 0.525e9 of the head, of the 8B model
    p = problem("transformer_8b")
    per_token = 6 * (32 * (2 * 4096**2 + 2 * 4096 * 1024 + 3 * 4096 * 14336) + 128256 * 4096) + 12 * 32 * 4096 * 8192
    assert p.flops_per_sample == 8192 * per_token
    assert p.tokens_per_sample == 8192


def test_flops_are_those_that_torch_counts():
    p = small("transformer_8b")
    model = p.build_model(CPU, seed=0)
    # attention as products of matrices: what is fused on a CPU is not counted
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        p.loss(model, torch.arange(3)).backward()
    assert counter.get_total_flops() == 3 * p.flops_per_sample


def test_a_fake_problem_is_refused_in_one_sentence():
    with pytest.raises(
        UserError,
        match=r"^problem=transformer_405b has shapes and no values, and algorithm=gossip needs values: use .*fsdp",
    ):
        setup("problem=transformer_405b", "hardware=sim_dgx", "algorithm=gossip")
    with pytest.raises(
        UserError, match=r"^problem=transformer_405b has shapes and no values, and .*: use hardware=sim_"
    ):
        setup("problem=transformer_405b", "hardware=cpu", "algorithm=fsdp")


def test_later_tokens_change_nothing():
    p = small("transformer_8b")
    model = p.build_model(CPU, seed=0)
    tokens, _ = p.gather(torch.arange(4))
    changed = tokens.clone()
    changed[:, 5] = (changed[:, 5] + 1) % p.vocabulary
    before, after = model(tokens), model(changed)
    torch.testing.assert_close(before[:, :5], after[:, :5], rtol=1e-12, atol=1e-14)
    assert ((before - after)[:, 5:].abs().amax((0, 2)) > 1e-9).all()


def test_scores_depend_on_distances_and_not_on_places():
    # rotary positions: q(m) . k(n) is a function of m - n
    p = small("transformer_8b")
    attention = p.build_model(CPU, seed=0)[1].attention
    q, k = torch.randn(2, 1, 1, 1, p.sizes.head_size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    everywhere = [attention._rotated(x.expand(1, 1, p.context, -1))[0, 0] for x in (q, k)]
    scores = everywhere[0] @ everywhere[1].T
    for offset in range(p.context):
        diagonal = scores.diagonal(offset)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=1e-12, atol=1e-12)
    assert (scores[0] - scores[0, 0]).abs()[1:].min() > 1e-6


def worker_part(module, plan, prefix, part, parts):
    """A copy with the weights that one of the workers that share it has."""
    own = copy.deepcopy(module)
    for name, layer in own.named_modules():
        how = plan.get(f"{prefix}.{name}")
        if how in ("column", "row"):
            weight = layer.weight.detach().chunk(parts, dim=0 if how == "column" else 1)[part]
            layer.weight = nn.Parameter(weight.clone())
    return own


@pytest.mark.parametrize("parts", [1, 2])
def test_a_block_equals_itself_split(parts):
    p = small("transformer_8b")
    block = p.build_model(CPU, seed=0)[1]
    assert isinstance(block, Block)
    own = [worker_part(block, p.tensor_plan(), "1", part, parts) for part in range(parts)]
    x = torch.randn(3, p.context, p.width, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    whole, split = x.clone().requires_grad_(), x.clone().requires_grad_()
    middle = split + sum(each.attention(each.attention_norm(split)) for each in own)
    last = middle + sum(each.feed_forward(each.feed_forward_norm(middle)) for each in own)
    out = block(whole)
    torch.testing.assert_close(last, out, rtol=1e-12, atol=1e-14)
    out.square().sum().backward()
    last.square().sum().backward()
    torch.testing.assert_close(split.grad, whole.grad, rtol=1e-11, atol=1e-12)
    for name, how in p.tensor_plan().items():
        if name.startswith("1.") and how != "sequence":
            parts_of = [each.get_submodule(name[2:]).weight.grad for each in own]
            joined = torch.cat(parts_of, dim=0 if how == "column" else 1)
            torch.testing.assert_close(joined, block.get_submodule(name[2:]).weight.grad, rtol=1e-11, atol=1e-12)


def test_the_plan_names_modules_and_leaves_nothing_large_whole():
    p = problem("transformer_8b")
    with FakeTensorMode():
        modules = dict(p.build_model(CPU, seed=0).named_modules())
    plan = p.tensor_plan()
    assert set(plan) <= set(modules)
    assert {name for name, module in modules.items() if isinstance(module, nn.Linear | nn.Embedding)} <= set(plan)
