"""The shared models of a run: their values, the state of their cache lines, and the chunks of samples under way.

Chunks of all ranks advance together, in virtual time, up to the next event of the rest of the simulation.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from hardware.simulated import memory_loop
from hardware.simulated.activity import Signal
from hardware.simulated.compute import KernelCost
from hardware.simulated.engine import Engine
from hardware.simulated.memory import SharedMemory
from hardware.simulated.memory_loop import Costs, Rows
from hardware.simulated.pace import Pace
from harness.errors import UserError
from harness.kernels import Kernel
from harness.sparse_kernel import SparseLinearKernel


@dataclass(frozen=True)
class _Model:
    index: int
    first_line: int
    first_coordinate: int
    size: int


class SharedModels:
    """Tensors seen by all ranks, and the kernels that work on them.

    Args:
        memory: what cache lines cost.
        kernel_cost: what a kernel costs when every line is at hand.
        paces: of the ranks, <= 64; a chunk of samples keeps the pace it begins with.
    """

    def __init__(
        self, engine: Engine, memory: SharedMemory, kernel_cost: KernelCost | None, paces: Sequence[Pace]
    ) -> None:
        self._engine, self._memory, self._kernel_cost, self._paces = engine, memory, kernel_cost, paces
        num_ranks = len(paces)
        self._workers = np.zeros(num_ranks, memory_loop.WORKER)
        self._workers["next_s"] = np.inf
        self._workers["remote"] = [memory.remote_ranks(rank, num_ranks) for rank in range(num_ranks)]
        ranks, sockets = range(num_ranks), range(memory.sockets)
        self._fetch_s = np.array(
            [
                [*(memory.fetch_s(rank, owner) for owner in ranks), *(memory.load_s(rank, home) for home in sockets)]
                for rank in ranks
            ]
        )  # by reader and owner, or the home of a line that nobody owns: shape (ranks, ranks + sockets)
        self._samples = np.zeros((num_ranks, 0), np.int32)
        self._lines = np.zeros(0, memory_loop.LINE)
        self._written = np.zeros(0, np.int64)
        self._versions = np.zeros(0, np.int64)
        self._bins = np.zeros(memory_loop.STALENESS_BINS, np.int64)
        self._tally = np.zeros(1, memory_loop.TALLY)
        self._models: dict[int, _Model] = {}
        self._kernel: SparseLinearKernel | None = None
        self._rows: Rows
        self._costs: Costs
        self._ends = [Signal() for _ in range(num_ranks)]
        self._alarm = 0

    def add(self, tensor: torch.Tensor, home: int) -> None:
        """Make a tensor, whose memory is on socket `home`, known as shared; the caller keeps it alive."""
        lines_needed = -(-tensor.nbytes // self._memory.line_bytes)
        self._models[tensor.data_ptr()] = _Model(
            len(self._versions), len(self._lines), len(self._written), tensor.numel()
        )
        fresh = np.zeros(lines_needed, memory_loop.LINE)
        fresh["owner"] = len(self._workers) + home
        self._lines = np.concatenate([self._lines, fresh])
        self._written = np.concatenate([self._written, np.zeros(tensor.numel(), np.int64)])
        self._versions = np.concatenate([self._versions, np.zeros(1, np.int64)])

    def holds(self, tensor: torch.Tensor) -> bool:
        """Whether `tensor` is one of these models."""
        model = self._models.get(tensor.data_ptr())
        return model is not None and model.size == tensor.numel()

    def shares_storage(self, tensor: torch.Tensor) -> bool:
        """Whether `tensor` is one of these models or a view into one."""
        return tensor.untyped_storage().data_ptr() in self._models

    def fetch_s(self, rank: int, tensors: Sequence[torch.Tensor]) -> float:
        """Make `rank` a sharer of every line under `tensors`, views of these models; returns the stall in seconds."""
        me, prices = np.uint64(1 << rank), []
        for tensor in tensors:
            lines = self._lines_under(tensor)
            lacks = (lines["sharers"] & me) == 0
            prices.append(self._fetch_s[rank, lines["owner"].astype(np.intp)] * lacks)
            lines["sharers"] |= me
        return self._stall_s(prices)

    def own_s(self, rank: int, tensors: Sequence[torch.Tensor]) -> float:
        """Make `rank` the only holder of every line under `tensors`; returns the stall in seconds."""
        me, remote, memory, prices = np.uint64(1 << rank), self._workers["remote"][rank], self._memory, []
        for tensor in tensors:
            lines = self._lines_under(tensor)
            others = lines["sharers"] & ~me
            price = np.where(others & remote, memory.cross_socket_s, memory.same_socket_s)
            prices.append(price * (others != 0))
            lines["sharers"], lines["owner"] = me, rank
        return self._stall_s(prices)

    def run(self, rank: int, kernel: Kernel, model: torch.Tensor, samples: torch.Tensor, learning_rate: float) -> None:
        """Run a chunk of samples on a shared model, as the current activity, and spend its time."""
        engine = self._engine
        engine.sync()
        if len(samples) == 0:
            return
        self._adopt(kernel)
        self._enter(rank, model, samples, learning_rate)
        self._ends[rank] = Signal()
        self._schedule()
        engine.wait(self._ends[rank], "the end of its chunk of samples")

    def metrics(self) -> dict[str, object]:
        """Staleness and conflicts of all updates by kernels; empty if there were none."""
        tally = self._tally[0]
        updates = int(tally["updates"])
        if updates == 0:
            return {}
        counts = np.trim_zeros(self._bins, "b")
        return {
            "async/staleness_mean": int(tally["staleness"]) / updates,
            "async/staleness_p95": int(np.searchsorted(np.cumsum(counts), 0.95 * updates)),
            "async/staleness_max": int(tally["stalest"]),
            "async/staleness_hist": counts.tolist(),
            "async/conflict_frac": int(tally["conflicts"]) / updates,
        }

    def _lines_under(self, tensor: torch.Tensor) -> np.ndarray:
        """The lines a view covers, from its first element to its last: more than it touches if it has gaps."""
        base = self._models[tensor.untyped_storage().data_ptr()].first_line
        if tensor.numel() == 0:
            return self._lines[:0]
        reach = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        first_byte = tensor.storage_offset() * tensor.itemsize
        last_byte = first_byte + (reach + 1) * tensor.itemsize - 1
        line_bytes = self._memory.line_bytes
        return self._lines[base + first_byte // line_bytes : base + last_byte // line_bytes + 1]

    def _stall_s(self, prices: Sequence[np.ndarray]) -> float:
        """Misses of one operator overlap, like those of one sample."""
        dearest = max(float(price.max(initial=0.0)) for price in prices)
        return max(dearest, sum(float(price.sum()) for price in prices) / self._memory.outstanding_misses)

    def _adopt(self, kernel: Kernel) -> None:
        if kernel is self._kernel:
            return
        if not isinstance(kernel, SparseLinearKernel) or self._kernel is not None:
            raise UserError(
                "worker.run must be given one and the same SparseLinearKernel where memory is shared and simulated, "
                f"got {kernel!r}: use one kernel, or a hardware without hardware.memory"
            )
        rows, cost = kernel.rows, self._kernel_cost
        assert cost is not None  # checked by who calls
        self._kernel = kernel
        self._rows = Rows(
            rows.indptr.numpy(), rows.indices.numpy(), rows.values.numpy(), kernel.labels.numpy(), kernel.loss_code
        )
        memory = self._memory
        coordinates_per_line = memory.line_bytes // rows.values.itemsize
        self._costs = Costs(
            sample_s=cost.sample_s,
            nonzero_s=cost.nonzero_s,
            fetch_s=self._fetch_s,
            same_socket_s=float(memory.same_socket_s),
            cross_socket_s=float(memory.cross_socket_s),
            outstanding_misses=float(memory.outstanding_misses),
            line_shift=np.uint64(coordinates_per_line.bit_length() - 1),
        )

    def _enter(self, rank: int, model: torch.Tensor, samples: torch.Tensor, learning_rate: float) -> None:
        if len(samples) > self._samples.shape[1]:
            wider = np.zeros((len(self._workers), len(samples)), np.int32)
            wider[:, : self._samples.shape[1]] = self._samples
            self._samples = wider
        self._samples[rank, : len(samples)] = samples.numpy()
        place, worker = self._models[model.data_ptr()], self._workers[rank]
        worker["next_s"], worker["learning_rate"] = self._engine.env.now, learning_rate
        worker["pace"] = self._paces[rank].stretch(1.0, self._engine.env.now)
        worker["weights"], worker["num_weights"] = model.data_ptr(), model.numel()
        worker["model"] = place.index
        worker["first_line"], worker["first_coordinate"] = place.first_line, place.first_coordinate
        worker["position"], worker["count"], worker["writes"] = 0, len(samples), 0

    def _schedule(self) -> None:
        """Wake at the earliest event of any worker; an alarm set before for a later one is void."""
        rank = int(self._workers["next_s"].argmin())
        next_s = float(self._workers["next_s"][rank])
        if next_s < np.inf:
            self._alarm += 1
            self._engine.at(next_s, rank, partial(self._advance, self._alarm))

    def _advance(self, alarm: int) -> None:
        if alarm != self._alarm:
            return
        env, updates_before = self._engine.env, int(self._tally[0]["updates"])
        rank = memory_loop.advance(
            env.now,
            self._engine.next_s(),
            self._workers,
            self._samples,
            self._lines,
            self._written,
            self._versions,
            self._bins,
            self._tally,
            self._rows,
            self._costs,
        )
        self._engine.events += 2 * (int(self._tally[0]["updates"]) - updates_before)
        if rank != memory_loop.NOBODY:
            self._engine.at(
                float(self._workers["finish_s"][rank]), rank, partial(self._engine.happen, self._ends[rank])
            )
        self._schedule()
