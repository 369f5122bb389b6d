"""Layers that several workers split among them (Shoeybi et al., arXiv:1909.08053, section 3).

    column  y_t = f(x) A_t         rows of torch's weight (outputs by inputs) are split, and so are outputs
    row     z = g(sum_t y_t B_t)   columns of it are split, as their inputs are; what comes out is summed

What is between a column and a row works on parts; f and g are `enter` and `leave` of activations.py. That makes an
all-reduce of activations for each pair and pass, four for a layer of a transformer and step. Columns that take the
same tensor, as query, key and value do, share one f.

With sequence parallelism (Korthikanti et al., arXiv:2205.05198, section 4.2.2) what is between a row and the next
column is split by position, in layers that have a "sequence" in the plan. Over a ring that sends what the all-reduces
did. Weights that are kept whole there have seen some of the positions, and their gradients are summed at the end of
the step. Before the first such layer positions are cut, behind the last one gathered. We keep what a column gathers
for the backward pass, where the paper gathers it once more.

An embedding whose vocabulary is split ("row") looks up what it has, zeros else, and sums. Of a last layer whose outputs
are split ("column", and no row follows) the loss is computed in parts, where the problem knows how
(`objective_of_part`), or else of all outputs, gathered.

Weights are cut as torch's DTensors are, without communication: all workers have built the same ones. Torch's own styles
compute on DTensors, at a cost of the host's, and by collectives that tensors without values never reach; ours compute
on the local tensors.
"""

from functools import partial

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ParallelStyle, parallelize_module
from torch.distributed.tensor.placement_types import Placement
from torch.nn.functional import embedding, linear

from algorithms.pipelining.stages import indices
from algorithms.splitting.activations import Exchange, Features
from algorithms.splitting.mesh import mesh_of
from algorithms.splitting.plan import (
    COLUMN,
    SEQUENCE,
    by_position,
    ends_open,
    module_placement,
    placement,
    seen_in_part,
)
from harness.problems.layered import Layered
from harness.problems.outline import shapes_of


