"""Which vector instructions torch computes with in workers, so that parallelism within a core is an experiment too.

ATen's own kernels, MKL (matrix products) and oneDNN each choose by the processor when they compute for the first time,
unless the environment says what they may use. It says so to worker processes; a native kernel is compiled by numba for
all that the processor has, and none of this reaches it.
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from harness.errors import WorkerFailed, require


@dataclass(frozen=True)
class Level:
    """What one value of hardware.simd stands for.

    Args:
        flags: that /proc/cpuinfo must have.
        environment: variables that hold ATen, MKL and oneDNN to it.
    """

    flags: frozenset[str]
    environment: dict[str, str]


def _level(flags: str, aten: str, mkl: str, onednn: str) -> Level:
    names = ("ATEN_CPU_CAPABILITY", "MKL_ENABLE_INSTRUCTIONS", "ONEDNN_MAX_CPU_ISA")
    return Level(frozenset(flags.split()), dict(zip(names, (aten, mkl, onednn), strict=True)))


LEVELS = {
    "default": _level("", "default", "SSE4_2", "SSE41"),  # ATen's word for what every x86-64 has, of 128 bits
    "avx2": _level("avx2 fma", "avx2", "AVX2", "AVX2"),  # 256 bits
    "avx512": _level("avx512f avx512bw avx512dq avx512vl", "avx512", "AVX512", "AVX512_CORE"),  # 512 bits
}


def check_level(level: str | None, cpuinfo: Path = Path("/proc/cpuinfo")) -> None:
    """Refuse what this processor lacks; None is anything it has.

    Raises:
        UserError: naming the field.
    """
    if level is None:
        return
    require(level in LEVELS, "hardware.simd", f"must be null or one of {', '.join(LEVELS)}", level)
    lines = (line.partition(":") for line in cpuinfo.read_text().splitlines())
    present = next((set(flags.split()) for name, _, flags in lines if name.strip() == "flags"), set())
    having = [name for name, each in LEVELS.items() if each.flags <= present]
    require(level in having, "hardware.simd", f"must be null or what this processor has: {', '.join(having)}", level)


def environment(level: str | None) -> dict[str, str]:
    """Variables to start a worker process with."""
    return {} if level is None else LEVELS[level].environment


def confirm(level: str | None) -> None:
    """Make sure, in a worker process, that torch has listened.

    Raises:
        WorkerFailed: if it has chosen before it was told.
    """
    chosen = torch.backends.cpu.get_cpu_capability().lower()
    if level is not None and chosen != level:
        raise WorkerFailed(
            f"hardware.simd={level}: torch computes with {chosen}, because a module that workers import has computed "
            "something as it was imported: move that into a function, or use hardware.simd=null"
        )
