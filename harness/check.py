"""What is refused before anything starts: pairs that cannot be, each in one sentence that names what would work."""

import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from algorithms.common.optimizers import Adam
from hardware.real.world import TORCHRUN, find_world
from harness.build import class_path
from harness.canonical import first_difference, plain
from harness.errors import Unfit, UserError
from harness.interleaving import FILE, read
from harness.local_data import LocalData
from harness.options import names_of
from harness.problems.base import Problem
from harness.record import Record
from harness.setup import Setup, changed, run_info

LONG_FOR_ADAM = 0.02  # ten times and more what it is usually given


def check(setup: Setup) -> tuple[Setup, list[str]]:
    """Refuse an impossible pair, and use no more workers than the algorithm can.

    Returns:
        the setup that will run, and notices of one line each.

    Raises:
        UserError: with a sentence that names what would work.
    """
    _check_launcher(setup)
    _check_values(setup)
    _check_problem(setup, lambda problem: setup.algorithm.check(problem))
    _check_memory(setup)
    _check_replay(setup)
    _check_kernel(setup)
    _check_rows(setup)
    _check_dealer(setup)
    _check_streams(setup)
    _check_messages(setup)
    setup.hardware.check_there()
    assert setup.problem.num_samples > 0  # loads the data: what is missing is said before anything starts
    notices = _notices_of_kernels(setup)
    offered, used = setup.hardware.workers_offered, setup.num_workers
    if used < offered and setup.hardware.num_workers is not None:
        notices.append(f"algorithm={setup.choices['algorithm']} uses {used} of the {offered} workers offered")
    _check_workers(setup, used)
    _check_compute(setup, used)
    setup.data.parts(setup.problem, used, setup.settings.seed)
    setup = setup.with_workers(used)
    epochs = setup.settings.budget.epochs
    if setup.problem.is_fake:
        setup.machine.check_alike(setup.algorithm.alike(setup.machine.workers_offered))
        notices += _notices_of_memory(setup)
    notices += [
        *_notices_of_settings(setup),
        *_notices_of_steps(setup),
        *setup.algorithm.notices(setup.problem, used, epochs),
    ]
    return setup, [*notices, *_notices_of_tasks(setup), *setup.machine.check(setup.num_servers)]


def _check_launcher(setup: Setup) -> None:
    """Ranks that torchrun has started would look on while rank 0 starts workers of its own."""
    world = find_world(os.environ)
    if world is not None and world.launcher == TORCHRUN and not setup.hardware.joins_world:
        raise UserError(
            f"hardware={setup.choices['hardware']} starts its workers itself, and torchrun has started "
            f"{world.size} (RANK and WORLD_SIZE are set): use hardware=torchrun, or start `python run.py ...` without "
            "torchrun"
        )


def _check_workers(setup: Setup, used: int) -> None:
    try:
        setup.machine.check_size()
        setup.algorithm.constants(used)
        _check_problem(setup, lambda problem: setup.algorithm.check_workers(problem, used))
    except UserError as error:
        raise UserError(setup.hardware.in_its_words(str(error))) from error


def _notices_of_tasks(setup: Setup) -> list[str]:
    world = find_world(os.environ)
    if world is None or setup.hardware.joins_world or world.size == 1:
        return []
    return [f"each of Slurm's {world.size} tasks is a run of its own: hardware=torchrun makes them ranks of one"]


def _check_values(setup: Setup) -> None:
    if not setup.problem.is_fake:
        return
    algorithm, hardware, problem = (f"{group}={setup.choices[group]}" for group in ("algorithm", "hardware", "problem"))
    reason = setup.hardware.why_no_fake_tensors
    if reason:
        raise UserError(f"{problem} has shapes and no values, and {hardware} {reason}: use hardware=sim_dgx")
    if not setup.algorithm.supports_fake_tensors:
        able = names_of("algorithm", lambda each: each.supports_fake_tensors)
        reason = setup.algorithm.why_no_fake_tensors
        raise UserError(f"{problem} has shapes and no values, and {algorithm} {reason}: use algorithm={able}")


def _check_problem(setup: Setup, accept: Callable[[Problem], None]) -> None:
    """Say which problems would do, where the algorithm refuses this one as such."""

    def works(problem: Problem) -> bool:
        setup.algorithm.check(problem)
        accept(problem)
        return not problem.is_fake or not setup.hardware.why_no_fake_tensors

    try:
        accept(setup.problem)
    except Unfit as reason:
        pair = f"algorithm={setup.choices['algorithm']} cannot do problem={setup.choices['problem']}"
        raise UserError(f"{pair}: {reason}: use problem={names_of('problem', works)}") from reason


