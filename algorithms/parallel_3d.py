"""Data, tensor and pipeline parallelism at once, in a mesh (Megatron-LM: Narayanan et al., SC 2021, section 3).

Workers that differ in their seat along one axis of the mesh only do to each other what that axis says: they split
layers (`splitting/layers.py`), are stages that hand on micro-batches (`pipelining/micro_batches.py`), or average the
gradients of batches of their own: by one all-reduce once a batch's backward passes are over, or, where they shard what
they have in common, by those of torch's FSDP2 (Zhao et al., VLDB 2023).
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from algorithms.base import Algorithm
from algorithms.common.optimizers import Optimizer
from algorithms.common.schedules import Schedule
from algorithms.pipelining.balance import check_balance
from algorithms.pipelining.held_stages import HeldStages, hold_stages
from algorithms.pipelining.micro_batch_counts import check_micro_batches, fewer_held
from algorithms.pipelining.micro_batches import Chain, Passes
from algorithms.pipelining.schedules import GPipe, OneFOneB, PipelineSchedule
from algorithms.pipelining.stages import check_costs, check_layered, check_stages, most_stages, units
from algorithms.sharding.copies import Copies, sharded
from algorithms.sharding.shards import Shards
from algorithms.splitting.layers import LayerSplit
from algorithms.splitting.mesh import Mesh, Shape, mesh_of
from algorithms.splitting.plan import check_degree, check_plan, larger_degree, lets_split_positions
from algorithms.splitting.traffic import bytes_of_batch, bytes_of_gradients
from harness.alike import Axis
from harness.errors import require
from harness.problems.base import Problem
from harness.shortage import Shortage, Way
from harness.worker import Worker


@dataclass(frozen=True)
class Parallel3D(Algorithm):
    """Workers in a mesh of data, tensor and pipeline parallelism.

    Args:
        mesh: workers along each axis.
        sequence_parallel: whether activations outside of split layers are split by position.
        shard_data: whether those who take batches of their own share one copy of what they train (FSDP2).
        checkpointing: whether what a layer computes is forgotten, and computed again in the backward pass, sums of
            activations included.
        micro_batches: of a batch, >= 1.
        balance: by what layers of stages cost the same: layers, parameters, flops or measured.
        pipeline_schedule: the order of passes.
        optimizer: what makes a step of the gradient, on each worker's part.
        schedule: factor of the step as training goes on.
    """

    synchronous: ClassVar[bool] = True
    splits_model: ClassVar[bool] = True
    supports_fake_tensors: ClassVar[bool] = True

    mesh: Mesh
    sequence_parallel: bool
    shard_data: bool
    checkpointing: bool
    micro_batches: int
    balance: str
    pipeline_schedule: PipelineSchedule
    optimizer: Optimizer
    schedule: Schedule

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.micro_batches >= 1, "algorithm.micro_batches", "must be >= 1", self.micro_batches)
        check_balance(self.balance)

    @property
    def least_batch(self) -> int:
        """A sample of each micro-batch."""
        return self.micro_batches

    def share(self, rank: int, num_workers: int) -> tuple[int, int]:
        """That of its seat along the axis of data."""
        shape = self.mesh.shape(num_workers)
        return shape.seat(rank).data, shape.data

    def alike(self, num_workers: int) -> list[Axis]:
        """Those of a stage."""
        shape = self.mesh.shape(num_workers)
        return [Axis(shape.pipeline, alike=False), Axis(shape.data, alike=True), Axis(shape.tensor, alike=True)]

    def check(self, problem: Problem) -> None:
        """Its model is a chain of layers, whose costs can be known."""
        check_layered(problem)
        check_costs(problem, self.balance)

    def check_workers(self, problem: Problem, num_workers: int) -> None:
        """They fill the mesh, and each axis has what it splits."""
        shape = self.mesh.shape(num_workers)
        if shape.tensor > 1:
            check_plan(problem, self.sequence_parallel)
            check_degree(problem, shape.tensor, "algorithm.mesh.tensor", self.sequence_parallel)
        check_stages(problem, shape.pipeline, self._stages_per_worker(shape), "algorithm.mesh.pipeline")
        check_micro_batches(self.pipeline_schedule, shape.pipeline, self.micro_batches, self.batch_size)

    def constants(self, num_workers: int) -> dict[str, float]:
        """The share of time in which workers with uniform stages wait for each other."""
        stages = self.mesh.shape(num_workers).pipeline
        return {"pipeline/bubble_frac": self.pipeline_schedule.bubble_frac(stages, self.micro_batches)}

    def bytes_per_update(self, problem: Problem, weights: torch.Tensor, num_workers: int) -> float | None:
        """Activations of batches and gradients; not where stages send, FSDP2 does, or some are sent again."""
        shape = self.mesh.shape(num_workers)
        if shape.pipeline > 1 or (self.shard_data and shape.data > 1) or self.checkpointing:
            return None
        layered = check_layered(problem)
        activations = shape.data * bytes_of_batch(layered, shape.tensor, self.batch_size, self.sequence_parallel)
        return activations + bytes_of_gradients(layered, shape)

    def frees_memory(self, problem: Problem, num_workers: int, lacks: Shortage) -> list[Way]:
        """What is shared out or computed again, and longer axes of the mesh."""
        shape, order = self.mesh.shape(num_workers), self.pipeline_schedule
        ways = [] if self.checkpointing else [lacks.passing_less("algorithm.checkpointing=true")]
        if shape.tensor > 1 and not self.sequence_parallel and lets_split_positions(problem, shape.tensor):
            ways.append(lacks.passing_less("algorithm.sequence_parallel=true", shape.tensor))
        if shape.pipeline > 1:
            held = fewer_held(order, shape.pipeline, self.micro_batches, self.batch_size)
            ways += [lacks.passing_less(typed, times) for typed, times in held.items()]
        if shape.data > 1 and not self.shard_data:
            ways.append(lacks.kept_less("algorithm.shard_data=true", shape.data))
        if wider := larger_degree(problem, shape.tensor, 2 * shape.tensor, self.sequence_parallel):
            typed = self.mesh.longer(shape, "tensor", wider)
            ways.append(lacks.kept_less(typed, wider / shape.tensor, passing_too=True))
        deeper = 2 * shape.pipeline
        if deeper * order.stages_per_worker <= most_stages(problem) and order.fits(deeper, self.micro_batches):
            ways.append(lacks.kept_less(self.mesh.longer(shape, "pipeline", deeper), 2, isinstance(order, GPipe)))
        return [*ways, *super().frees_memory(problem, num_workers, lacks)]

    def notices(self, problem: Problem, num_workers: int, epochs: float) -> list[str]:
        """What axes of one worker leave nothing to do for."""
        shape, ordered = self.mesh.shape(num_workers), not isinstance(self.pipeline_schedule, OneFOneB)
        chosen = [("sequence_parallel=true", "tensor")] * self.sequence_parallel
        chosen += [("shard_data=true", "data")] * self.shard_data + [("pipeline_schedule", "pipeline")] * ordered
        idle = [(setting, axis) for setting, axis in chosen if getattr(shape, axis) == 1]
        noted = [f"algorithm.{setting} has no effect: there is one worker along {axis}" for setting, axis in idle]
        more = self.pipeline_schedule.holds_more
        return [*noted, *[more] * (problem.is_fake and shape.pipeline > 1 and bool(more))]

    def train(self, worker: Worker, problem: Problem) -> None:
        """Take steps along the mean gradient of all batches."""
        problem = check_layered(problem)
        shape, order = self.mesh.shape(worker.num_workers), self.pipeline_schedule
        with worker.clock.paused():
            groups = {axis: shape.group(axis, worker.rank) for axis in shape._fields}
            layers = LayerSplit(problem, groups["tensor"], self.sequence_parallel, worker.device)
        line, samples = groups["pipeline"], -(-self.batch_size // self.micro_batches)
        num_stages = self._stages_per_worker(shape) * shape.pipeline
        numbers = [0] if line is None else order.held(shape.seat(worker.rank).pipeline, shape.pipeline)
        held = hold_stages(problem, worker, self.balance, samples, num_stages, numbers, layers)
        with worker.clock.paused():
            if self.checkpointing:
                for number in held.numbers:
                    held.stages[number] = nn.Sequential(*map(checkpoint_wrapper, units(held.stages[number])))
            shared = self._shared(held, groups["data"], line is None, worker.device)
            part = None if held.part is None else held.part[shared.indices]
        passes: Passes | Chain = Chain(problem, held.stages, layers.objective, self.micro_batches)
        if line is not None:
            passes = Passes(problem, held, order, self.micro_batches, worker, layers.objective, line)
        for batch in worker.batches(problem, self.batch_size):
            passes.run(batch)
            layers.sum_gradients()
            shared.step(self.learning_rate * self.schedule.at(worker))
            shared.forget()
            worker.observe(shared.flat, samples=len(batch), part=part)

    def _stages_per_worker(self, shape: Shape) -> int:
        """One where there is no order of passes."""
        return self.pipeline_schedule.stages_per_worker if shape.pipeline > 1 else 1

    def _shared(
        self, held: HeldStages, group: dist.ProcessGroup | None, reshard: bool, device: torch.device
    ) -> Shards | Copies:
        """What steps on a worker's stages, which others have too; they are sharded in place."""
        if group is None or not self.shard_data:
            return Copies(held.own, self.optimizer, self.learning_rate, group)
        mesh = mesh_of(group, device)
        for number in held.numbers:
            held.stages[number] = sharded(held.stages[number], mesh, reshard)
        return Shards(held.own, self.optimizer, self.learning_rate)
