"""The constants of `hardware.simulated.memory.SharedMemory`, measured on this machine, two cores at a time.

Each is what the simulator means by it: where it lets misses overlap, the constant comes from misses that overlap alike.
None is fitted to an algorithm.

Two cores in step, each of whose updates reads k random lines out of n and then writes them, touch q = 1 - (1 - 1/n)^k
of the lines in an update, d = n q / k lines for every one they ask for. By the simulator's rules a line read was last
touched by the other core with probability 1 / (2 - q), a *miss*, and taken by it before it is written with
probability q, a *clash*. What updates of shared lines take longer than those of lines of one's own is therefore, for
each line asked for, d / (2 - q) misses and d q clashes: two equations at two n (`HOT` and `WARM`) give the cost of
both. What a clash costs an atomic addition comes from a third n in between (`MIXED`), as misses there cost the same.
"""

from collections.abc import Iterator
from functools import partial
from itertools import combinations
from pathlib import Path

import numpy as np
import torch

from hardware.real.placement import allocate
from hardware.real.topology import Topology
from harness.calibrate import core, probes
from harness.calibrate.constant import LOW, Constant, repeated
from harness.errors import UserError
from harness.kernels.access import lock_words, open_mutex
from harness.kernels.native import SPINS

TOUCHED = 64  # lines that an update reads, then writes
HOT, MIXED, WARM = 64, 512, 16_384  # lines that two cores share: the other one is always at them, or hardly ever
UPDATES = 128  # in a round
ROUNDS = 60
REPETITIONS = 7  # of all but memory
MEMORY_BYTES = 1 << 30  # more than the caches that a core has for itself
HELD_NS, TURNS = 200, 200_000  # a mutex that two cores want all the time, about as long as updates hold it
LONG_NS, QUICK = 700, 3  # letting go of it takes longer where somebody is woken; quick is up to so many medians
DOZE_NS, DOZE_ROUNDS = 1_000, 240  # a mutex for so long at most, on which another core is about to
NUMBERS_PER_LINE = 16  # float32
Pair = tuple[int, int]  # CPUs
_SYSFS = Path("/sys/devices/system/cpu")


