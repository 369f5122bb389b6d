"""The shared models of a run: their values, the state of their cache lines, and the chunks of samples under way.

Chunks of all ranks advance together, in virtual time, up to the next event of the rest of the simulation.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from hardware.simulated import memory_ledger, memory_locks, memory_loop, memory_records
from hardware.simulated.activity import Died, Signal
from hardware.simulated.cache_lines import CacheLines
from hardware.simulated.compute import KernelCost
from hardware.simulated.core_cache import row_bytes, row_lines
from hardware.simulated.engine import Engine
from hardware.simulated.memory import SharedMemory
from hardware.simulated.memory_ledger import Ledger, Loaded
from hardware.simulated.memory_locks import Locks
from hardware.simulated.memory_records import Costs
from hardware.simulated.pace import Pace
from harness.errors import UserError
from harness.kernels.access import COORDINATES, Access
from harness.kernels.base import Kernel, Model, SplitModel, native_model


@dataclass(frozen=True)
class _Model:
    index: int
    first_line: int
    first_coordinate: int
    size: int


@dataclass(frozen=True)
class _Programme:
    """What all ranks do with shared models at a time."""

    kernel: Kernel
    access: Access
    like: torch.dtype | None  # of the models, None where their hottest coordinates are replicated
    native: tuple  # what compiled code sees of all that, in the order of `memory_loop.advance`


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
        self._workers = np.zeros(num_ranks, memory_records.WORKER)
        self._workers["next_s"] = self._workers["since_s"] = np.inf
        self._lines = CacheLines(memory, num_ranks)
        self._remote_s_per_byte = [memory.remote_s_per_byte(rank, None) for rank in range(num_ranks)]  # of rows
        self._sequential = [False] * num_ranks  # whether each visits rows as they are stored
        self._samples = np.zeros((num_ranks, 0), np.int32)
        self._ledger = Ledger(
            np.zeros(0, memory_ledger.COORDINATE),
            np.zeros(0, np.int64),
            np.zeros(memory_ledger.STALENESS_BINS, np.int64),
            np.zeros(1, memory_ledger.TALLY),
        )
        self._models: dict[int, _Model] = {}
        self._programme: _Programme | None = None
        self._ends = [Signal() for _ in range(num_ranks)]
        self._died_with_lock: list[int] = []
        self._alarm = 0

    def add(self, tensor: torch.Tensor, node: int | None) -> None:
        """Make a tensor known as shared; the caller keeps it alive.

        Args:
            node: in whose memory it lies; None leaves that to the memory's policy.
        """
        ledger, first_line = self._ledger, self._lines.add(tensor.nbytes, node)
        self._models[tensor.data_ptr()] = _Model(len(ledger.versions), first_line, len(ledger.written), tensor.numel())
        self._ledger = ledger._replace(
            written=np.concatenate([ledger.written, np.zeros(tensor.numel(), memory_ledger.COORDINATE)]),
            versions=np.concatenate([ledger.versions, np.zeros(1, np.int64)]),
        )

    def adopt(self, tensor: torch.Tensor, node: int) -> None:
        """Make a tensor known that is none of these models, nor a part of one, but is locked as they are."""
        if not self.shares_storage(tensor):
            self.add(tensor, node)

    def holds(self, tensor: torch.Tensor) -> bool:
        """Whether `tensor` is one of these models."""
        model = self._models.get(tensor.data_ptr())
        return model is not None and model.size == tensor.numel()

    def shares_storage(self, tensor: torch.Tensor) -> bool:
        """Whether `tensor` is one of these models or a view into one."""
        return tensor.untyped_storage().data_ptr() in self._models

    def read_s(self, rank: int, tensors: Sequence[torch.Tensor]) -> float:
        """Let `rank` hold every line under `tensors`, views of these models; returns the stall in seconds."""
        return self._lines.read_s(rank, [self._lines_under(tensor) for tensor in tensors], self._engine.env.now)

    def write_s(self, rank: int, tensors: Sequence[torch.Tensor]) -> float:
        """Let `rank` alone hold every line under `tensors`; returns the stall in seconds."""
        return self._lines.write_s(rank, [self._lines_under(tensor) for tensor in tensors], self._engine.env.now)

    def forgotten_s(self, rank: int, kernel: Kernel, model: torch.Tensor, samples: torch.Tensor) -> float:
        """Seconds by which a kernel takes longer on a model of the rank's own that its cache cannot hold."""
        return self._lines.forgotten_s(rank, model, kernel, samples)

    def run(
        self,
        rank: int,
        kernel: Kernel,
        model: Model,
        samples: torch.Tensor,
        learning_rate: float,
        access: Access,
        salt: int,
    ) -> None:
        """Run a chunk of samples on a shared model, as the current activity, and spend its time."""
        engine = self._engine
        engine.sync()
        if len(samples) == 0:
            return
        self._adopt(kernel, model, access)
        self._enter(rank, model, samples, learning_rate, salt)
        self._ends[rank] = Signal()
        self._schedule()
        try:
            engine.wait(self._ends[rank], self._waits_for)
        except Died:
            self._bury(rank)
            raise

    def waited_s(self, rank: int) -> float:
        """Virtual seconds for which a rank waited for locks in its last chunk."""
        return float(self._workers[rank]["waited_s"])

    def lay_rows(self, rank: int, node: int | None, sequential: bool) -> None:
        """Note in whose memory lie the rows that kernels of `rank` visit, and whether in the order of visits."""
        self._remote_s_per_byte[rank] = self._memory.remote_s_per_byte(rank, node)
        self._sequential[rank] = sequential

    def remote_row_s(self, rank: int, kernel: Kernel) -> tuple[float, float]:
        """By how much longer a row and each of its nonzeros take to come because of where they lie."""
        per_byte_s, (sample_bytes, nonzero_bytes) = self._remote_s_per_byte[rank], row_bytes(kernel)
        return per_byte_s * sample_bytes, per_byte_s * nonzero_bytes

    def row_s(self, rank: int, kernel: Kernel) -> tuple[float, float]:
        """By how much longer a kernel takes for a sample and each of its nonzeros than for random rows at hand."""
        assert self._kernel_cost is not None  # checked by who calls
        row_s, nonzero_s = self.remote_row_s(rank, kernel)
        factor = self._memory.sequential_rows if self._sequential[rank] else 1.0
        return row_s, nonzero_s + (factor - 1.0) * self._kernel_cost.of(kernel).nonzero_s

    def metrics(self) -> dict[str, object]:
        """Staleness, conflicts and losses of all updates by kernels; empty if there were none."""
        tally = self._ledger.tally[0]
        updates = int(tally["updates"])
        if updates == 0:
            return {}
        counts = np.trim_zeros(self._ledger.bins, "b")
        return {
            "async/staleness_mean": int(tally["staleness"]) / updates,
            "async/staleness_p95": int(np.searchsorted(np.cumsum(counts), 0.95 * updates)),
            "async/staleness_max": int(tally["stalest"]),
            "async/staleness_hist": counts.tolist(),
            "async/conflict_frac": int(tally["conflicts"]) / updates,
            "async/lost_frac": int(tally["lost"]) / max(1, int(tally["additions"])),
        }

    def _lines_under(self, tensor: torch.Tensor) -> tuple[int, int]:
        """The lines a view covers, from its first element to its last: more than it touches if it has gaps."""
        base = self._models[tensor.untyped_storage().data_ptr()].first_line
        if tensor.numel() == 0:
            return base, base
        reach = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        first_byte = tensor.storage_offset() * tensor.itemsize
        last_byte = first_byte + (reach + 1) * tensor.itemsize - 1
        line_bytes = self._memory.line_bytes
        return base + first_byte // line_bytes, base + last_byte // line_bytes + 1

    def _adopt(self, kernel: Kernel, model: Model, access: Access) -> None:
        """Make ready for a kernel; all that run at a time must run the same."""
        like = None if isinstance(model, SplitModel) else model.dtype
        known = self._programme
        if known is not None and known.kernel.agrees(kernel) and known.access.agrees(access) and known.like == like:
            return
        if known is not None and np.isfinite(self._workers["next_s"]).any():
            raise UserError(
                "worker.run must be given one kernel and one way of locking by all workers at a time where memory is "
                f"shared and simulated, got {kernel!r} while {known.kernel!r} runs: meet in between"
            )
        self._programme = _Programme(kernel, access, like, ())
        self._programme = replace(self._programme, native=self._compose(self._programme, model))

    def _compose(self, programme: _Programme, model: Model) -> tuple:
        kernel, access, memory = programme.kernel, programme.access, self._memory
        assert self._kernel_cost is not None  # checked by who calls
        cost = self._kernel_cost.of(kernel)
        like = native_model(model)
        slots = model.slots.numpy() if isinstance(model, SplitModel) else np.empty(0, np.int32)
        number = model.cold if isinstance(model, SplitModel) else model
        costs = Costs(
            sample_s=cost.sample_s,
            nonzero_s=memory.sequential_rows * cost.nonzero_s,
            delay_s=float(access.delay_s),
            atomic_s=float(memory.atomic_s),
            wake_s=float(memory.wake_s),
            sleep_s=float(memory.sleep_s),
            doze_s=float(memory.doze_s),
            futex_s=float(memory.futex_s),
            lock_s=float(memory.lock_s),
            spin_s=float(memory.spin_s),
            yield_s=float(memory.yield_s),
            line_shift=np.uint64((memory.line_bytes // number.itemsize).bit_length() - 1),
            block=np.uint64(kernel.block),
            row_lines=row_lines(kernel, memory.line_bytes),
        )
        longest, num_ranks = int(np.diff(kernel.indptr.numpy()).max()), len(self._workers)
        loaded = Loaded(
            np.zeros((num_ranks, longest * kernel.block), number[:0].numpy().dtype),
            np.zeros((num_ranks, longest), np.int64),
            np.zeros((num_ranks, longest + 1), np.int32),
        )
        return kernel.native(), like, slots, float(access.quantum), loaded, self._locks(access), costs

    def _locks(self, access: Access) -> Locks:
        words, first_line, in_line = access.words, 0, self._memory.line_bytes // access.words.itemsize
        if words.numel():
            if not self.holds(words):
                raise UserError(
                    "worker.run must be given locks that worker.shared has returned, where memory is simulated"
                )
            first_line = self._models[words.data_ptr()].first_line + COORDINATES // in_line
        state = np.zeros(1, memory_locks.LOCK)
        state["last"] = memory_records.NOBODY
        shift = in_line.bit_length() - 1
        return Locks(access.code, state, np.zeros(len(words)), np.uint64(first_line), np.uint64(shift))

    def _enter(self, rank: int, model: Model, samples: torch.Tensor, learning_rate: float, salt: int) -> None:
        if len(samples) > self._samples.shape[1]:
            wider = np.zeros((len(self._workers), len(samples)), np.int32)
            wider[:, : self._samples.shape[1]] = self._samples
            self._samples = wider
        self._samples[rank, : len(samples)] = samples.numpy()
        cold = model.cold if isinstance(model, SplitModel) else model
        place, worker = self._models[cold.data_ptr()], self._workers[rank]
        worker["next_s"], worker["learning_rate"] = self._engine.env.now, learning_rate
        worker["pace"] = self._paces[rank].factor(self._engine.env.now)
        worker["weights"], worker["num_weights"] = cold.data_ptr(), cold.numel()
        if isinstance(model, SplitModel):
            worker["hot"] = model.hot.data_ptr()
        worker["model"] = place.index
        worker["first_line"], worker["first_coordinate"] = place.first_line, place.first_coordinate
        worker["position"], worker["count"], worker["event"], worker["salt"] = 0, len(samples), 0, salt
        worker["since_s"], worker["waited_s"] = np.inf, 0.0
        assert self._programme is not None and self._kernel_cost is not None
        kernel = self._programme.kernel
        worker["row_s"], nonzero_s = self.row_s(rank, kernel)
        own_s = self._kernel_cost.of(kernel).nonzero_s
        worker["row_nonzero_s"] = nonzero_s + (1.0 - self._memory.sequential_rows) * own_s  # from at hand

    def _waits_for(self) -> str:
        locking, died = self._programme.access.locking if self._programme else "", self._died_with_lock
        return f"{locking}, which rank {died[0]} held when it died" if died else "the end of its chunk of samples"

    def _bury(self, rank: int) -> None:
        """Let the rank, which has died in mid-chunk, do no more."""
        assert self._programme is not None
        *_, locks, costs = self._programme.native
        if memory_locks.bury(self._engine.env.now, rank, self._workers, self._lines.native, locks, costs):
            self._died_with_lock.append(rank)
        self._schedule()

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
        assert self._programme is not None
        env, tally = self._engine.env, self._ledger.tally[0]
        updates_before = int(tally["updates"])
        *native, costs = self._programme.native
        cached = self._programme.kernel.is_cached
        advance: Any = memory_loop.advance if cached else memory_loop.advance_uncached
        rank = advance(
            env.now,
            self._engine.next_s(),
            self._workers,
            self._samples,
            self._lines.native,
            *native,
            self._ledger,
            costs,
        )
        self._engine.events += 3 * (int(tally["updates"]) - updates_before)
        if rank != memory_records.NOBODY:
            self._engine.at(
                float(self._workers["finish_s"][rank]), rank, partial(self._engine.happen, self._ends[rank])
            )
        self._schedule()
