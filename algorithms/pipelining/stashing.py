"""A stage whose weights change while batches are under way, and its messages (`pipedream.py`).

A batch takes a copy of the weights with it when it goes forward. What the stage before sends is received while this
one is at work on the batch before; a gradient is asked for when there is nothing else to do but to wait for it.
"""

import copy
from collections import deque
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn

from algorithms.flat import flatten_
from algorithms.pipelining.held_stages import HeldStages
from harness.batch import Samples
from harness.problems.layered import Layered
from harness.worker import Worker


@dataclass
class Message:
    """A tensor under way from or to a neighbour."""

    tensor: torch.Tensor
    work: dist.Work | None

    def wait(self) -> torch.Tensor:
        """Until it is there, or sent."""
        if self.work is not None:  # gloo would wait for another message the second time
            self.work.wait()
            self.work = None
        return self.tensor


class Stashed:
    """A stage as it was when a batch went forward.

    Args:
        gradient: of the stage, which all of its versions add to: one goes backward at a time.
    """

    def __init__(self, stage: nn.Module, gradient: torch.Tensor) -> None:
        self.stage = copy.deepcopy(stage)
        self.weights, _ = flatten_(self.stage, gradient=gradient)


@dataclass
class Passing:
    """A batch under way.

    Args:
        learning_rate: of its step.
        arrival: what the stage before sends; None at the first stage.
    """

    samples: Samples
    learning_rate: float
    arrival: Message | None
    version: int = 0  # steps that the weights had taken that it goes through
    stashed: Stashed | None = None
    outputs: torch.Tensor | None = None  # the loss, at the last stage


class StashingStage:
    """A worker's stage.

    Args:
        held: the one.
        gradient: of its weights, to be added to.

    Attributes:
        depth: batches under way once the pipeline is full.
    """

    def __init__(self, problem: Layered, held: HeldStages, gradient: torch.Tensor, worker: Worker) -> None:
        self._problem, self._held, self._worker = problem, held, worker
        self._is_first, self._is_last = worker.rank == 0, worker.rank == worker.num_workers - 1
        self.depth = worker.num_workers - worker.rank
        self._free = deque(Stashed(held.stages[worker.rank], gradient) for _ in range(self.depth))
        self._shapes: dict[int, list[torch.Tensor]] = {}  # by samples of a batch: the last one may be smaller
        self._sent: deque[Message] = deque()
        self._arrival: Message | None = None  # of the batch that was announced last

    def expect(self, samples: Samples, learning_rate: float) -> Passing:
        """Announce the next batch."""
        if len(samples) not in self._shapes:
            with self._worker.clock.paused():
                self._shapes[len(samples)] = self._held.shapes(len(samples))
        rank = self._worker.rank
        self._arrival = None if self._is_first else self._receive(len(samples), rank, rank - 1)
        return Passing(samples, learning_rate, self._arrival)

    def await_next(self) -> None:
        """Wait for what was announced, before the model is observed.

        An accelerator is then waited for, and must not itself wait for what only comes once its host goes on.
        """
        if self._arrival is not None:
            self._arrival.wait()

    def forward(self, batch: Passing, weights: torch.Tensor, steps: int) -> None:
        """Go forward through the newest weights.

        Args:
            steps: that these have taken.
        """
        stashed = batch.stashed = self._free.popleft()
        stashed.weights.copy_(weights)
        batch.version, rank = steps, self._worker.rank
        inputs = self._rows(batch)[0] if batch.arrival is None else batch.arrival.wait().requires_grad_()
        batch.outputs = stashed.stage(inputs)
        if self._is_last:
            batch.outputs = self._problem.objective(batch.outputs, self._rows(batch)[1])
        else:
            self._send(batch.outputs.detach(), rank + 1)

    def backward(self, batch: Passing) -> None:
        """Go backward through the stashed weights."""
        assert batch.outputs is not None and batch.stashed is not None
        rank = self._worker.rank
        received = None if self._is_last else self._receive(len(batch.samples), rank + 1, rank + 1).wait()
        batch.outputs.backward(received)
        if batch.arrival is not None:
            assert batch.arrival.tensor.grad is not None
            self._send(batch.arrival.tensor.grad, rank - 1)
        self._free.append(batch.stashed)

    def close(self) -> None:
        """Wait until all that was sent has come."""
        while self._sent:
            self._sent.popleft().wait()

    def _rows(self, batch: Passing) -> list[torch.Tensor]:
        return [tensor.to(self._worker.device) for tensor in self._problem.rows_of(batch.samples)]

    def _receive(self, samples: int, boundary: int, source: int) -> Message:
        """What passes in front of stage `boundary`: what it takes, or the gradient of that."""
        like = self._shapes[samples][boundary]
        tensor = torch.empty(like.shape, dtype=like.dtype, device=self._worker.device)
        return Message(tensor, dist.irecv(tensor, source))

    def _send(self, tensor: torch.Tensor, target: int) -> None:
        tensor = tensor.contiguous()
        self._sent.append(Message(tensor, dist.isend(tensor, target)))
        while (
            len(self._sent) > 2 * self._worker.num_workers
        ):  # so that no more memory is held than what is under way needs
            self._sent.popleft().wait()
