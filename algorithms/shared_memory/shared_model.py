"""What algorithms on a shared model have in common: how it is shared, updated and stored.

Orthogonal to the method (SGD, SVRG, coordinate descent, Langevin dynamics): each runs with each.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from algorithms.base import Algorithm
from algorithms.common.schedules import Schedule
from algorithms.flat import flat_parameters
from algorithms.shared_memory.layout import Layout, check_layout, hottest, laid_out, parameters_of
from algorithms.shared_memory.precision import check_precision, encode
from algorithms.shared_memory.replicas import MERGES, SHARING, HotReplica, Merged, Replica, Shared, as_it_is
from harness.errors import require
from harness.kernels.access import Access, check_locking, lock_words, open_mutex
from harness.kernels.base import Kernel, Model, SplitModel
from harness.problems.base import Problem
from harness.worker import Worker


@dataclass(frozen=True)
class SharedModelAlgorithm(Algorithm):
    """Workers that update one model, or replicas of it that are merged.

    Args:
        schedule: factor of the step as training goes on.
        sharing: shared, replica_per_worker, replica_per_node or hot_replica (algorithms/shared_memory/replicas.py).
        merge: of replicas: delta_sum, average or ring.
        merge_every: samples of a worker between two merges, >= 1.
        hot_coordinates: how many hot_replica replicates, >= 1.
        locking: none, atomic, global_spin, global_mutex, per_coordinate or round_robin (harness/kernels/access.py).
        layout: of the model in memory: as_given, scattered, by_heat or padded (algorithms/shared_memory/layout.py).
        precision: of a model that is shared: full, bfloat16 or int8, the latter two with stochastic rounding.
        quantum: what one step of an int8 model is worth, > 0.
        gradient_delay_s: by which every gradient of a kernel artificially takes longer, >= 0 s.
    """

    synchronous: ClassVar[bool] = False
    needs_shared_memory: ClassVar[bool] = True
    has_kernel: ClassVar[bool] = True
    why_full: ClassVar[str] = ""  # why models are not rounded; empty where they may be
    why_summed: ClassVar[str] = ""  # why replicas are not averaged; empty where they may be

    schedule: Schedule
    sharing: str
    merge: str
    merge_every: int
    hot_coordinates: int
    locking: str
    layout: str
    precision: str
    quantum: float
    gradient_delay_s: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check_locking(self.locking)
        check_layout(self.layout)
        check_precision(self.precision, self.quantum)
        require(self.sharing in SHARING, "algorithm.sharing", f"must be one of {', '.join(SHARING)}", self.sharing)
        require(self.merge in MERGES, "algorithm.merge", f"must be one of {', '.join(MERGES)}", self.merge)
        require(self.merge_every >= 1, "algorithm.merge_every", "must be >= 1", self.merge_every)
        require(self.hot_coordinates >= 1, "algorithm.hot_coordinates", "must be >= 1", self.hot_coordinates)
        require(self.gradient_delay_s >= 0, "algorithm.gradient_delay_s", "must be >= 0 s", self.gradient_delay_s)
        if self.why_full:
            require(self.precision == "full", "algorithm.precision", f"must be full: {self.why_full}", self.precision)
        if self.sharing != "shared":
            averaged, rule = self.merge == "average", f"must be delta_sum or ring: {self.why_summed}"
            require(not (self.why_summed and averaged), "algorithm.merge", rule, self.merge)
            rule = f"must be full with algorithm.sharing={self.sharing}: rounded numbers cannot be merged"
            require(self.precision == "full", "algorithm.precision", rule, self.precision)
        if self.precision != "full":
            rule = f"must not be atomic with algorithm.precision={self.precision}: cores add only floats so"
            require(self.locking != "atomic", "algorithm.locking", rule, self.locking)

    def releases_gil(self, problem: Problem) -> bool:
        """With one sample per update and a native kernel."""
        return self.batch_size == 1 and problem.kernel is not None

    def check(self, problem: Problem) -> None:
        """Refuse what needs a native kernel where none runs.

        Raises:
            UserError: naming the field.
        """
        if not self.visits_rows:
            rule = f"must be as_given with {type(self).__name__}, which runs a kernel of its own"
            require(self.layout == "as_given", "algorithm.layout", rule, self.layout)
        if self.releases_gil(problem):
            assert problem.kernel is not None
            movable = self.layout == "as_given" or problem.kernel.row_data is not None
            rule = "must be as_given with this problem, whose kernel's coordinates cannot be renumbered"
            require(movable, "algorithm.layout", rule, self.layout)
            return
        rule = "needs a native kernel (algorithm.batch_size=1, and a problem that has one)"
        require(self.sharing != "hot_replica", "algorithm.sharing", f"hot_replica {rule}", self.sharing)
        require(self.precision == "full", "algorithm.precision", f"{self.precision} {rule}", self.precision)
        require(self.gradient_delay_s == 0, "algorithm.gradient_delay_s", rule, self.gradient_delay_s)
        require(self.layout == "as_given", "algorithm.layout", f"{self.layout} {rule}", self.layout)
        known = self.locking in ("none", "global_mutex")
        require(known, "algorithm.locking", f"{self.locking} {rule}; use none or global_mutex", self.locking)

    def without_effect(self) -> dict[str, str]:
        """Those of replicas where there are none, and of numbers that are not stored so."""
        sharing, precision = f"algorithm.sharing={self.sharing}", f"algorithm.precision={self.precision}"
        found = {} if self.precision == "int8" else {"quantum": precision}
        if self.sharing == "shared":
            found |= dict.fromkeys(("merge", "merge_every"), sharing)
        return found if self.sharing == "hot_replica" else found | {"hot_coordinates": sharing}

    def steadies(self) -> list[str]:
        """Deltas that replicas sum up are as many steps as they have taken since their last merge."""
        if self.sharing == "shared" or self.merge == "average":
            return super().steadies()
        average = [] if self.why_summed else ["algorithm.merge=average"]
        return [*average, "a smaller algorithm.merge_every", *super().steadies()]

    def notices(self, problem: Problem, num_workers: int, epochs: float) -> list[str]:
        """Say where the hottest coordinates are all there are."""
        kernel = problem.kernel if self.releases_gil(problem) and self.sharing == "hot_replica" else None
        if kernel is None or self.hot_coordinates < kernel.num_coordinates:
            return []
        replicates = f"replicates all {kernel.num_coordinates:,} coordinates of the model, as replica_per_worker does"
        return [f"algorithm.hot_coordinates={self.hot_coordinates} {replicates}"]

    def laid_out(self, worker: Worker, problem: Problem) -> Layout | None:
        """The problem's kernel for a model that lies as `layout` says, found off the clock; None without a kernel."""
        if not self.releases_gil(problem):
            return None
        assert problem.kernel is not None
        with worker.clock.paused():
            number_bytes = encode(torch.empty(0, dtype=getattr(torch, problem.dtype)), self.precision, 1.0).itemsize
            return laid_out(problem.kernel, self.layout, number_bytes, worker.seed)

    def replica(self, worker: Worker, problem: Problem, weights: torch.Tensor, layout: Layout | None = None) -> Replica:
        """The model that this worker works on; every worker calls it.

        Args:
            weights: initial, in the problem's order, shape (parameters,).
            layout: from `laid_out`, of the kernel that will work on the model.

        Raises:
            UserError: if the caller knows of no layouts, and the settings ask for one.
        """
        if layout is None and self.releases_gil(problem):
            rule = f"must be as_given with {type(self).__name__}"
            require(self.layout == "as_given", "algorithm.layout", rule, self.layout)
            layout = self.laid_out(worker, problem)
        access = self.access(worker, layout.kernel if layout is not None else None)
        if layout is not None:
            with worker.clock.paused():
                weights = layout.lay(weights)
        restore = layout.restore if layout is not None else as_it_is
        if self.sharing == "shared":
            return Shared(worker, weights, access, self.precision, restore)
        if self.sharing == "hot_replica":
            assert problem.kernel is not None
            with worker.clock.paused():
                hot = parameters_of(problem.kernel, hottest(problem.kernel, self.hot_coordinates))
            places = hot if layout is None or layout.places is None else layout.places[hot]
            return HotReplica(worker, weights, access, places, self.merge, self.merge_every, restore)
        per_worker = self.sharing == "replica_per_worker"
        member, members = (worker.rank, worker.num_workers) if per_worker else (worker.node, worker.num_nodes)
        return Merged(worker, weights, access, member, members, self.merge, self.merge_every, restore=restore)

    def step(self, worker: Worker) -> float:
        """The learning rate of the worker's last batch."""
        return self.learning_rate * self.schedule.at(worker)

    def example(self, problem: Problem) -> tuple[Model, Access]:
        """A model and an access like those that workers will use, to compile for."""
        weights = flat_parameters(problem.build_model(torch.device("cpu"), seed=0))
        model: Model = encode(weights, self.precision, self.quantum)
        if self.sharing == "hot_replica":
            model = SplitModel(weights, weights[:1].clone(), torch.zeros(len(weights), dtype=torch.int32))
        return model, Access(self.locking, lock_words(self.locking, 1), self.quantum)

    def access(self, worker: Worker, kernel: Kernel | None) -> Access:
        """How updates get to what is shared; every worker calls it, once.

        Args:
            kernel: that makes the updates, or one of as many coordinates; None where torch makes them.
        """
        if kernel is None:
            return Access(self.locking)
        words = lock_words(self.locking, kernel.num_coordinates)
        if words.numel():
            words = worker.shared("locks", words)
            if worker.rank == 0:
                open_mutex(words)
            worker.meet()
        return Access(self.locking, words, self.quantum, self.gradient_delay_s)