def _check_memory(setup: Setup) -> None:
    if setup.algorithm.needs_shared_memory and not setup.hardware.shares_memory:
        algorithm, hardware = setup.choices["algorithm"], setup.choices["hardware"]
        raise UserError(
            f"algorithm={algorithm} needs memory that all workers share, which hardware={hardware} does not have: use "
            f"hardware={names_of('hardware', lambda h: h.shares_memory)} or "
            f"algorithm={names_of('algorithm', lambda a: not a.needs_shared_memory)}"
        )


def _check_replay(setup: Setup) -> None:
    """What is asked for must be what the other run was; its pair id says so, up to the kind of hardware and the budget.

    How often models are observed may differ: timing decides before each update, observed or not.
    """
    if setup.settings.replay is None:
        return
    field, directory = f"replay={setup.settings.replay}", Path(setup.settings.replay)
    read(directory / FILE)
    other, own = Record(directory).manifest(), run_info(setup, {}, None)
    workers, config = {"num_workers": other.get("num_workers")}, other.get("config", {})
    config = {**config.get("settings", {}), **config}  # those of a baseline are a part of it
    budgets = config.get("budget", {}), asdict(setup.settings.budget)
    ended, epochs = ({"epochs": each.get("epochs")} for each in budgets)
    if other.get("pair_id") == own.pair_id and ended == epochs:
        return
    parts = {group: getattr(setup, group) for group in ("algorithm", "problem", "data")}
    now: dict[str, Any] = {group: {"_target_": class_path(part), **asdict(part)} for group, part in parts.items()}
    now |= {"hardware": {"num_workers": own.num_workers}, "seed": own.seed, "budget": epochs}
    then = {key: config.get(key) for key in now} | {"hardware": workers, "budget": ended}
    differs = first_difference(then, plain(now)) or f"got {other.get('name')!r}"
    same = "algorithm, problem, data, workers, seed and budget"
    raise UserError(f"{field} must name a run of the same {same}: {differs}")


def _check_kernel(setup: Setup) -> None:
    if setup.algorithm.releases_gil(setup.problem) and not setup.hardware.runs_kernels:
        algorithm, hardware = setup.choices["algorithm"], setup.choices["hardware"]
        raise UserError(
            f"algorithm={algorithm} with algorithm.batch_size=1 runs the problem's native kernel, which "
            f"hardware={hardware}{_instructions(setup)} does not run: set algorithm.batch_size above 1, or use "
            f"{_with_kernels(setup)}"
        )


def _instructions(setup: Setup) -> str:
    level = getattr(setup.hardware, "simd", None)
    return "" if level is None else f" with hardware.simd={level}"


def _with_kernels(setup: Setup) -> str:
    return (
        "hardware.simd=null" if _instructions(setup) else f"hardware={names_of('hardware', lambda h: h.runs_kernels)}"
    )


def _check_rows(setup: Setup) -> None:
    data, policy = setup.data, setup.choices["data"]
    if not data.moves_rows:
        return
    asked = f"data={policy}" if data.per_node else "data.order=permuted"
    instead = "data=partitioned" if data.per_node else "data.order=index"
    if reason := _why_rows_stay(setup):
        raise UserError(f"{asked} moves the rows of a native kernel, and {reason}: use {instead}")
    if not setup.hardware.shares_memory:
        hardware = setup.choices["hardware"]
        raise UserError(
            f"{asked} needs memory that all workers share, which hardware={hardware} does not have: use {instead}, or "
            f"hardware={names_of('hardware', lambda h: h.shares_memory)}"
        )


def _check_dealer(setup: Setup) -> None:
    """Who deals the samples of its clients itself would leave a policy that does so without effect."""
    local = isinstance(setup.data, LocalData) or setup.data.servers() > 0
    if setup.algorithm.deals_samples and local:
        algorithm, data = setup.choices["algorithm"], setup.choices["data"]
        instead = "data=partitioned"
        if isinstance(setup.data, LocalData) and hasattr(setup.algorithm, "partition"):
            instead += f" algorithm/partition={setup.data.rule.option}"
        raise UserError(
            f"algorithm={algorithm} says itself who has which samples, which data={data} would say too: use {instead}"
        )


