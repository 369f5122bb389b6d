"""The settings of a run, with 1 added wherever it adds a gradient."""

from dataclasses import dataclass, fields, replace
from functools import cached_property

import torch
from torch import nn

from algorithms.shared_memory.shared_model import SharedModelAlgorithm
from harness.baseline import CONSTANT
from harness.batch import Samples
from harness.errors import UserError, require
from harness.kernels.counting import CountingKernel
from harness.problems.base import Problem
from harness.setup import Setup

EXACT = {"float32": 2**24, "float64": 2**53}  # up to which floats count


@dataclass(frozen=True)
class Counting(Problem):
    """Another problem's samples and model, all parameters 0, and a kernel that counts."""

    counted: Problem

    @classmethod
    def of(cls, problem: Problem) -> "Counting":
        """With the settings of `problem`."""
        return cls(**{field.name: getattr(problem, field.name) for field in fields(Problem)}, counted=problem)

    @property
    def num_samples(self) -> int:
        """Of the other one."""
        return self.counted.num_samples

    def build_model(self, device: torch.device, seed: int) -> nn.Module:
        """Zeros in the shape of the other one's."""
        model = self.counted.build_model(device, seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        return model

    def loss(self, model: nn.Module, samples: Samples) -> torch.Tensor:
        """Of the other one; nobody descends on it."""
        return self.counted.loss(model, samples)

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Nothing."""
        return {}

    @cached_property
    def kernel(self) -> CountingKernel:
        """Counts what the other one's touches."""
        kernel = self.counted.kernel
        assert kernel is not None
        return CountingKernel(kernel.indptr, kernel.indices, kernel.num_coordinates, kernel.block)


def count(setup: Setup) -> dict[str, object]:
    """Run it, counting.

    Returns:
        additions made and lost, their ratio, and the simulator's own account of it where there is one.

    Raises:
        UserError: where counters would not tell.
    """
    made = int(expected(setup).sum())
    counting = replace(setup.algorithm, learning_rate=1.0, schedule=CONSTANT)  # type: ignore[call-arg]  # checked above
    setup = replace(setup, algorithm=counting, problem=Counting.of(setup.problem))
    execution = setup.hardware.execute(setup.program(), lambda samples: None)
    if execution.failure is not None:
        raise execution.failure
    lost = made - int(execution.observations[-1].parameters.double().sum())
    own = {key: value for key, value in execution.metrics.items() if key == "async/lost_frac"}
    return {"additions": made, "lost": lost, "lost_frac": lost / made, **own}


def expected(setup: Setup) -> torch.Tensor:
    """Additions to each parameter, int64, shape (parameters,).

    Raises:
        UserError: where that cannot be known, or not be counted.
    """
    algorithm, kernel, epochs = setup.algorithm, setup.problem.kernel, setup.settings.budget.epochs
    if not isinstance(algorithm, SharedModelAlgorithm) or kernel is None or algorithm.batch_size > 1:
        raise UserError("counting needs workers that run a native kernel on a shared model, such as algorithm=hogwild")
    rule, name = "must be hogwild to count: others run kernels of their own", setup.choices["algorithm"]
    require(algorithm.visits_rows, "algorithm", rule, name)
    require(algorithm.layout == "as_given", "algorithm.layout", "must be as_given to count", algorithm.layout)
    order = setup.data.order
    require(order != "permuted", "data.order", "must be index or storage to count", order)
    require(algorithm.precision == "full", "algorithm.precision", "must be full to count", algorithm.precision)
    averages = algorithm.sharing != "shared" and algorithm.merge == "average"
    require(not averages, "algorithm.merge", "must not be average: it keeps a share of what is counted", "average")
    require(epochs == int(epochs), "budget.epochs", "must be whole to count", epochs)
    require(setup.choices["data"] == "partitioned", "data", "must be partitioned to count", setup.choices["data"])
    visits = int(epochs) * torch.bincount(kernel.indices, minlength=kernel.num_coordinates)
    dtype = setup.problem.dtype
    rule = f"must be smaller, or problem.dtype=float64: {dtype} counts to {EXACT[dtype]}"
    require(int(visits.max()) <= EXACT[dtype], "budget.epochs", rule, epochs)
    return visits.repeat_interleave(kernel.block)
