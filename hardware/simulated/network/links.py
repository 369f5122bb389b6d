"""The links of one run, with what is under way on them."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from heapq import heappop, heappush

import numpy as np

from hardware.simulated.engine import Engine
from hardware.simulated.network import arrays, solver
from hardware.simulated.network.base import Network
from hardware.simulated.network.plans import Plan
from hardware.simulated.network.program import Program, lockstep_s, program

Ended = Callable[[np.ndarray], None]

_KEPT_BYTES = 32 * 2**20  # of programs that are remembered


@dataclass(frozen=True)
class Traffic:
    """What one link has carried.

    Args:
        payload_bytes: of plans.
        wire_bytes: the same with what the protocol adds.
        busy_s: virtual seconds in which something was under way on it.
    """

    payload_bytes: float
    wire_bytes: float
    busy_s: float


@dataclass(frozen=True)
class _Alone:
    """A program that has the links for itself until its known end; the solver has not seen it."""

    made: Program
    ended: Ended
    begin_s: float
    end_s: float


class Links:
    """Carries plans over links that they share max-min fairly.

    The solver goes ahead of SimPy's clock as far as nobody else can begin anything. A plan that is alone on the links
    and in lockstep is not solved at all: its end is known. Should another come meanwhile, it is solved after all, from
    its beginning.

    Args:
        network: the links.
        engine: whose clock it is.
        num_devices: that are connected.
        shortcuts: whether a known end is used.
    """

    def __init__(self, network: Network, engine: Engine, num_devices: int, shortcuts: bool = True) -> None:
        self._engine, self._env, self._shortcuts = engine, engine.env, shortcuts
        self._wires = network.wires(num_devices)
        self._state = arrays.idle(network, self._wires.names, self._wires.bandwidth_bytes_per_s)
        self._programs: dict[tuple[Plan, bytes], Program] = {}
        self._programs_bytes = 0
        self._lockstep: dict[Program, tuple[int, float | None]] = {}
        self._stored: dict[Program, tuple[int, int, int, int]] = {}
        self._appended, self._kept_sends = arrays.Appended(), _KEPT_BYTES // arrays.SEND.itemsize
        self._jobs: dict[int, tuple[Program, Ended]] = {}
        self._free_jobs: list[int] = []  # a heap
        self._slots: dict[int, list[int]] = defaultdict(list)  # free blocks of ranks by their size, a power of two
        self._ranks_used = 0
        self._alone: _Alone | None = None
        self._over: list[tuple[Ended, np.ndarray]] = []
        self._turn = 0
        self._due_s = 0.0

    def carry(self, plan: Plan, devices: np.ndarray, ended: Ended) -> None:
        """Begin a plan now.

        Args:
            devices: where each rank of the plan is, shape (ranks,).
            ended: called with ranks of the plan, shape (some,), at the virtual time at which all that they send and
                receive has arrived; every rank is named once.
        """
        self.begin(self._program(plan, devices), ended)

    def begin(self, made: Program, ended: Ended) -> None:
        """Begin a program now; see `carry`."""
        plan, begin_s = made.plan, self._env.now + made.plan.setup_s
        if not len(made.sends):  # a group of one: the solver would wait for what never arrives
            self._env.timeout(plan.setup_s).callbacks.append(lambda _: ended(np.arange(plan.num_ranks)))
            return
        if not (self._jobs or self._alone or self._over) and self._shortcuts:
            taken_s = self._lockstep_s(made)
            if taken_s is not None and begin_s + taken_s <= self._next_change_s():
                self._alone = _Alone(made, ended, begin_s, begin_s + taken_s)
                self._wake_at(self._alone.end_s)
                return
        self._share()
        self._add(made, ended, begin_s)
        self._wake_at(self._env.now)

    def traffic(self) -> dict[str, Traffic]:
        """What each link has carried so far, by name."""
        return {name: Traffic(*row) for name, row in zip(self._wires.names, self.carried().T.tolist(), strict=True)}

    def carried(self) -> np.ndarray:
        """Payload bytes, bytes on the wire and seconds of each link so far, shape (3, links)."""
        links = self._state.links
        return np.stack([links[name] for name in ("payload_bytes", "wire_bytes", "busy_s")])

    def begin_together(self) -> None:
        """All ranks are at one time now, which changes nothing."""

    def verdict(self) -> str:
        """Why the ranks simulated do not tell the time of all: they are all."""
        return ""

    def broken(self) -> list[str]:
        """Links that pass nothing, though something is under way on them."""
        links = self._state.links
        return [self._wires.names[i] for i in np.flatnonzero((links["capacity"] <= 0.0) & (links["head"] >= 0))]

    def _program(self, plan: Plan, devices: np.ndarray) -> Program:
        key = plan, devices.tobytes()
        if key not in self._programs:
            if self._programs_bytes > _KEPT_BYTES:
                self._programs.clear()
                self._lockstep.clear()
                self._programs_bytes = 0
            self._programs[key] = program(plan, devices, self._wires)
            self._programs_bytes += self._programs[key].nbytes + plan.nbytes
        return self._programs[key]

    def _lockstep_s(self, made: Program) -> float | None:
        changes_past = self._apply_past_changes()
        known = self._lockstep.get(made)
        if known is None or known[0] != changes_past:
            known = self._lockstep[made] = changes_past, lockstep_s(made, self._state.links["capacity"])
        return known[1]

    def _apply_past_changes(self) -> int:
        """How many have passed, on links that carry nothing."""
        state = self._state
        before, passed = int(state.counts[arrays.CHANGE]), int(np.searchsorted(state.change_s, self._env.now, "right"))
        for change in range(before, passed):
            state.links["capacity"][state.change_link[change]] = state.change_capacity[change]
        state.counts[arrays.CHANGE] = passed
        return passed

    def _next_change_s(self) -> float:
        left = self._state.change_s[self._state.counts[arrays.CHANGE] :]
        return float(left[0]) if len(left) else float("inf")

    def _share(self) -> None:
        """Let the solver know what was alone."""
        if self._alone is not None:
            alone, self._alone = self._alone, None
            self._add(alone.made, alone.ended, alone.begin_s)
            self._run(self._env.now)

    def _finish_alone(self, alone: _Alone) -> None:
        self._alone = None
        made, links = alone.made, self._state.links
        for index, (_, times) in enumerate(made.plan.rounds):
            sends = made.sends[made.offsets[index, 0] : made.offsets[index, -1]]
            used = np.repeat(np.arange(len(sends)), sends["hops"])
            begin = sends["route"][0]
            over = made.routes[begin : begin + len(used)]
            links["payload_bytes"][over] += times * sends["payload_bytes"][used]
            links["wire_bytes"][over] += times * sends["wire_bytes"][used]
            links["busy_s"][over] += times * sends["wire_bytes"][used] / _rate(links, sends, used, over)
        alone.ended(np.arange(made.plan.num_ranks))

    def _wake_at(self, time_s: float) -> None:
        self._turn += 1
        self._due_s = time_s = float(time_s)  # none of the solver's numbers: they would slow the clock down
        if time_s < float("inf"):
            event = self._env.timeout(max(0.0, time_s - self._env.now))
            event.callbacks.append(partial(self._wake, self._turn))

    def _wake(self, turn: int, _: object) -> None:
        if turn != self._turn:
            return  # something has begun meanwhile
        if self._alone is not None:
            self._finish_alone(self._alone)
            return
        if not self._over:
            self._run(max(self._env.now, self._due_s))
        self._tell()
        if turn != self._turn:
            return
        horizon_s = self._engine.next_s()
        if horizon_s > self._env.now:
            self._run(np.nextafter(horizon_s, 0.0))
        self._wake_at(self._state.clock[0] if self._over else self._state.clock[1])

    def _tell(self) -> None:
        over, self._over = self._over, []
        for ended, ranks in over:
            ended(ranks)

    def _run(self, until_s: float) -> None:
        """Solve until a rank has ended or the next event is later than `until_s`."""
        while not self._over:
            status = solver.run(self._state, until_s)
            if status == arrays.PAUSED:
                return
            if status == arrays.ENDED:
                self._collect()
            else:
                self._state = arrays.more_transfers(self._state)

    def _collect(self) -> None:
        """What has ended, by job and rank."""
        state, count = self._state, self._state.counts
        slots = state.over[: count[arrays.OVER]]
        count[arrays.OVER] = 0
        owners = state.ranks["job"][slots]
        for owner in np.unique(owners).tolist():
            made, ended = self._jobs[owner]
            job = state.jobs[owner]
            ranks = np.sort(slots[owners == owner]) - job["first"]
            job["busy"] -= len(ranks)
            if job["busy"] == 0:
                del self._jobs[owner]
                heappush(self._free_jobs, owner)
                self._slots[_size(made.plan.num_ranks)].append(int(job["first"]))
            self._over.append((ended, ranks))

    def _add(self, made: Program, ended: Ended, begin_s: float) -> None:
        offsets, expect, until = self._store(made)
        num_ranks = made.plan.num_ranks
        first = self._room(num_ranks)
        number = heappop(self._free_jobs) if self._free_jobs else len(self._jobs)
        if number == len(self._state.jobs):
            self._state = self._state._replace(jobs=arrays.longer(self._state.jobs))
        while self._state.window.shape[1] < made.plan.depth:
            self._state = arrays.wider_window(self._state)
        state = self._state
        state.jobs[number] = (num_ranks, first, made.plan.depth, made.num_steps, offsets, expect, until, num_ranks)
        state.ranks[first : first + num_ranks] = 0
        state.ranks["job"][first : first + num_ranks] = number
        state.window[first : first + num_ranks] = 0
        self._jobs[number] = made, ended
        if state.counts[arrays.FREE] == 0:
            self._state = arrays.more_transfers(state)
        solver.start(self._state, number, begin_s)

    def _room(self, num_ranks: int) -> int:
        """The first of a block of free ranks."""
        size = _size(num_ranks)
        if self._slots[size]:
            return self._slots[size].pop()
        first, self._ranks_used = self._ranks_used, self._ranks_used + size
        while self._ranks_used > len(self._state.ranks):
            s = self._state
            self._state = s._replace(
                ranks=arrays.longer(s.ranks),
                window=arrays.longer(s.window),
                ready=arrays.longer(s.ready),
                over=arrays.longer(s.over),
            )
        return first

    def _store(self, made: Program) -> tuple[int, int, int]:
        """Where the program begins in the solver's arrays."""
        if made not in self._stored:
            if self._appended.used["sends"] > self._kept_sends:
                self._forget()
            self._append(made)
        return self._stored[made][:3]

    def _append(self, made: Program) -> None:
        used = self._appended.used
        self._stored[made] = used["offsets"], used["expect"], used["until"], used["routes"]
        sends, offsets = made.sends.copy(), made.offsets.ravel() + used["sends"]
        sends["route"] += used["routes"]
        self._state = self._appended.append(
            arrays.more_hops(self._state, int(sends["hops"].max(initial=0))),
            sends=sends,
            routes=made.routes,
            offsets=offsets,
            expect=made.expect.ravel(),
            until=made.until,
        )

    def _forget(self) -> None:
        """Keep the programs of the jobs under way alone."""
        before, self._stored, self._appended = self._stored, {}, arrays.Appended()
        begins, shifts = np.zeros((len(self._state.jobs), 3), np.int64), np.zeros(len(self._state.jobs), np.int64)
        for number, (made, _) in self._jobs.items():
            if made not in self._stored:
                self._append(made)
            begins[number], shifts[number] = self._stored[made][:3], self._stored[made][3] - before[made][3]
        arrays.moved(self._state, begins, shifts)
        self._kept_sends = max(self._kept_sends, 2 * self._appended.used["sends"])


def _size(num_ranks: int) -> int:
    return 1 << (num_ranks - 1).bit_length()


def _rate(links: np.ndarray, sends: np.ndarray, used: np.ndarray, over: np.ndarray) -> np.ndarray:
    """Bytes/s of each hop's transfer: what its narrowest link can do."""
    rate = np.full(len(sends), np.inf)
    np.minimum.at(rate, used, links["capacity"][over])
    return rate[used]