def _check_streams(setup: Setup) -> None:
    if not setup.data.servers():
        return
    algorithm, problem = (f"{group}={setup.choices[group]}" for group in ("algorithm", "problem"))
    reason = ""
    if setup.algorithm.needs_shared_memory:
        reason = f"workers of {algorithm} have them in memory that all share"
    elif setup.algorithm.releases_gil(setup.problem):
        reason = f"{algorithm} with algorithm.batch_size=1 runs a native kernel on rows at hand"
    elif setup.hardware.device_per_rank:
        reason = f"hardware={setup.choices['hardware']} would give a device to each rank that serves"
    elif not setup.problem.has_rows:
        reason = f"{problem} has no method `gather` that says what they are"
    if reason:
        raise UserError(f"data={setup.choices['data']} sends rows by message, and {reason}: use data=partitioned")


def _check_messages(setup: Setup) -> None:
    """Workers and servers exchange messages, which NCCL does not carry here, however many devices there are."""
    if setup.num_servers and getattr(setup.hardware, "backend", None) == "nccl":
        raise UserError(
            f"algorithm={setup.choices['algorithm']} sends messages, which hardware.backend=nccl does not: set "
            "hardware.backend=gloo"
        )


def _check_compute(setup: Setup, num_workers: int) -> None:
    """What charges a batch as such would charge it to each of those who share the work on it."""
    compute = getattr(setup.hardware, "compute", None)
    if compute is not None and compute.batch_s(1) > 0 and setup.algorithm.share(0, num_workers)[1] < num_workers:
        raise UserError(
            f"hardware/compute={type(compute).__name__.lower()} charges a worker for whole samples, of which those of "
            f"algorithm={setup.choices['algorithm']} do a part each: use one that charges operators, such as "
            "hardware/compute=cascade_lake_core"
        )


def _why_rows_stay(setup: Setup) -> str:
    """Why no rows can be moved; empty where they can."""
    algorithm, problem = setup.algorithm, setup.problem
    name, on = f"algorithm={setup.choices['algorithm']}", f"problem={setup.choices['problem']}"
    if not algorithm.releases_gil(problem):
        if algorithm.has_kernel and algorithm.batch_size != 1:
            return f"{name} runs one only with algorithm.batch_size=1, got {algorithm.batch_size}"
        return f"{name} has none" + (f" for {on}" if algorithm.has_kernel else "")
    if not algorithm.visits_rows:
        return f"{name} {algorithm.why_rows_stay}"
    kernel = problem.kernel
    return f"that of {on} reads no rows that could be moved" if kernel is None or kernel.row_data is None else ""


def _notices_of_settings(setup: Setup) -> list[str]:
    reasons, given = setup.algorithm.without_effect(), changed(setup)
    notices = [f"algorithm.{key}={given[key]} has no effect with {reasons[key]}" for key in given if key in reasons]
    size, num_samples = setup.algorithm.batch_size, setup.problem.num_samples
    if setup.algorithm.trains and size > num_samples:
        notices.append(f"algorithm.batch_size={size}: a batch has some of the {num_samples:,} samples more than once")
    return notices


def _notices_of_memory(setup: Setup) -> list[str]:
    if getattr(getattr(setup.hardware, "compute", None), "memory_bytes", None) is not None:
        return []
    return [
        "hardware.compute.memory_bytes=null: what a worker can hold is not said, and no prediction is refused for it"
    ]


def _notices_of_steps(setup: Setup) -> list[str]:
    """Adam's steps are as long as its rate in every coordinate, whatever the gradient; SGD's rates are far too long."""
    optimizer, rate = getattr(setup.algorithm, "optimizer", None), setup.algorithm.learning_rate
    unused = "learning_rate" in setup.algorithm.without_effect()
    if unused or not isinstance(optimizer, Adam) or rate < LONG_FOR_ADAM:
        return []
    return [
        f"algorithm.learning_rate={rate:g} is a step for SGD, and long for algorithm/optimizer=adam or adamw: try "
        "algorithm.learning_rate=0.001"
    ]


def _notices_of_kernels(setup: Setup) -> list[str]:
    algorithm, problem = setup.algorithm, setup.problem
    if not algorithm.has_kernel or algorithm.batch_size != 1 or algorithm.releases_gil(problem):
        return []
    name, on = setup.choices["algorithm"], setup.choices["problem"]
    return [
        f"algorithm={name} has no native kernel for problem={on}: torch's autograd does it, hundreds of times slower"
    ]
