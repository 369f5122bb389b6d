"""The CUDA devices that torch sees on this machine."""

import subprocess
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class CudaDevice:
    """One of them."""

    name: str
    memory_bytes: int
    capability: str


def devices() -> list[CudaDevice]:
    """All that torch may use, in its order."""
    if not torch.cuda.is_available():
        return []
    seen = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    return [CudaDevice(each.name, each.total_memory, f"{each.major}.{each.minor}") for each in seen]


def has_nccl() -> bool:
    """Whether this torch was built with NCCL."""
    return dist.is_available() and dist.is_nccl_available()


def versions() -> dict[str, Any]:
    """Of the CUDA and the NCCL that torch uses, and of the driver; what is not there is absent."""
    found: dict[str, Any] = {"cuda": torch.version.cuda, "driver": _driver()}
    if has_nccl() and torch.cuda.is_available():
        found["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))
    return {name: version for name, version in found.items() if version}


def _driver() -> str | None:
    try:
        asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        lines = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=30).stdout.split()
    except (OSError, subprocess.SubprocessError):
        return None
    return lines[0] if lines else None
