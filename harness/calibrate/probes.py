"""Compiled loops that one core, or two, are timed in; every time is in nanoseconds.

Two cores take turns, or start together, by a flag that both look at: no interpreter and no system call in between.
A round in which the system took a core away is no measurement: callers take a low quantile of many short rounds.
"""

import os
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numba import njit, types

from harness.kernels.access import MUTEX, SPIN
from harness.kernels.native import atomic_add, load_acquire, lock_mutex, store_release, unlock_mutex, wait_a_little
from harness.kernels.numbers import hashed

WORDS = 8  # int64 in a cache line of 64 bytes
_MONOTONIC = 1  # CLOCK_MONOTONIC

_read_clock = types.ExternalFunction("clock_gettime", types.int32(types.int32, types.intp))


def on_cores(cpus: Sequence[int], bodies: Sequence[Callable[[], Any]]) -> None:
    """Run each body in a thread of its own, bound to a CPU, and wait.

    Raises:
        BaseException: the first that a body raised.
    """
    failures: list[BaseException] = []

    def run(cpu: int, body: Callable[[], Any]) -> None:
        try:
            os.sched_setaffinity(0, {cpu})
            body()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=pair) for pair in zip(cpus, bodies, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def ring(num_lines: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Memory in which every line holds the number of the next one of a random tour.

    Returns:
        memory int64 (num_lines * WORDS,), and the tour, int64 (num_lines,).
    """
    tour = np.random.default_rng(seed).permutation(num_lines)
    memory = np.zeros(num_lines * WORDS, np.int64)
    memory[tour * WORDS] = np.roll(tour, -1)
    return memory, tour


@njit(nogil=True)
def now_ns() -> int:
    """Of the monotonic clock."""
    spot = np.empty(2, np.int64)
    _read_clock(_MONOTONIC, spot.ctypes.data)
    return spot[0] * 1_000_000_000 + spot[1]


@njit(nogil=True)
def _await(flag, value):
    while load_acquire(flag, 0) < value:
        pass


@njit(nogil=True)
def _together(flag, round_number):
    """Start a round when both have come."""
    atomic_add(flag, 0, 1)
    _await(flag, 2 * (round_number + 1))


@njit(nogil=True)
def chase(memory, start, count):
    """Follow the tour: every load waits for the one before."""
    line = start
    for _ in range(count):
        line = memory[line * WORDS]
    return line


@njit(nogil=True)
def touch(memory, tour):
    """Add 1 in every line: loads and stores that need not wait for each other."""
    for line in tour:
        memory[line * WORDS + 1] += 1


@njit(nogil=True)
def lay_ring(memory):
    """Let every line hold the number of the next one of a random tour (Sattolo, IPL 1986), in place."""
    count = len(memory) // WORDS
    for line in range(count):
        memory[line * WORDS] = line
    for line in range(count - 1, 0, -1):
        other = np.int64(hashed(0, line) % np.uint64(line))
        memory[line * WORDS], memory[other * WORDS] = memory[other * WORDS], memory[line * WORDS]


@njit(nogil=True)
def chase_ns(memory, count, last):
    """Per line, `count` steps of the tour, which end at `last`, shape (1,)."""
    start_ns = now_ns()
    last[0] = chase(memory, 0, count)
    return (now_ns() - start_ns) / count


@njit(nogil=True)
def dirty(flag, memory, tour, rounds):
    """One core of `dirty_ns`: writes every line, again and again."""
    for turn in range(rounds):
        _await(flag, 2 * turn)
        touch(memory, tour)
        store_release(flag, 0, 2 * turn + 1)


@njit(nogil=True)
def dirty_ns(flag, memory, tour, rounds, times, last):
    """The other core: follows the tour through lines that the first has written, then writes them, per line.

    Args:
        times: shape (rounds, 2): of the reads, and of the writes that follow.
        last: where the tour ended, shape (1,): a loop whose result nobody wants is none.
    """
    for turn in range(rounds):
        _await(flag, 2 * turn + 1)
        start_ns = now_ns()
        last[0] = chase(memory, tour[0], len(tour))
        middle_ns = now_ns()
        touch(memory, tour)
        times[turn, 0] = (middle_ns - start_ns) / len(tour)
        times[turn, 1] = (now_ns() - middle_ns) / len(tour)
        store_release(flag, 0, 2 * turn + 2)


@njit(nogil=True)
def gather_scatter(weights, coordinates, count, atomic):
    """Updates that read `count` coordinates, then add to all of them, as sparse samples do; atomically or not."""
    number = np.float32(0.0)
    for start in range(0, len(coordinates), count):
        first = second = third = fourth = np.float32(0.0)
        for position in range(start, start + count, 4):
            first += weights[np.uint32(coordinates[position])]
            second += weights[np.uint32(coordinates[position + 1])]
            third += weights[np.uint32(coordinates[position + 2])]
            fourth += weights[np.uint32(coordinates[position + 3])]
        number = (first + second + third + fourth) * np.float32(1e-9)
        for position in range(start, start + count):
            if atomic:
                atomic_add(weights, np.uint32(coordinates[position]), number)
            else:
                weights[np.uint32(coordinates[position])] += number
    return number


@njit(nogil=True)
def gather_scatter_ns(flag, weights, coordinates, count, atomic, times):
    """Per coordinate, while another core does the same.

    Args:
        coordinates: int32, shape (rounds, updates * count).
        times: begin and end, shape (rounds, 2).
    """
    for turn in range(len(times)):
        _together(flag, turn)
        times[turn, 0] = now_ns()
        gather_scatter(weights, coordinates[turn], count, atomic)
        times[turn, 1] = now_ns()


@njit(nogil=True)
def additions_ns(weights, coordinates, atomic, times):
    """Per addition to lines of one's own, atomic or not.

    Args:
        coordinates: int32, shape (rounds, additions).
        times: shape (rounds,).
    """
    for turn in range(len(times)):
        start_ns = now_ns()
        for coordinate in coordinates[turn]:
            if atomic:
                atomic_add(weights, np.uint32(coordinate), np.float32(1e-9))
            else:
                weights[np.uint32(coordinate)] += np.float32(1e-9)
        times[turn] = (now_ns() - start_ns) / coordinates.shape[1]


@njit(nogil=True)
def looks_ns(words, turn, looks):
    """Per look of a worker that waits for a spin lock, from its `turn`-th on."""
    start_ns = now_ns()
    for look in range(turn, turn + looks):
        if load_acquire(words, SPIN) != 0:
            break
        wait_a_little(look)
    return (now_ns() - start_ns) / looks


@njit(nogil=True)
def hold_mutex_ns(flag, words, rounds, hold_ns, times):
    """One core of a mutex handed over: holds it for a while, then lets go.

    Args:
        hold_ns: shape (rounds,).
        times: when it began to let go and when it had, shape (rounds, 2).
    """
    address = words.ctypes.data + 4 * MUTEX
    for turn in range(rounds):
        lock_mutex(address)
        store_release(flag, 0, 2 * turn + 1)
        until = now_ns() + hold_ns[turn]
        while now_ns() < until:
            pass
        times[turn, 0] = now_ns()
        unlock_mutex(address)
        times[turn, 1] = now_ns()
        _await(flag, 2 * turn + 2)


@njit(nogil=True)
def take_mutex_ns(flag, words, rounds, times):
    """The other core of a mutex handed over: asks for it, and sleeps on it if it is held for long.

    Args:
        times: when it asked and when it had it, shape (rounds, 2).
    """
    address = words.ctypes.data + 4 * MUTEX
    for turn in range(rounds):
        _await(flag, 2 * turn + 1)
        times[turn, 0] = now_ns()
        lock_mutex(address)
        times[turn, 1] = now_ns()
        unlock_mutex(address)
        store_release(flag, 0, 2 * turn + 2)


@njit(nogil=True)
def contend_for_mutex_ns(flag, words, hold_ns, times):
    """One of two cores that want a mutex all the time, and hold it as long as an update of a kernel does.

    Args:
        times: when it had the mutex, when it began to let go and when it had let go, shape (turns, 3).
    """
    address = words.ctypes.data + 4 * MUTEX
    _together(flag, 0)
    for turn in range(len(times)):
        lock_mutex(address)
        times[turn, 0] = now_ns()
        until = times[turn, 0] + hold_ns
        while now_ns() < until:
            pass
        times[turn, 1] = now_ns()
        unlock_mutex(address)
        times[turn, 2] = now_ns()


@njit(nogil=True)
def stream_ns(values, total):
    """Per number: the sum of all, shape (1,)."""
    start_ns = now_ns()
    total[0] = values.sum()
    return (now_ns() - start_ns) / len(values)
