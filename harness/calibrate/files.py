"""Device files of this machine, with every constant and how it was measured."""

from collections.abc import Sequence
from pathlib import Path

from harness.calibrate.constant import Constant
from harness.errors import UserError

MEMORY = {  # fields of SharedMemory: the unit, in the order of the file; empty where how they came about says it
    "sockets": "",
    "cores_per_socket": "",
    "line_bytes": "bytes of a cache line",
    "cache_bytes": "bytes that a core caches for itself",
    "same_socket_s": "s of a line from the cache of another core of the socket",
    "cross_socket_s": "s of a line from a cache of another socket",
    "shared_cache_s": "s of a line from the cache that the cores of a socket share",
    "local_memory_s": "s of a line from the own socket's memory",
    "remote_memory_s": "s of a line from another socket's memory",
    "outstanding_misses": "misses of a core under way together",
    "outstanding_clashes": "lines lost between read and write that come back together",
    "outstanding_atomics": "lines lost to others that come back together to atomic operations",
    "migrates": "a line that another core has written comes to its reader as the reader's own",
    "atomic_s": "s of an atomic operation on a line at hand",
    "lock_s": "s by which a lock that nobody else wants makes an update longer",
    "spin_s": "s for which who waits for a spin lock looks all the time",
    "yield_s": "s between its looks from then on",
    "wake_s": "s to wake who sleeps on a mutex",
    "sleep_s": "s from then until the sleeper runs",
    "doze_s": "s from finding a mutex held until asleep",
    "futex_s": "s of a call of the system for a mutex on which nobody sleeps yet",
    "local_bytes_per_s": "bytes/s from the own socket's memory, of a core",
    "remote_bytes_per_s": "bytes/s from another socket's memory, of a core",
    "sequential_rows": "cost of a nonzero in rows visited as stored / in random ones",
}
CORE = {  # fields of Roofline
    "memory_bytes_per_s": "bytes/s",
    "operator_overhead_s": "s of one eager torch operator",
    "nonzero_s": "s per nonzero of the sparse kernel",
}


def write(folder: Path, name: str, machine: str, found: Sequence[Constant]) -> list[Path]:
    """Write hardware/memory/<name>.yaml and hardware/compute/<name>.yaml into a folder for --config-dir.

    Args:
        machine: what was measured, and when.

    Raises:
        UserError: where that is impossible.
    """
    known = {constant.name: constant for constant in found}
    memory = [
        f"# Sockets, caches and locks of {machine}",
        "_target_: hardware.simulated.memory.SharedMemory",
        *(_line(known[field], unit) for field, unit in MEMORY.items()),
        "pin_policy: spread  # workers round robin over the sockets; fill: all cores of one socket before the next's",
        "memory_policy: interleave  # where lies what names no node: first_touch, interleave or bind:<socket>",
    ]
    flops = {dtype: known[f"flops_per_s.{dtype}"] for dtype in ("float32", "float64")}
    as_float32 = Constant("", flops["float32"].value, "assumed: as float32")
    core = [
        f"# One core of {machine}",
        "_target_: hardware.simulated.compute.Roofline",
        "jitter: none  # random factor of every charge: none, exponential or lognormal(<sigma>), of mean 1",
        "streams: false  # a CPU, which computes or waits",
        "flops_per_s:  # by dtype, flop/s",
        *(f"  {_line(as_float32, 'flop/s', dtype)}" for dtype in ("float16", "bfloat16")),
        *(f"  {_line(constant, 'flop/s', dtype)}" for dtype, constant in flops.items()),
        *(_line(known[field], unit) for field, unit in CORE.items()),
        "kernel_latency_s: 0.0  # s; a CPU has no device to start a kernel on",
        "backward_overhead_s: 0.0  # s; none beyond operator_overhead_s",
        "attention_efficiency: 1.0  # assumed: as products",
    ]
    groups = {"memory": memory, "compute": core}
    return [_put(folder / "hardware" / group / f"{name}.yaml", lines) for group, lines in groups.items()]


def check_folder(folder: Path) -> None:
    """Refuse a folder in which nothing can be written.

    Raises:
        UserError: naming it.
    """
    _put(folder / ".probe", []).unlink()


def _line(constant: Constant, unit: str, name: str = "") -> str:
    said = f"{unit}; {constant.how}" if unit else constant.how
    return f"{name or constant.name}: {_text(constant.value)}  # {said}{_mark(constant)}"


def _mark(constant: Constant) -> str:
    """How far its repetitions lay apart."""
    return "" if constant.spread is None else f"; repetitions within {100 * constant.spread:.2g} %"


def _text(value: float | bool) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, int) else f"{value:.3e}"


def _put(path: Path, lines: Sequence[str]) -> Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n")
    except OSError as error:
        raise UserError(f"--output {path}: cannot be written ({error.strerror}): name another folder") from None
    return path