class LayerSplit:
    """How the layers of a model are split among the workers of a group.

    Args:
        problem: whose `tensor_plan` says how.
        group: of those who split each layer; None for a worker by itself, which splits nothing.
        sequence_parallel: whether activations are split by position where the plan lets them.
        device: where models live.
    """

    def __init__(
        self, problem: Layered, group: dist.ProcessGroup | None, sequence_parallel: bool, device: torch.device
    ) -> None:
        self._problem, self._plan = problem, {} if group is None else problem.tensor_plan()
        self._shared: list[tuple[nn.Module, str]] = []  # whole parameters, of each worker's positions a gradient
        self._ends_open = self._loss_in_parts = False
        if group is not None:
            self._whole = shapes_of(problem)
            self._ends_open = ends_open(self._whole, self._plan)
            self._loss_in_parts = self._ends_open and problem.has_objective_of_part
            self._exchange = Exchange(group, sequence_parallel)
            self._mesh = mesh_of(group, device)

    def indices(self, model: nn.Module) -> list[torch.Tensor]:
        """Of this worker's part of each parameter among the flat ones of a model that is not split yet, int64."""
        if not self._plan:
            return [whole.flatten() for whole in indices(model)]
        where = [placement(model, self._plan, name) for name, _ in model.named_parameters()]
        return [_own(whole, self._mesh, each).flatten() for whole, each in zip(indices(model), where, strict=True)]

    def split_(self, model: nn.Sequential) -> None:
        """Split layers in place; of a model some of whose layers are gone (`nn.Identity`), those that are there."""
        if not self._plan:
            return
        there = {name for name, module in model.named_modules() if not isinstance(module, nn.Identity)}
        inside = by_position(self._plan) if self._exchange.by_position else set()
        for module, _, name in (name.rpartition(".") for name in seen_in_part(model, self._plan, inside)):
            self._shared.append((model.get_submodule(module), name))
        styles: dict[str, ParallelStyle] = {
            name: _Split(how, self._exchange) for name, how in self._plan.items() if how != SEQUENCE and name in there
        }
        parallelize_module(model, self._mesh, styles, src_data_rank=None)
        self._cut_and_join(model, inside)

    def sum_gradients(self) -> None:
        """Of whole parameters that have seen some of the positions, after the backward pass of a batch."""
        if self._plan:
            self._exchange.forget()  # what has been computed again
        given = [getattr(module, name).grad for module, name in self._shared]
        gradients = [each.to_local() if isinstance(each, DTensor) else each for each in given if each is not None]
        if gradients:
            flat = torch.cat([gradient.flatten() for gradient in gradients])
            dist.all_reduce(flat, group=self._exchange.group)
            for gradient, summed in zip(gradients, flat.split([each.numel() for each in gradients]), strict=True):
                gradient.copy_(summed.view_as(gradient))

    def objective(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The problem's, of what the last layer gives."""
        if self._plan:
            self._exchange.forget()
        if self._loss_in_parts:
            return self._problem.objective_of_part(outputs, targets, Features(self._exchange, outputs.shape[-1]))
        return self._problem.objective(outputs, targets)

    def handed_on(self, layer: int, output: torch.Tensor) -> torch.Tensor:
        """What a worker has of the output of a layer, before the next one joins it.

        Args:
            layer: number of the layer in the chain.
            output: of the whole layer, on the device "meta".
        """
        if not self._plan:
            return output
        names = [name for name, _ in self._whole.named_children()]
        name, is_last = names[layer], layer == len(names) - 1
        if is_last and not self._loss_in_parts:
            return output
        if self._exchange.by_position and name in by_position(self._plan) and not is_last:
            return self._exchange.cut(output)
        is_open = ends_open(self._whole[: layer + 1], self._plan)
        return self._exchange.cut(output, output.dim() - 1) if is_open else output

    def _cut_and_join(self, model: nn.Sequential, inside: set[str]) -> None:
        """Let activations be split by position where they are to be, and the model's outputs be whole."""
        exchange, before = self._exchange, False
        for name, layer in model.named_children():
            if name in inside and not before and not isinstance(layer, nn.Embedding):
                layer.register_forward_pre_hook(lambda _, given: exchange.cut_positions(*given))
            elif before and name not in inside:
                layer.register_forward_pre_hook(lambda _, given: exchange.join_positions(*given))
            before = name in inside
        if self._loss_in_parts:
            return
        if self._ends_open:
            model[-1].register_forward_hook(lambda _, given, output: exchange.join_features(output))
        elif before:
            model[-1].register_forward_hook(lambda _, given, output: exchange.join_positions(output))


class _Split(ParallelStyle):
    """Of one module of the plan, of which each worker keeps a part."""

    def __init__(self, how: str, exchange: Exchange) -> None:
        self._how, self._exchange = how, exchange

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        assert isinstance(module, nn.Linear | nn.Embedding)
        rows = len(module.weight) // self._exchange.size
        for name, parameter in list(module.named_parameters(recurse=False)):
            where = module_placement(self._how, module, name)
            if isinstance(where, Shard):
                setattr(module, name, nn.Parameter(_own(parameter.detach(), device_mesh, where)))
        if isinstance(module, nn.Embedding):
            module.forward = partial(_looked_up, module, self._exchange, rows * self._exchange.rank)  # type: ignore[method-assign]
        else:
            module.forward = partial(_column if self._how == COLUMN else _row, module, self._exchange)  # type: ignore[method-assign]
        return module


def _own(whole: torch.Tensor, mesh: DeviceMesh, where: Placement) -> torch.Tensor:
    """This worker's part."""
    return distribute_tensor(whole, mesh, [where], src_data_rank=None).to_local()


def _column(module: nn.Linear, exchange: Exchange, x: torch.Tensor) -> torch.Tensor:
    return linear(exchange.enter(x), module.weight, module.bias)


def _row(module: nn.Linear, exchange: Exchange, x: torch.Tensor) -> torch.Tensor:
    y = exchange.leave(linear(x, module.weight))
    return y if module.bias is None else y + module.bias


def _looked_up(module: nn.Embedding, exchange: Exchange, first: int, tokens: torch.Tensor) -> torch.Tensor:
    """Rows of an embedding whose own ones begin at `first`."""
    own = tokens - first
    elsewhere = (own < 0) | (own >= len(module.weight))
    found = embedding(own.masked_fill(elsewhere, 0), module.weight)
    return exchange.leave(found.masked_fill(elsewhere[..., None], 0))
