"""A simulated rank, as its worker sees it."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
import torch.distributed as dist

from hardware.simulated import torch_world
from hardware.simulated.activity import Signal
from hardware.simulated.clock import VirtualClock
from hardware.simulated.compute import Compute
from hardware.simulated.device import Device
from hardware.simulated.engine import Engine
from hardware.simulated.fabric import Fabric
from hardware.simulated.landing import Landing
from hardware.simulated.memory import SharedMemory
from hardware.simulated.prediction import Steps
from hardware.simulated.process_group import BACKEND, SimulatedGroup
from hardware.simulated.shared_models import SharedModels
from hardware.simulated.store import SimulatedStore
from hardware.simulated.turns import Locks, Meeting
from hardware.simulated.values import described
from harness.data import Share
from harness.errors import UserError
from harness.kernels.access import Access
from harness.kernels.base import Kernel, Model, SplitModel
from harness.kernels.merge import RELATIVE_COST
from harness.place import COUNTERS, Observation, Place
from harness.rows import Rows


@dataclass(frozen=True)
class SharedTensor:
    """A tensor all ranks see.

    Args:
        node: the socket in whose memory it lies; None if its pages are interleaved.
        ready: happens when rank 0 has filled it.
    """

    tensor: torch.Tensor
    node: int | None
    ready: Signal = field(default_factory=Signal)

    def __str__(self) -> str:
        return f"{described(self.tensor)} on {'all nodes' if self.node is None else f'node {self.node}'}"


@dataclass
class Machine:
    """The state of one run, seen by all its ranks."""

    engine: Engine
    fabric: Fabric
    compute: Compute
    num_ranks: int
    memory: SharedMemory | None
    models: SharedModels | None
    counters: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTERS, 0))
    tensors: dict[str, SharedTensor] = field(default_factory=dict)
    rows: dict[str, Kernel] = field(default_factory=dict)  # copies of rows, by name
    fake: bool = False  # whether tensors have no values
    placement: dict[str, dict[str, object]] = field(default_factory=dict)  # of rows, for the manifest
    observations: list[Observation] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.store = SimulatedStore(self.engine)
        self.meeting = Meeting(self.engine)
        self.locks = Locks(self.engine, self.transfer_s)

    def placed(self, node: int | None) -> dict[str, object]:
        """What the manifest says of what lies in the memory of a node; None leaves that to the memory's policy."""
        home = self.memory.home if node is None and self.memory is not None else node
        return {"policy": "interleave"} if home is None else {"node": home}

    def transfer_s(self, rank: int, last: int) -> float:
        """Seconds until `rank` has a cache line that `last` wrote; 0 where no memory is modelled."""
        return 0.0 if self.memory is None else self.memory.fetch_s(rank, last)


