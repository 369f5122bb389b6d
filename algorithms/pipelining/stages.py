"""The stages of a pipeline: parts of a chain of layers, in order, each on one worker.

A chain is cut into units, each with one layer that has parameters: what has none, such as an activation, stays with
the layer before it, so that every stage has something to learn and may work in place on what it has computed itself.
"""

from collections.abc import Iterable, Sequence
from itertools import pairwise

import torch
import torch.distributed as dist
from torch import nn

from algorithms.pipelining.balance import cut, parameters, seconds
from harness.errors import Unfit, UserError, require
from harness.problems.base import Problem
from harness.problems.layered import Layered
from harness.problems.outline import outlines, shapes_of
from harness.worker import Worker


def check_layered(problem: Problem) -> Layered:
    """The problem, if its model is a chain of layers, each with parameters of its own.

    Raises:
        Unfit: if it is not.
    """
    if not isinstance(problem, Layered):
        raise Unfit("a model is taken by its layers, and this one is no chain of layers")
    if problem.shares_parameters:
        raise Unfit("a model is taken by its layers, of which some share a parameter in this one")
    return problem


def check_costs(problem: Problem, balance: str) -> None:
    """Refuse to measure what has no values.

    Raises:
        UserError: naming the others.
    """
    rule = "must be layers, parameters or flops where the problem has shapes and no values"
    require(balance != "measured" or not problem.is_fake, "algorithm.balance", rule, balance)


def check_stages(problem: Problem, num_workers: int, stages_per_worker: int, field: str) -> None:
    """Refuse more stages than there are layers to cut before.

    Args:
        field: the setting that says how many workers have stages.

    Raises:
        UserError: naming the largest number of workers, and a deeper model.
    """
    problem = check_layered(problem)
    layers = most_stages(problem)
    most, needed = layers // stages_per_worker, num_workers * stages_per_worker
    if needed > layers:
        ways = [f"{field}={most}"] * (most > 0) + [problem.deepened(needed)] * bool(problem.deepened(needed))
        if stages_per_worker > 1 and num_workers <= layers:
            ways.append("algorithm/pipeline_schedule=one_f_one_b, of one stage a worker")
        remedy = f"set {', or '.join(ways)}" if ways else "use a deeper model"
        raise UserError(
            f"{field}={num_workers} needs {needed} layers with parameters, {stages_per_worker} a worker, and the model "
            f"has {layers}: {remedy}"
        )


def most_stages(problem: Problem) -> int:
    """Layers to cut before."""
    return len(units(shapes_of(check_layered(problem))))


def units(model: nn.Sequential) -> list[nn.Sequential]:
    """What is never cut: a layer that has parameters, and those after it that have none.

    What flattens is before a layer: torch wants no view from a unit, which could be overwritten.

    >>> [len(unit) for unit in units(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(2, 1)))]
    [2, 2]
    """
    layers = [*model]  # children() would leave out what is there twice
    own = [place for place, layer in enumerate(layers) if parameters(layer)]
    begins = [0]
    for before, place in pairwise(own):
        flat = [between for between in range(before + 1, place) if isinstance(layers[between], nn.Flatten)]
        begins.append((flat or [place])[0])
    return [nn.Sequential(*layers[begin:end]) for begin, end in pairwise([*begins, len(layers)])]


def split(model: nn.Sequential, num_stages: int, costs: Sequence[float]) -> list[nn.Sequential]:
    """The stages of a model, which share its parameters.

    Args:
        costs: of each of its units.
    """
    parts = units(model)
    return [chain(parts[place] for place in part) for part in cut(costs, num_stages)]


def chain(parts: Iterable[nn.Sequential]) -> nn.Sequential:
    """All layers of several parts."""
    return nn.Sequential(*[layer for part in parts for layer in part])


def costs_of(model: nn.Sequential, balance: str, problem: Layered, samples: int, worker: Worker) -> list[float]:
    """What each unit of a model costs, known to all workers; on the clock if it is measured.

    Args:
        balance: one of `BALANCES`.
        samples: that go through it at once.
    """
    if balance == "measured":
        return _measured(units(model), inputs_like(problem, samples, worker.device), worker)
    with worker.clock.paused():
        return counted(units(model), balance, problem, samples)


def counted(parts: Sequence[nn.Sequential], balance: str, problem: Layered, samples: int) -> list[float]:
    """What each unit costs where nothing is measured."""
    if balance == "layers":
        return [1.0] * len(parts)
    if balance == "parameters":
        return [float(parameters(part)) for part in parts]
    of_layers = iter(outlines(problem, samples))
    return [sum(next(of_layers).flops for _ in part) for part in parts]


def _measured(parts: Sequence[nn.Module], inputs: torch.Tensor, worker: Worker) -> list[float]:
    """By rank 0, who tells the others."""

    def read_clock() -> float:
        worker.settle()
        return worker.read_clock()

    told = torch.zeros(len(parts), dtype=torch.float64, device=worker.device)
    if worker.rank == 0:
        told.copy_(torch.tensor(seconds(parts, inputs, read_clock)))
    dist.broadcast(told, 0)
    return told.tolist()


def inputs_like(problem: Layered, samples: int, device: torch.device) -> torch.Tensor:
    """Zeros of the shape and dtype of what the first layer takes."""
    shape, dtype = problem.layout(torch.zeros(samples, dtype=torch.int32))[0]
    return torch.zeros(shape, dtype=dtype, device=device)


def indices(model: nn.Module) -> list[torch.Tensor]:
    """Of each parameter's elements among the flat ones of the model, int64, in the parameter's shape."""
    sizes = [parameter.numel() for parameter in model.parameters()]
    parts = torch.arange(sum(sizes)).split(sizes)
    return [part.view(parameter.shape) for part, parameter in zip(parts, model.parameters(), strict=True)]
