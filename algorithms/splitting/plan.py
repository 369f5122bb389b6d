"""What the words of a problem's `tensor_plan` mean for a model's parameters and activations."""

from collections.abc import Mapping
from math import gcd

from torch import nn
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.placement_types import Placement

from harness.errors import Unfit, UserError
from harness.problems.base import Problem
from harness.problems.layered import Layered

COLUMN, ROW, SEQUENCE = "column", "row", "sequence"


def placement(model: nn.Module, plan: Mapping[str, str], parameter: str) -> Placement:
    """Of a parameter of the model, by its name."""
    name, _, own = parameter.rpartition(".")
    return module_placement(plan.get(name, SEQUENCE), model.get_submodule(name), own)


def module_placement(how: str, module: nn.Module, parameter: str) -> Placement:
    """Of a parameter of a module, by the plan's word for that."""
    if how == COLUMN or (how == ROW and isinstance(module, nn.Embedding)):
        return Shard(0)
    return Shard(1) if how == ROW and parameter == "weight" else Replicate()


def by_position(plan: Mapping[str, str]) -> set[str]:
    """Layers of the chain whose activations sequence parallelism splits by position."""
    return {name.partition(".")[0] for name, how in plan.items() if how == SEQUENCE or (how == ROW and "." not in name)}


def seen_in_part(model: nn.Module, plan: Mapping[str, str], inside: set[str]) -> list[str]:
    """Whole parameters of layers that work on some positions, by name."""
    names = [name for name, _ in model.named_parameters() if name.partition(".")[0] in inside]
    return [name for name in names if isinstance(placement(model, plan, name), Replicate)]


def ends_open(model: nn.Module, plan: Mapping[str, str]) -> bool:
    """Whether the last layer's outputs are split by feature."""
    split = [how for name, _ in model.named_modules() if (how := plan.get(name, SEQUENCE)) != SEQUENCE]
    return split[-1:] == [COLUMN]


def check_plan(problem: Problem, sequence_parallel: bool) -> Layered:
    """The problem, whose layers can be split.

    Raises:
        Unfit: if they cannot, or not by position where that is asked for.
    """
    plan = problem.tensor_plan() if isinstance(problem, Layered) else {}
    if not isinstance(problem, Layered) or not plan:
        raise Unfit("layers are split, and there is no plan (`tensor_plan`) of how to split these")
    if sequence_parallel and SEQUENCE not in plan.values():
        raise Unfit("algorithm.sequence_parallel=true splits activations by position, of which these have none")
    return problem


def larger_degree(problem: Problem, degree: int, needed: int, sequence_parallel: bool) -> int:
    """The least number above `degree`, of `needed` or more, that layers can be split among, or the largest; or 0."""
    assert isinstance(problem, Layered)
    common = gcd(*problem.tensor_divisors(sequence_parallel).values())
    possible = [number for number in range(degree + 1, common + 1) if common % number == 0]
    return next((number for number in possible if number >= needed), possible[-1] if possible else 0)


def lets_split_positions(problem: Problem, degree: int) -> bool:
    """Whether algorithm.sequence_parallel=true is one of its choices."""
    if not isinstance(problem, Layered) or SEQUENCE not in problem.tensor_plan().values():
        return False
    return all(size % degree == 0 for size in problem.tensor_divisors(sequence_parallel=True).values())


def check_degree(problem: Problem, degree: int, field: str, sequence_parallel: bool) -> None:
    """Refuse a number of workers that layers cannot be split among.

    Raises:
        UserError: naming the setting that gives it, what it has to divide, and a number that does.
    """
    assert isinstance(problem, Layered)
    sizes = problem.tensor_divisors(sequence_parallel)
    fewer = max(number for number in range(1, degree + 1) if gcd(*sizes.values()) % number == 0)
    for name, size in sizes.items():
        if size % degree:
            raise UserError(f"{field} must divide {name}={size}, which it splits, got {degree}: set {field}={fewer}")