class SimulatedPlace(Place):
    """One rank of a simulated machine."""

    def __init__(self, machine: Machine, rank: int, device: Device) -> None:
        self.rank, self.num_workers = rank, machine.num_ranks
        if machine.memory is not None:
            self.node, self.num_nodes = machine.memory.socket(rank), machine.memory.num_sockets(machine.num_ranks)
            self.num_memories = machine.memory.sockets
        self.device = torch.device("cpu")
        self.clock = VirtualClock(machine.engine)
        self._machine = machine
        self.finish_s = 0.0  # when `live`'s body ended, well or not
        self._world = torch_world.RankWorld(machine.fabric, device)
        self.timelines, self.steps = device, Steps(device)
        self._helpers: list[Signal] = []

    def live(self, body: Callable[[], None], num_peers: int) -> None:
        """Run `body` as this rank's main activity.

        Args:
            num_peers: ranks, the first ones, that have a default process group, which lasts as long as their helpers.
        """
        engine, store = self._machine.engine, self._machine.store
        group: AbstractContextManager[None] = nullcontext()
        if self.rank < num_peers:
            group = torch_world.default_group(BACKEND, self.rank, num_peers, store)
        with torch_world.entered(self._world), group:
            activity = engine.current
            try:
                with self._computing():
                    body()
                    self.timelines.futures.settle()
                self.timelines.synchronize()
                activity.now()
            finally:
                self.finish_s = min(activity.local_s, activity.dies_s)
            for helper in self._helpers:
                engine.wait(helper, "the end of its background activity")

    @property
    def nodes(self) -> tuple[int, ...]:
        """The node of every rank."""
        memory, ranks = self._machine.memory, range(self.num_workers)
        return super().nodes if memory is None else tuple(memory.socket(rank) for rank in ranks)

    def add(self, counter: str, amount: int) -> int:
        """Add to a counter, at this rank's virtual time."""
        self._machine.engine.sync()
        before = self._machine.counters.get(counter, 0)
        self._machine.counters[counter] = before + amount
        return before

    def advance(self, samples: int) -> None:
        """At no time: nobody within the simulation asks."""
        self._machine.counters["advanced"] += samples

    def count(self, samples: int, updates: int, alone: bool) -> tuple[int, int]:
        """Add to both counters, at this rank's virtual time."""
        return self.add("samples", samples), self.add("updates", updates)  # no time passes between the two

    def shared(self, name: str, tensor: torch.Tensor, node: int | None) -> torch.Tensor:
        """One tensor seen by all ranks; handing it out costs no virtual time.

        It lies on the node, or where hardware.memory.memory_policy says.

        Raises:
            UserError: on a machine without shared memory, or if ranks differ in shape, dtype or node.
        """
        machine = self._machine
        if machine.models is None:
            raise UserError(
                f"worker.shared({name!r}) needs workers that share memory, and hardware.memory is null: choose a "
                "hardware with shared memory, such as sim_numa2"
            )
        machine.engine.sync()
        assert machine.memory is not None
        own = SharedTensor(tensor, machine.memory.home if node is None else node)
        if name not in machine.tensors:
            with machine.engine.uncharged():
                machine.tensors[name] = SharedTensor(torch.empty_like(tensor.detach()), own.node)
        shared = machine.tensors[name]
        if str(shared) != str(own):
            raise UserError(
                f"worker.shared({name!r}) must be given one dtype, shape and node by all workers, got {shared} "
                f"and {own} from rank {self.rank}"
            )
        if self.rank == 0:
            with machine.engine.uncharged():
                shared.tensor.copy_(tensor.detach())
            machine.models.add(shared.tensor, shared.node)
            machine.engine.happen(shared.ready)
        machine.engine.wait(shared.ready, f"rank 0 to share {name!r}")
        return shared.tensor

    def rows(
        self,
        name: str,
        kernel: Kernel,
        shares: Mapping[int | None, Share],
        share: Share,
        fresh: bool = False,
        sequential: bool = False,
    ) -> Rows:
        """The kernel itself, or one copy of all its rows for all nodes: where rows lie is but a cost.

        What names no node lies where hardware.memory.memory_policy says.
        """
        machine, data = self._machine, kernel.row_data
        if data is None or machine.models is None:
            return Rows(kernel, share.first)
        machine.models.lay_rows(self.rank, share.node, sequential)
        for node in shares:
            title = name if node is None else f"{name} of node {node}"
            machine.placement[title] = machine.placed(node)
        if fresh:
            if name not in machine.rows:
                machine.rows[name] = kernel.over(data.apply(lambda _, tensor: tensor.clone()))
            kernel = machine.rows[name]
        return Rows(kernel, share.first)

    def gather(self, source: Rows, target: Rows, rows: torch.Tensor, begin: int, end: int) -> None:
        """Copy rows, and spend the time of reading and writing their bytes."""
        machine, data = self._machine, source.kernel.row_data
        assert data is not None and machine.models is not None and machine.memory is not None
        with machine.engine.uncharged():
            super().gather(source, target, rows, begin, end)
            nonzeros = source.kernel.nonzeros(rows[begin:end])
        extra_s, nonzero_extra_s = machine.models.remote_row_s(self.rank, source.kernel)
        local_s = 1 / machine.memory.local_bytes_per_s
        row_s, nonzero_s = extra_s + data.sample_bytes * local_s, nonzero_extra_s + data.nonzero_bytes * local_s
        self.timelines.charge(0.0, 2 * ((end - begin) * row_s + nonzeros * nonzero_s))

    def run(
        self,
        kernel: Kernel,
        model: Model,
        samples: torch.Tensor,
        learning_rate: float,
        access: Access,
        salt: int,
    ) -> None:
        """Run a native kernel: update by update on a shared model, at once on a private one.

        Raises:
            UserError: if the hardware does not say what a kernel costs, or the model is a part of a shared one.
        """
        whole = model.cold if isinstance(model, SplitModel) else model
        machine, cost = self._machine, self._machine.compute.kernel
        if cost is None:
            raise UserError(
                "hardware.compute must know what a native kernel costs to run one: set algorithm.batch_size above 1, "
                "or choose a hardware/compute with nonzero_s"
            )
        if machine.models is not None and not machine.placement:
            machine.placement[kernel.rows_name] = machine.placed(None)  # visited where they were loaded
        machine.engine.current.owe(0.0)  # a kernel's samples cost what the kernel costs
        if machine.models is not None and access.locking != "none":
            machine.models.adopt(whole, self.node)  # one's own too: locks are waited for, and cost, whatever they guard
        if machine.models is not None and machine.models.holds(whole):
            begin_s = self.clock.now()
            machine.models.run(self.rank, kernel, model, samples, learning_rate, access, salt)
            waited_s = machine.models.waited_s(self.rank)  # all over the chunk; the account has it at the end
            self.timelines.account.computing.add(begin_s, self.clock.now() - waited_s)
            return
        if machine.models is not None and machine.models.shares_storage(whole):
            raise UserError(
                "worker.run must be given a whole shared model or a private one, got a view of "
                f"{described(whole)} into a shared one: share each part under a name of its own"
            )
        kernel(model, samples, learning_rate, replace(access, delay_s=0.0), salt)
        with machine.engine.uncharged():
            nonzeros = kernel.nonzeros(samples)
        row_s = row_nonzero_s = stall_s = 0.0
        if machine.models is not None:
            row_s, row_nonzero_s = machine.models.row_s(self.rank, kernel)
            stall_s = machine.models.forgotten_s(self.rank, kernel, whole, samples)
        own = cost.of(kernel)
        each_s, nonzero_s = own.sample_s + access.delay_s + row_s, own.nonzero_s + row_nonzero_s
        self.timelines.charge(0.0, len(samples) * each_s + nonzeros * nonzero_s + stall_s)

    def merge(self, model: torch.Tensor, known: torch.Tensor, common: torch.Tensor, share: float) -> None:
        """Merge, and spend the time of the pass, and of the lines that come from other cores and go from them.

        What fits into the core's cache costs what a kernel's parameters at hand do; what does not, or where no kernel's
        cost is known, is read and written at the bandwidth of the socket's memory.
        """
        engine, models = self._machine.engine, self._machine.models
        assert models is not None
        shared = [each for each in (model, known, common) if models.shares_storage(each)]
        engine.catch_up()
        self.timelines.charge(0.0, models.read_s(self.rank, shared))
        engine.sync()
        with engine.uncharged():
            super().merge(model, known, common, share)
        self.timelines.charge(0.0, models.write_s(self.rank, shared) + self._pass_s(model))

    def _pass_s(self, model: torch.Tensor) -> float:
        """Seconds in which a core goes through three tensors like `model`, reading and writing each."""
        memory, cost = self._machine.memory, self._machine.compute.kernel
        assert memory is not None
        if cost is None or 3 * model.nbytes > memory.cache_bytes:
            return 6 * model.nbytes / memory.local_bytes_per_s
        return model.numel() * RELATIVE_COST * cost.nonzero_s

    def background(self, activity: Callable[[], None]) -> None:
        """Start another activity of this rank, at this rank's virtual time."""
        engine = self._machine.engine
        ended = Signal()
        self._helpers.append(ended)

        def body() -> None:
            with torch_world.entered(self._world), self._computing():
                activity()
            engine.sync()
            engine.happen(ended)

        engine.spawn(self.rank, f"{engine.named(self.rank)} (background)", body, self.clock.now())

    def all_ranks(self) -> dist.ProcessGroup:
        """All ranks."""
        ranks = tuple(range(self.num_workers))
        channel = self._machine.fabric.channel(("streams", ranks), self.rank)
        return SimulatedGroup(channel, self.timelines, self.rank, dist.default_pg_timeout.total_seconds())

    def meet(self, num_workers: int) -> None:
        """Wait until all workers have come."""
        self._machine.meeting.meet(self.rank, len(self._machine.fabric.simulated(np.arange(num_workers))))

    def lock(self, name: str) -> AbstractContextManager[None]:
        """A block of one activity at a time; a lock that another rank held last is fetched from its core."""
        return self._machine.locks.held(name, self.rank, partial(self.timelines.charge, 0.0))

    def spend(self, seconds: float, idle: bool) -> None:
        """Let virtual time pass, once all streams have ended."""
        self.settle()
        activity = self._machine.engine.current
        begin_s = activity.now()
        activity.charge(seconds)
        if not idle:
            self.timelines.account.computing.add(begin_s, activity.local_s)

    def dealt(self, num_samples: int) -> None:
        """Owe the cost of a batch; where memory is shared, first let others' writes land.

        Of tensors without values it is the beginning of a step; all ranks begin the first together.
        """
        engine = self._machine.engine
        if self._machine.fake:
            if not self.steps.begins:
                self._begin_together()
            self.steps.begin()
        if self._machine.models is not None:
            engine.sync()
        engine.current.now()
        engine.current.owe(self._machine.compute.batch_s(num_samples))

    def _begin_together(self) -> None:
        self.settle()
        self._machine.fabric.links.begin_together()
        self.meet(self.num_workers)

    def settle(self) -> None:
        """Wait for all streams."""
        self.timelines.synchronize()

    def report(self, observation: Observation) -> None:
        """Keep an observation."""
        self._machine.observations.append(observation)

    @contextmanager
    def _computing(self) -> Iterator[None]:
        """A block whose torch operators are charged to the current activity, those on shared models in time."""
        activity, models = self._machine.engine.current, self._machine.models
        activity.pay = spend = partial(self.timelines.charge, 0.0)
        activity.measure = self._machine.compute.meter()
        landing = nullcontext() if models is None else Landing(self._machine.engine, models, self.rank, spend)
        device, made = self.timelines, self.timelines.memory.seen if self._machine.fake else None
        with (
            self._machine.compute.watch(device.charge, device.read, lambda: activity.uncharged > 0, made),
            landing,
        ):
            yield
