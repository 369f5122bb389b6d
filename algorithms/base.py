"""The Algorithm: what every worker does.

A toy algorithm, whole (README.md runs one from a user's own folder):

    @dataclass(frozen=True)
    class EveryoneAlone(Algorithm):
        '''Every worker trains its own model and never speaks; rank 0's is observed.'''

        synchronous: ClassVar[bool] = True

        def train(self, worker, problem):
            model = problem.build_model(worker.device, worker.seed)
            weights, gradient = flatten_(model)
            for batch in worker.batches(problem, self.batch_size):
                problem.loss(model, batch).backward()
                weights.sub_(gradient, alpha=self.learning_rate)
                gradient.zero_()
                worker.observe(weights, samples=len(batch))
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from harness.errors import require
from harness.shortage import Way

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from harness.alike import Axis
    from harness.problems.base import Problem
    from harness.shortage import Shortage
    from harness.worker import Worker


@dataclass(frozen=True)
class Algorithm(ABC):
    """What every worker does.

    Class attributes declare what it can do; they are checked before anything starts.

    Args:
        learning_rate: constant step, > 0.
        batch_size: samples per worker and update, >= 1; 0 for the whole training set where the class `takes_all`.
    """

    synchronous: ClassVar[bool]  # all workers take the same number of steps, in lockstep
    needs_shared_memory: ClassVar[bool] = False
    max_workers: ClassVar[int | None] = None
    has_kernel: ClassVar[bool] = False  # with one sample per update, `releases_gil` of some problems
    visits_rows: ClassVar[bool] = False  # runs its kernel by `worker.visits`, wherever its rows lie
    why_rows_stay: ClassVar[str] = "runs a kernel whose rows stay"  # if it does not
    is_sgd: ClassVar[bool] = True  # one worker does what sequential SGD of the same step does
    deals_samples: ClassVar[bool] = False  # itself, by `worker.batches_of`: data policies have nothing to say
    trains: ClassVar[bool] = True  # there is a model to observe and to compare; if not, only what it measures is kept
    own_baseline: ClassVar[bool] = False  # the sequential way of doing the same is itself, on one worker
    takes_all: ClassVar[bool] = False  # batch_size may be 0, for the whole training set
    decentralised: ClassVar[bool] = False  # every worker has a model of its own, and the run's is their average
    splits_model: ClassVar[bool] = False  # every worker observes the part of the model that it holds
    supports_fake_tensors: ClassVar[bool] = False  # reads no value of a tensor, so that there need be none
    why_no_fake_tensors: ClassVar[str] = "needs values"  # if it does not

    learning_rate: float
    batch_size: int

    @property
    def least_batch(self) -> int:
        """The fewest samples that `batch_size` may be with all other settings as they are."""
        return 1

    @property
    def observes_own(self) -> bool:
        """Whether what is observed is each worker's own: a model, or a part of one."""
        return self.decentralised or self.splits_model

    def __post_init__(self) -> None:
        require(self.learning_rate > 0, "algorithm.learning_rate", "must be > 0", self.learning_rate)
        rule = "must be >= 1" + (", or 0 for the whole training set" if self.takes_all else "")
        require(self.batch_size >= 1 - self.takes_all, "algorithm.batch_size", rule, self.batch_size)

    @abstractmethod
    def train(self, worker: Worker, problem: Problem) -> None:
        """Do one worker's whole training."""

    def servers(self) -> int:
        """How many ranks there are beyond the workers; they run `serve`."""
        return 0

    def serve(self, worker: Worker, problem: Problem) -> None:
        """Do one server's whole work: `worker.rank` is num_workers or more."""
        raise NotImplementedError(f"{type(self).__name__}.servers() asks for servers, and it has no method `serve`")

    def share(self, rank: int, num_workers: int) -> tuple[int, int]:
        """Which share of the samples of a step a worker takes, and of how many; who split a model take the same one.

        Returns:
            index from 0, and shares; indices are in the order of ranks where every worker has its own.
        """
        return rank, num_workers

    def alike(self, num_workers: int) -> Sequence[Axis]:
        """The mesh of the workers, row-major, and along which of its axes they behave alike; empty where none do.

        A simulation of fake tensors may then do with one of those that do; see `harness.alike`.
        """
        return ()

    def constants(self, num_workers: int) -> dict[str, float]:
        """What is known beforehand of a run on so many workers, by key of docs/metrics.md, for its summary.

        Raises:
            UserError: if there cannot be so many with these settings; 1 must always do, for comparison.
        """
        return {}

    def seeds(self, seed: int) -> list[int]:
        """Of the models it begins with, in a run of this seed; several make an ensemble."""
        return [seed]

    def bytes_per_update(self, problem: Problem, weights: torch.Tensor, num_workers: int) -> float | None:
        """Payload that all ranks together send for one update, in the mean, as docs/metrics.md counts both.

        Args:
            problem: whose layers are sent, where what they give is.
            weights: a vector like the model's parameters.
            num_workers: of the run.

        Returns:
            None where data or timing decide, or nobody has said.
        """
        return None

    def frees_memory(self, problem: Problem, num_workers: int, lacks: Shortage) -> list[Way]:
        """What would make workers need less memory: an algorithm's own settings before those that all have."""
        ways, least = [], self.least_batch
        if self.batch_size > least:
            fits = max(least, min(lacks.samples(self.batch_size), self.batch_size - 1))
            freed = (1 - fits / self.batch_size) * lacks.passing_bytes
            ways.append(Way(f"algorithm.batch_size={fits}", freed, freed))
        if "bfloat16" in problem.dtypes and problem.dtype != "bfloat16":
            times = 4.0 if problem.dtype == "float64" else 2.0
            computes_so = self.computes_in(problem.dtype) == problem.dtype
            ways.append(lacks.kept_less("problem.dtype=bfloat16", times, passing_too=computes_so))
        if not getattr(getattr(self, "optimizer", None), "is_stateless", True):
            ways.append(Way("algorithm/optimizer=sgd", lacks.state_bytes, lacks.state_bytes))
        if not self.splits_model and num_workers > 1:
            shared, kept = (1 - 1 / num_workers) * lacks.kept_bytes, lacks.kept_bytes  # gradients are not kept there
            ways.append(Way("algorithm=fsdp", shared, kept))
        return ways

    def steadies(self) -> list[str]:
        """What might keep a loss from rising, as it is typed, likeliest first."""
        return ["a smaller algorithm.learning_rate"]

    def computes_in(self, dtype: str) -> str:
        """The dtype of its products, of a problem whose model is of `dtype`."""
        return dtype

    def staleness_bound(self, num_workers: int) -> int | None:
        """How many updates there can be between the weights that a gradient is of and the step along it, at most.

        Returns:
            None where nothing bounds it.
        """
        return 0 if self.synchronous else None

    def check(self, problem: Problem) -> None:  # noqa: B027 - most can do any problem
        """Refuse a problem that cannot be done with these settings.

        Raises:
            UserError: naming the field, the value and what would work.
        """

    def notices(self, problem: Problem, num_workers: int, epochs: float) -> list[str]:
        """What a user may not expect of so many workers and epochs with these settings, one line each."""
        return []

    def without_effect(self) -> dict[str, str]:
        """Settings that change nothing beside the others, and the one that makes them so, as it is typed."""
        return {}

    def check_workers(self, problem: Problem, num_workers: int) -> None:  # noqa: B027 - most can be any number
        """Refuse so many workers on a problem: 1 must always do, for comparison.

        Raises:
            UserError: naming the field, the value and what would work.
        """

    def warm_up(self, problem: Problem) -> None:  # noqa: B027 - only native kernels are compiled
        """Compile what `train` will run, so that no clock sees it."""

    def releases_gil(self, problem: Problem) -> bool:
        """Whether the inner loop is a native kernel, so that threads serve as workers."""
        return False
