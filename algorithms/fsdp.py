"""Fully sharded data parallel SGD by torch's FSDP2 (Zhao et al., VLDB 2023; ZeRO-3 of Rajbhandari et al., SC 2020).

What `all_reduce` computes, but of parameters, gradients and the optimiser's state a worker keeps its shard alone. A
layer is gathered whole before its forward pass, and again before its backward pass; its gradients are summed on the
way to those who keep them (reduce-scatter). In bytes of the model n, each worker hands in, per step, of S that shard:

    n / S                                     to the all-gather of the forward pass
    n / S, if layers are resharded            to that of the backward pass: the last layer's too
    n                                         to the reduce-scatter
    n / S, with R > 1 groups that replicate   to the all-reduce among those who keep the same shard (HSDP, section 3.2)

Torch pads: of a tensor with r rows a worker keeps r / S, rounded up, and sends as many; the last workers may keep less,
or nothing. On a ring these are n (S - 1) / S, the same, n (S - 1) / S and 2 n (R - 1) / (R S) bytes on the wire: with
R = 1 in all 1.5 times the 2 n (P - 1) / P of an all-reduce, or as many if layers are not resharded. (gloo does a
reduce-scatter as an all-reduce: twice as many, or 1.5 times.) A worker alone sends nothing. `fsdp_plain` is the same
without torch's FSDP.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import nn
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from algorithms.base import Algorithm
from algorithms.common.optimizers import Optimizer
from algorithms.common.schedules import Schedule
from algorithms.pipelining.stages import check_layered, units
from algorithms.sharding.footprint import Footprint
from algorithms.sharding.shards import Shards
from harness.alike import Axis
from harness.errors import require
from harness.problems.base import Problem
from harness.problems.outline import shapes_of
from harness.shortage import Shortage, Way
from harness.worker import Worker

DTYPES = ("float32", "float64", "bfloat16", "float16")


@dataclass(frozen=True)
class FSDP(Algorithm):
    """Average the gradients of all workers at every step, each of which keeps a shard of the model.

    Args:
        linear_scaling: multiply the step by the number of workers.
        reshard_after_forward: whether a layer is given up after its forward pass, and gathered again for the backward.
        shard_size: workers that shard a model, neighbouring ranks, >= 0; groups of them replicate it. 0 for all.
        prefetch: layers that are gathered ahead of the one that computes, >= 0; 0 for torch's own choice: one in the
            backward pass, and in the forward pass as far as the host is ahead of its device.
        checkpointing: whether what a layer computes is forgotten, and computed again in the backward pass.
        param_dtype: of gathered layers and what they compute, null for the problem's.
        reduce_dtype: of the gradients that are summed, null for that of gathered layers.
        optimizer: what makes a step of the average gradient, on every shard alike.
        schedule: factor of the step as training goes on.
    """

    synchronous: ClassVar[bool] = True
    splits_model: ClassVar[bool] = True
    supports_fake_tensors: ClassVar[bool] = True

    linear_scaling: bool
    reshard_after_forward: bool
    shard_size: int
    prefetch: int
    checkpointing: bool
    param_dtype: str | None
    reduce_dtype: str | None
    optimizer: Optimizer
    schedule: Schedule

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("shard_size", "prefetch"):
            require(getattr(self, name) >= 0, f"algorithm.{name}", "must be >= 0", getattr(self, name))
        for name in ("param_dtype", "reduce_dtype"):
            chosen, rule = getattr(self, name), f"must be null or one of {', '.join(DTYPES)}"
            require(chosen in (None, *DTYPES), f"algorithm.{name}", rule, chosen)

    @property
    def is_sgd(self) -> bool:  # type: ignore[override]
        """In the problem's own precision."""
        return self.param_dtype is None and self.reduce_dtype is None

    def alike(self, num_workers: int) -> list[Axis]:
        """All workers, of groups that shard a model."""
        size = self.shards(num_workers)
        return [Axis(num_workers // size, alike=True), Axis(size, alike=True)]

    def check(self, problem: Problem) -> None:
        """Layers are what is gathered."""
        check_layered(problem)

    def check_workers(self, problem: Problem, num_workers: int) -> None:
        """Groups make them up."""
        self.shards(num_workers)

    def shards(self, num_workers: int) -> int:
        """How many workers shard a model; one is alone whatever the settings say.

        Raises:
            UserError: if they do not divide the workers.
        """
        size = self.shard_size if self.shard_size and num_workers > 1 else num_workers
        rule = f"must divide hardware.num_workers={num_workers}, or be 0 for all of them"
        require(num_workers % size == 0, "algorithm.shard_size", rule, size)
        return size

    def bytes_per_update(self, problem: Problem, weights: torch.Tensor, num_workers: int) -> float | None:
        """As above, with what torch pads, of all workers together."""
        shards = self.shards(num_workers)
        model = shapes_of(check_layered(problem))
        rows = [(len(parameter), parameter.shape[1:].numel()) for parameter in model.parameters()]
        padded = sum(-(-count // shards) * shards * elements for count, elements in rows)
        gathered_bytes = padded * self._dtype(weights.dtype, self.param_dtype).itemsize
        summed_bytes = padded * self._dtype(weights.dtype, self.reduce_dtype, self.param_dtype).itemsize
        own_bytes = 0.0
        if shards > 1:
            own_bytes += (1 + self.reshard_after_forward) * gathered_bytes / shards + summed_bytes
        if shards < num_workers:
            own_bytes += summed_bytes / shards
        return num_workers * own_bytes

    def frees_memory(self, problem: Problem, num_workers: int, lacks: Shortage) -> list[Way]:
        """Layers given up or computed again, and smaller shards."""
        ways = [] if self.checkpointing else [lacks.passing_less("algorithm.checkpointing=true")]
        if not self.reshard_after_forward:
            shapes = shapes_of(check_layered(problem)).parameters()
            gathered_bytes = sum(each.numel() * self._dtype(each.dtype, self.param_dtype).itemsize for each in shapes)
            ways.append(Way("algorithm.reshard_after_forward=true", 0, min(gathered_bytes, lacks.passing_bytes)))
        shards = self.shards(num_workers)
        if shards < num_workers:
            ways.append(lacks.kept_less("algorithm.shard_size=0", num_workers / shards))
        elif more := lacks.sharers(num_workers):
            typed = " ".join([f"hardware.num_workers={more}", *["algorithm.shard_size=0"] * (self.shard_size > 0)])
            ways.append(lacks.kept_less(typed, more / num_workers))
        return [*ways, *super().frees_memory(problem, num_workers, lacks)]

    def computes_in(self, dtype: str) -> str:
        """That of gathered layers."""
        return self.param_dtype or dtype

    @staticmethod
    def _dtype(own: torch.dtype, *names: str | None) -> torch.dtype:
        """The first that is named, or the problem's."""
        return next((getattr(torch, name) for name in names if name), own)

    def train(self, worker: Worker, problem: Problem) -> None:
        """Take steps along 1/P sum_i g_i, each worker of its own shard."""
        with worker.clock.paused():
            model = self.sharded(check_layered(problem).build_model(worker.device, worker.seed), worker)
        learning_rate = self.learning_rate * (worker.num_workers if self.linear_scaling else 1)
        shards, footprint = Shards(model, self.optimizer, learning_rate), Footprint(worker)
        for batch in worker.batches(problem, self.batch_size):
            with footprint.forward(model.parameters()):
                loss = problem.loss(model, batch)
            loss.backward()
            shards.step(learning_rate * self.schedule.at(worker))
            footprint.tell(shards.own, shards.optimizer.state)
            shards.optimizer.zero_grad()
            part = shards.indices if worker.sees_values else None
            worker.observe(shards.flat, samples=len(batch), part=part)

    def sharded(self, model: nn.Sequential, worker: Worker) -> nn.Module:
        """The model, layer by layer; all workers have built the same one."""
        own = next(model.parameters()).dtype
        chosen = {"param_dtype": self.param_dtype, "reduce_dtype": self.reduce_dtype}
        policy = MixedPrecisionPolicy(**{name: getattr(torch, dtype) for name, dtype in chosen.items() if dtype})
        split = partial(fully_shard, mesh=self._mesh(worker), reshard_after_forward=self.reshard_after_forward)
        layers: list[nn.Module] = [*units(model)]
        if self.checkpointing:
            layers = [checkpoint_wrapper(layer) for layer in layers]
        for layer in layers:
            split(layer, mp_policy=policy).set_force_sum_reduction_for_comms(True)  # gloo has no averages
        if self.prefetch:
            self._prefetch(layers)
        whole = nn.Sequential(*layers)  # has no parameters but theirs
        split(whole, mp_policy=replace(policy, output_dtype=own))
        return whole

    def _prefetch(self, layers: Sequence[Any]) -> None:
        """Let each layer ask for those that come next, in both directions, without waiting for them."""
        for place, layer in enumerate(layers):
            layer.set_modules_to_forward_prefetch(layers[place + 1 : place + 1 + self.prefetch])
            layer.set_modules_to_backward_prefetch(layers[max(place - self.prefetch, 0) : place][::-1])
            layer._set_unshard_async_op(True)

    def _mesh(self, worker: Worker) -> DeviceMesh:
        size = self.shards(worker.num_workers)
        replicas = worker.num_workers // size
        with unset_fake_temporarily():  # it reads the ranks that it is made of, also where the model has no values
            if replicas == 1:
                return init_device_mesh(worker.device.type, (size,))
            return init_device_mesh(worker.device.type, (replicas, size), mesh_dim_names=("replicate", "shard"))
