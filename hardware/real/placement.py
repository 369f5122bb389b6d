"""Where a tensor's pages lie: NUMA policies through the kernel's own calls, and the proof that they took.

    first_touch   a page lies on the node of the worker that first writes it (the kernel's default)
    interleave    pages round-robin over the nodes
    bind:<node>   every page on one node

libnuma is not needed: `mbind` and `move_pages` are called by number (linux/mempolicy.h, mbind(2), move_pages(2)).
"""

import ctypes
import mmap
import os
import platform
from collections import Counter
from collections.abc import Sequence
from math import prod

import numpy as np
import torch

MBIND = {"x86_64": 237, "aarch64": 235}
MOVE_PAGES = {"x86_64": 279, "aarch64": 239}
MPOL_BIND, MPOL_INTERLEAVE = 2, 3
MASK_BITS = 1024  # NUMA nodes a policy mask can name

_libc = ctypes.CDLL(None, use_errno=True)


def allocate(shape: Sequence[int], dtype: torch.dtype, policy: str, nodes: Sequence[int]) -> tuple[torch.Tensor, str]:
    """A tensor in anonymous memory of this process, untouched.

    Returns:
        the tensor, and what `apply_policy` says.
    """
    pages = mmap.mmap(-1, max(prod(shape) * dtype.itemsize, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    tensor = tensor_over(pages, shape, dtype)
    return tensor, apply_policy(tensor, policy, nodes)


def tensor_over(pages: mmap.mmap, shape: Sequence[int], dtype: torch.dtype, offset: int = 0) -> torch.Tensor:
    """A tensor on mapped memory, which it keeps mapped."""
    count = prod(shape)
    if count == 0:
        return torch.empty(tuple(shape), dtype=dtype)
    return torch.frombuffer(pages, dtype=dtype, count=count, offset=offset).view(tuple(shape))


def apply_policy(tensor: torch.Tensor, policy: str, nodes: Sequence[int]) -> str:
    """Set the policy of a tensor's pages that nobody has touched yet. The tensor starts on a page.

    Args:
        policy: one of the three; bind:<node>,<node> leaves the kernel the choice between several nodes.
        nodes: to interleave over.

    Returns:
        the policy, or "unproved: <reason>" where the kernel does not let us choose.
    """
    if policy == "first_touch" or tensor.numel() == 0:
        return policy
    number = MBIND.get(platform.machine())
    if number is None:
        return f"unproved: mbind is not known on {platform.machine()}"
    chosen = nodes if policy == "interleave" else [int(node) for node in policy.removeprefix("bind:").split(",")]
    mask = np.zeros(MASK_BITS // 64, dtype=np.uint64)
    for node in chosen:
        mask[node // 64] |= np.uint64(1 << node % 64)
    mode = MPOL_INTERLEAVE if policy == "interleave" else MPOL_BIND
    length = -(-tensor.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
    # The kernel takes one bit less than it is told (mbind(2), BUGS).
    arguments = (tensor.data_ptr(), length, mode, mask.ctypes.data, MASK_BITS + 1, 0)
    return _call(number, *arguments) or policy


def prove(tensor: torch.Tensor) -> dict[str, int] | str:
    """Ask the kernel where each page of a tensor lies.

    Returns:
        pages by node, e.g. {"0": 12, "1": 12}; pages nobody has touched are under "untouched". Or "unproved: <reason>".
    """
    number = MOVE_PAGES.get(platform.machine())
    if number is None:
        return f"unproved: move_pages is not known on {platform.machine()}"
    first = tensor.data_ptr() // mmap.PAGESIZE * mmap.PAGESIZE
    pages = np.arange(first, tensor.data_ptr() + tensor.nbytes, mmap.PAGESIZE, dtype=np.uint64)
    status = np.full(len(pages), -1, dtype=np.int32)
    refusal = _call(number, 0, len(pages), pages.ctypes.data, None, status.ctypes.data, 0)
    if refusal:
        return refusal
    return {str(node) if node >= 0 else "untouched": n for node, n in sorted(Counter(status.tolist()).items())}


def _call(number: int, *arguments: int | None) -> str:
    words = (ctypes.c_void_p(argument) for argument in arguments)
    if _libc.syscall(ctypes.c_long(number), *words) == 0:
        return ""
    return f"unproved: {os.strerror(ctypes.get_errno())}"
