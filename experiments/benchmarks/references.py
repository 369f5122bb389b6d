"""The loops of the papers, written by hand over torch.distributed: what `algorithms` is measured against.

Plain processes with gloo, pinned to a core each; the same model, data, batches and number of steps as the harness.
"""

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parameters_to_vector, vector_to_parameters

BATCH, LEARNING_RATE, PERIOD = 32, 0.1, 8


@dataclass
class Process:
    """One process of a hand-written loop: its model and its batches.

    Args:
        workers: that train, the first ranks.
        steps: of every worker.
    """

    rank: int
    workers: int
    steps: int

    def __post_init__(self) -> None:
        pixels, digits = load_digits(return_X_y=True)
        self._x, self._y = torch.tensor(pixels / 16.0, dtype=torch.float32), torch.tensor(digits)
        count = len(self._y) * 4 // 5
        epochs = self.steps * BATCH * self.workers // count + 2
        self._order = torch.cat([torch.randperm(count) for _ in range(epochs)])
        torch.manual_seed(0)
        self.model: nn.Module = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    def backward_passes(self) -> Iterator[None]:
        """Each after the gradient of one more batch has been added to the model's."""
        for step in range(self.steps):
            start = (step * self.workers + self.rank) * BATCH
            samples = self._order[start : start + BATCH]
            cross_entropy(self.model(self._x[samples]), self._y[samples]).backward()
            yield

    def descend(self) -> None:
        """A plain step of one's own."""
        with torch.no_grad():
            for parameter in self.model.parameters():
                assert parameter.grad is not None
                parameter.sub_(parameter.grad, alpha=LEARNING_RATE)
                parameter.grad = None

    def flat(self) -> torch.Tensor:
        """A copy of the parameters."""
        return parameters_to_vector(self.model.parameters()).detach()

    def set(self, weights: torch.Tensor) -> None:
        """Overwrite the parameters."""
        with torch.no_grad():
            vector_to_parameters(weights, self.model.parameters())


def all_reduce(own: Process) -> None:
    """Torch's DistributedDataParallel."""
    own.model = DistributedDataParallel(own.model)
    for _ in own.backward_passes():
        own.descend()


def local_sgd(own: Process) -> None:
    """Models averaged every `PERIOD` steps."""
    for step, _ in enumerate(own.backward_passes(), start=1):
        own.descend()
        if step % PERIOD == 0:
            weights = own.flat()
            dist.all_reduce(weights)
            own.set(weights / own.workers)


def parameter_server(own: Process) -> None:
    """Gradients to the last rank, which answers each with weights."""
    weights = own.flat()
    if own.rank == own.workers:
        gradient = torch.empty_like(weights)
        for _ in range(own.steps * own.workers):
            source = dist.recv(gradient)
            weights.sub_(gradient, alpha=LEARNING_RATE)
            dist.send(weights, source)
        return
    for _ in own.backward_passes():
        pull = dist.irecv(weights, own.workers)  # first, as the harness does: else gloo takes twice as long
        assert pull is not None  # only a rank outside the group gets none
        dist.send(torch.cat([p.grad.view(-1) for p in own.model.parameters()]), own.workers)  # type: ignore[union-attr]
        pull.wait()
        own.set(weights)
        own.model.zero_grad()


def gossip(own: Process) -> None:
    """Models averaged with those of both neighbours while the gradient is computed, then a step."""
    peers = sorted({(own.rank - 1) % own.workers, (own.rank + 1) % own.workers})
    weights = own.flat()
    boxes = [torch.empty_like(weights) for _ in peers]
    passes = own.backward_passes()
    for _ in range(own.steps):
        works = [dist.isend(weights, peer) for peer in peers]
        works += [dist.irecv(box, peer) for box, peer in zip(boxes, peers, strict=True)]
        next(passes)
        for work in works:
            assert work is not None  # only a rank outside the group gets none
            work.wait()
        own.set(torch.stack([weights, *boxes]).mean(dim=0))
        own.descend()
        weights = own.flat()


LOOPS: dict[str, Callable[[Process], None]] = {
    loop.__name__: loop for loop in (all_reduce, local_sgd, parameter_server, gossip)
}


def seconds(name: str, workers: int, servers: int, steps: int) -> float:
    """Of so many steps of every worker, set-up aside."""
    context = mp.get_context("spawn")
    found = context.SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(
            _run, (name, workers, workers + servers, steps, str(Path(folder, "store")), found), nprocs=workers + servers
        )
    return float(found.get())


def _run(rank: int, name: str, workers: int, ranks: int, steps: int, store: str, found: Any) -> None:
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[rank % len(cores)]})
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)
    own = Process(rank, workers, steps)
    dist.barrier()
    begin_s = time.perf_counter()
    LOOPS[name](own)
    if rank == 0:
        found.put(time.perf_counter() - begin_s)
    dist.barrier()  # DistributedDataParallel aborts a process whose peer is gone
    del own
    dist.destroy_process_group()