def constants(topology: Topology) -> Iterator[Constant]:
    """Measure all of them, in some seconds.

    Raises:
        UserError: on a machine with one core.
    """
    near, far = pairs(topology)
    here, there = topology.cores[0].node, topology.cores[-1].node
    cores = -(-topology.num_cores // topology.num_sockets)
    yield Constant("sockets", topology.num_sockets, "NUMA nodes")
    yield Constant("cores_per_socket", cores, "physical cores that this process may use")
    yield Constant("line_bytes", _word(near[0], 0, "coherency_line_size"), "as the kernel says")
    cache_bytes = _word(near[0], 2, "size")
    yield Constant("cache_bytes", cache_bytes, "second level, the last of a core's own, as the kernel says")

    yield from repeated(lambda: _shared(near, far, cache_bytes), REPETITIONS)
    local_s, local_bytes_per_s = from_memory(near[0], here)
    yield Constant("local_memory_s", local_s, f"pointers followed through {MEMORY_BYTES >> 20} MiB")
    yield Constant("local_bytes_per_s", local_bytes_per_s, "the sum of as much")
    remote_s, remote_bytes_per_s = from_memory(near[0], there) if far else (local_s, local_bytes_per_s)
    across = "the same, of another socket" if far else "there is one socket: as local"
    yield Constant("remote_memory_s", max(remote_s, local_s), across)
    yield Constant("remote_bytes_per_s", min(remote_bytes_per_s, local_bytes_per_s), across)


def _shared(near: Pair, far: Pair | None, cache_bytes: int) -> Iterator[Constant]:
    """Once, what takes milliseconds: caches, atomic operations and mutexes."""
    transfer_s, write_s = transfer(near)
    yield Constant("same_socket_s", transfer_s, "pointers followed through lines that another core has written")
    across = "the same, across sockets" if far else "there is one socket: as same_socket_s"
    yield Constant("cross_socket_s", transfer(far)[0] if far else transfer_s, across)
    miss_s, clash_s, atomic_clash_s = contention(near)
    overlap = max(1.0, transfer_s / miss_s)
    yield Constant("outstanding_misses", overlap, f"{_ns(miss_s)} a miss of updates on {WARM} shared lines")
    yield Constant(
        "outstanding_clashes",
        max(1.0, transfer_s / clash_s),
        f"{_ns(clash_s)} a clash of updates on {HOT} shared lines",
    )
    yield Constant(
        "outstanding_atomics",
        max(1.0, transfer_s / atomic_clash_s),
        f"{_ns(atomic_clash_s)} a clash of atomic updates on {MIXED} shared lines",
    )
    yield Constant(
        "migrates", bool(write_s < miss_s / 2), f"{_ns(write_s)} to write a line just read from another core's cache"
    )

    beyond_s = core.forgotten_s(near[0], cache_bytes, _word(near[0], 0, "coherency_line_size"))
    how = f"{_ns(beyond_s)} a miss of the kernel on a model twice as large as the core's own cache"
    yield Constant("shared_cache_s", max(0.0, beyond_s) * overlap, how)

    yield Constant("atomic_s", atomic(near[0]), "additions to lines of one's own, atomic less plain")
    spin_s, yield_s = spin(near[0])
    yield Constant("spin_s", spin_s, f"{SPINS} looks of a worker that waits")
    yield Constant("yield_s", yield_s, "one of those that follow, with sched_yield")
    wake_s, sleep_s, doze_s, futex_s = mutex(near)
    yield Constant("wake_s", wake_s, "to let go of a mutex that two cores want and one sleeps on")
    yield Constant("sleep_s", sleep_s, "from then until that core looks at it again")
    yield Constant("doze_s", doze_s, "after which a core that found a mutex held had to be woken")
    yield Constant("futex_s", futex_s, "to let go of it before, or to look again")


def pairs(topology: Topology) -> tuple[Pair, Pair | None]:
    """Two cores of one socket, where one has two, and two of different sockets, where there are several.

    Raises:
        UserError: where there are no two cores.
    """
    found: dict[bool, Pair] = {}
    for one, other in combinations(topology.cores, 2):
        if one.cpus != other.cpus:
            found.setdefault(one.node != other.node, (one.cpus[0], other.cpus[0]))
    if not found:
        raise UserError("calibrating memory needs two cores, and this process may use one: see os.sched_getaffinity")
    return found.get(False) or found[True], found.get(True)


def transfer(cpus: Pair) -> tuple[float, float]:
    """Seconds of a line from another core's cache, one at a time, and to write it then, when writes overlap."""
    memory, tour = probes.ring(256)
    flag, last, times = np.zeros(1, np.int64), np.zeros(1, np.int64), np.zeros((ROUNDS, 2))
    bodies = [
        lambda: probes.dirty(flag, memory, tour, ROUNDS),
        lambda: probes.dirty_ns(flag, memory, tour, ROUNDS, times, last),
    ]
    probes.on_cores(cpus, bodies)
    reads_ns, writes_ns = np.quantile(times, LOW, axis=0)
    return 1e-9 * reads_ns, 1e-9 * writes_ns


def contention(cpus: Pair) -> tuple[float, float, float]:
    """Seconds of a miss, of a clash, and of a clash of an atomic addition, each as part of an update."""
    stalls_s = [stall(cpus, lines, atomic=False) for lines in (HOT, WARM)]
    miss_s, clash_s = map(float, np.linalg.solve([_misses_and_clashes(lines) for lines in (HOT, WARM)], stalls_s))
    misses, clashes = _misses_and_clashes(MIXED)
    atomic_clash_s = (stall(cpus, MIXED, atomic=True) - misses * miss_s) / clashes
    if min(miss_s, clash_s, atomic_clash_s) <= 0:
        raise UserError("shared lines were cheaper than own ones, which cannot be: measure when nothing else runs")
    return miss_s, clash_s, atomic_clash_s


def _misses_and_clashes(lines: int) -> tuple[float, float]:
    """For each line that an update of two cores in step asks for, if they share so many."""
    touched = 1 - (1 - 1 / lines) ** TOUCHED
    distinct = lines * touched / TOUCHED
    return distinct / (2 - touched), distinct * touched


def stall(cpus: Pair, lines: int, atomic: bool) -> float:
    """Seconds by which two cores take longer for each line of updates of the same lines than of lines of their own."""
    shared_s, own_s = (together(cpus, lines, shared, atomic) for shared in (True, False))
    return shared_s - own_s


def together(cpus: Pair, lines: int, shared: bool, atomic: bool) -> float:
    """Seconds for each line of updates of two cores at once, on the same lines or each on its own."""
    models = [np.zeros(lines * NUMBERS_PER_LINE, np.float32) for _ in cpus]
    flag, times = np.zeros(1, np.int64), np.zeros((2, ROUNDS, 2))
    coordinates = [_coordinates(lines, seed) for seed in range(2)]

    def body(core: int) -> None:
        model = models[0 if shared else core]
        probes.gather_scatter_ns(flag, model, coordinates[core], TOUCHED, atomic, times[core])

    probes.on_cores(cpus, [lambda: body(0), lambda: body(1)])
    rounds_ns = times[:, :, 1].max(axis=0) - times[:, :, 0].min(axis=0)
    return 1e-9 * float(np.quantile(rounds_ns, LOW)) / (UPDATES * TOUCHED)


def atomic(cpu: int) -> float:
    """Seconds by which an addition to a line of one's own is longer if it is atomic."""
    model, times = np.zeros(WARM * NUMBERS_PER_LINE, np.float32), np.zeros((2, ROUNDS))
    coordinates = _coordinates(WARM, 0)
    for atomically in (False, True):
        body = partial(probes.additions_ns, model, coordinates, atomically, times[int(atomically)])
        probes.on_cores([cpu], [body])
    plain_ns, atomic_ns = np.quantile(times, LOW, axis=1)
    return 1e-9 * max(0.0, float(atomic_ns - plain_ns))


def spin(cpu: int) -> tuple[float, float]:
    """For how long who waits for a spin lock looks all the time, and how far apart its looks are then, in seconds."""
    words, times = lock_words("global_spin", 0).numpy(), np.zeros((ROUNDS, 2))

    def body() -> None:
        for turn in range(ROUNDS):
            times[turn] = SPINS * probes.looks_ns(words, 0, SPINS), probes.looks_ns(words, SPINS, SPINS)

    probes.on_cores([cpu], [body])
    spin_ns, yield_ns = np.quantile(times, LOW, axis=0)
    return 1e-9 * float(spin_ns), 1e-9 * float(yield_ns)


def mutex(cpus: Pair) -> tuple[float, float, float, float]:
    """What a mutex costs that another core has found held.

    How long it takes to wake a core depends on how it sleeps, and that on how long it usually does: hence two cores
    that contend as they do in kernels. Who is woken finds the mutex held, and has to be woken again; of two such times
    with nothing but quick turns of one core between them, the second is `sleep_s` after the first.

    Returns:
        seconds to wake it, if it sleeps; from then until it has the mutex; from finding it held until asleep; and what
        a call of the system takes either of them before that.
    """
    wake_ns, sleep_ns = woken(*contended(cpus))
    gone, had = handed_over(cpus, np.linspace(0, DOZE_NS, DOZE_ROUNDS, dtype=np.int64))
    waited_ns, left_ns = gone[:, 0] - had[:, 0], gone[:, 1] - gone[:, 0]
    asked, asleep = waited_ns > 0, left_ns > LONG_NS
    if not (asked & ~asleep).any():
        raise UserError("a core that found a mutex held slept at once, which cannot be: measure when nothing else runs")
    doze_ns = float(np.quantile(waited_ns[asked], 1 - asleep[asked].mean()))  # as many are below as were not asleep
    awake = asked & ~asleep
    futex_ns = float(np.median([left_ns[awake], (had[:, 1] - had[:, 0])[awake]]))
    return 1e-9 * wake_ns, 1e-9 * sleep_ns, 1e-9 * doze_ns, 1e-9 * futex_ns


def woken(owner: np.ndarray, times: np.ndarray) -> tuple[float, float]:
    """From turns of two cores that contend for a mutex what it takes to wake the other one, and until it runs, in ns.

    Args:
        owner: which core's each turn is, in the order of turns, shape (turns,).
        times: when it had the mutex, began to let go and had let go, in ns, shape (turns, 3).

    Raises:
        UserError: if none of them slept.
    """
    left_ns = times[:, 2] - times[:, 1]
    quick_ns = np.median(left_ns)  # nobody to wake, nor to look for
    long = np.flatnonzero(left_ns > LONG_NS)
    quick = left_ns < QUICK * quick_ns
    same = np.r_[True, owner[1:] == owner[:-1]]
    broken = np.cumsum(~same | ~(quick | (left_ns > LONG_NS)))  # by a turn of the other core, or by one nearly so
    again = broken[long[1:]] == broken[long[:-1]]
    if not again.any():
        raise UserError("no core slept on a mutex that two wanted all the time: measure when nothing else runs")
    slept_ns = times[long[1:], 1] - times[long[:-1], 2]
    return float(left_ns[long].mean()), float(slept_ns[again].mean())


def contended(cpus: Pair) -> tuple[np.ndarray, np.ndarray]:
    """The turns of two cores that want a mutex all the time, while both do: see `woken`."""
    words = lock_words("global_mutex", 0)
    open_mutex(words)
    flag, times = np.zeros(1, np.int64), np.zeros((2, TURNS, 3))
    bodies = [partial(probes.contend_for_mutex_ns, flag, words.numpy(), HELD_NS, mine) for mine in times]
    probes.on_cores(cpus, bodies)
    owner, turns = np.repeat((0, 1), TURNS), times.reshape(-1, 3)
    order = np.argsort(turns[:, 0])
    order = order[turns[order, 0] < times[:, -1, 0].min()]
    return owner[order], turns[order]


def handed_over(cpus: Pair, held_ns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A mutex that one core holds for a while, and another one asks for meanwhile, in rounds.

    Returns:
        when the one began to let go and had, and when the other asked and had it, in ns, shape (rounds, 2).
    """
    words = lock_words("global_mutex", 0)
    open_mutex(words)
    rounds = len(held_ns)
    flag, gone, had = np.zeros(1, np.int64), np.zeros((rounds, 2)), np.zeros((rounds, 2))
    bodies = [
        lambda: probes.hold_mutex_ns(flag, words.numpy(), rounds, held_ns, gone),
        lambda: probes.take_mutex_ns(flag, words.numpy(), rounds, had),
    ]
    probes.on_cores(cpus, bodies)
    return gone, had


def from_memory(cpu: int, node: int) -> tuple[float, float]:
    """Seconds of a line from the memory of a node, one at a time, and bytes per second of all, to a core."""
    count = MEMORY_BYTES // 8
    tensor, _ = allocate((count,), torch.int64, f"bind:{node}", [node])
    memory, times, kept = tensor.numpy(), np.zeros(2), np.zeros(1, np.int64)
    probes.lay_ring(memory)

    def body() -> None:
        times[:] = probes.chase_ns(memory, 1 << 17, kept), probes.stream_ns(memory, kept)

    probes.on_cores([cpu], [body])
    return 1e-9 * times[0], 8e9 / times[1]


def _coordinates(lines: int, seed: int) -> np.ndarray:
    """Of updates, int32, shape (ROUNDS, UPDATES * TOUCHED): the first number of random lines."""
    random = np.random.default_rng(seed)
    return (random.integers(0, lines, (ROUNDS, UPDATES * TOUCHED)) * NUMBERS_PER_LINE).astype(np.int32)


def _word(cpu: int, level: int, name: str) -> int:
    """What the kernel says of a cache: of its level, or of any for level 0."""
    for folder in sorted((_SYSFS / f"cpu{cpu}" / "cache").glob("index*")):
        kind, own = (folder / "type").read_text().strip(), int((folder / "level").read_text())
        if kind != "Instruction" and own >= level:
            text = (folder / name).read_text().strip()
            return int(text.rstrip("K")) * (1024 if text.endswith("K") else 1)
    raise UserError(f"the kernel does not tell the caches of CPU {cpu} ({_SYSFS}): measure on another machine")


def _ns(seconds: float) -> str:
    return f"{1e9 * seconds:.2g} ns"
