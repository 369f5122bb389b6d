"""Arguments that torch refuses at the call, on the rank that gives them, with the kind of exception that it raises."""

from collections.abc import Sequence

import torch

from hardware.simulated.values import Reduction, described

Tensor = torch.Tensor
EVERYWHERE = frozenset({"SUM", "PRODUCT", "MIN", "MAX"})  # reductions that every library has, for every dtype


def check_root(operation: str, root: int, num_ranks: int) -> None:
    """A root is a rank of the group.

    Raises:
        RuntimeError: if it is none.
    """
    if not 0 <= root < num_ranks:
        raise RuntimeError(f"{operation}: invalid root rank {root}: the group has ranks 0 to {num_ranks - 1}")


def check_peer(peer: int | None, tag: int, num_ranks: int) -> None:
    """A message comes from or goes to a rank of the group, or comes from anyone; tags are not negative.

    Raises:
        RuntimeError: otherwise.
    """
    if peer is not None and not 0 <= peer < num_ranks:
        raise RuntimeError(f"there is no rank {peer} to exchange a message with: the group has {num_ranks}")
    if tag < 0:
        raise RuntimeError(f"Tag must be nonnegative, got {tag}")


def check_reduction(by: Reduction, tensors: Sequence[Tensor], library: str) -> None:
    """A reduction has a meaning for what it is given, and the library has it.

    Raises:
        RuntimeError: otherwise.
    """
    if by.name == "PREMUL_SUM" and library != "nccl":
        raise RuntimeError(f"Cannot use ReduceOp.PREMUL_SUM with {library}: only nccl has it")
    for tensor in tensors:
        fractional = tensor.is_floating_point() or tensor.is_complex()
        if by.bitwise and fractional:
            raise RuntimeError(f"Cannot use ReduceOp.{by.name} with non-integral dtype, got {described(tensor)}")
        if by.mean and not fractional and library != "nccl":
            raise RuntimeError(f"Cannot use ReduceOp.{by.name} with {library} and integers, got {described(tensor)}")


def check_sparse(by: Reduction, tensors: Sequence[Tensor], library: str) -> None:
    """Sparse tensors are summed one at a time, by gloo alone.

    Raises:
        RuntimeError: otherwise.
    """
    if library != "gloo":
        raise RuntimeError(f"all_reduce of sparse tensors must be made by gloo, got {library}: make them dense")
    if by.name != "SUM" or len(tensors) != 1 or tensors[0].layout != torch.sparse_coo:
        words = ", ".join(map(described, tensors))
        raise RuntimeError(
            f"all_reduce of sparse tensors must be ReduceOp.SUM of one COO tensor, got {by.name} of {words}"
        )


def check_list(operation: str, name: str, tensors: Sequence[object], length: int) -> None:
    """A list has an entry for every rank.

    Raises:
        RuntimeError: if it has more or less.
    """
    if len(tensors) != length:
        raise RuntimeError(f"{operation}: {name} must have {length} tensors, one for each rank, got {len(tensors)}")


def check_fit(operation: str, given: Tensor, place: Tensor, times: int = 1) -> None:
    """What is given fits into its place, `times` of it into the whole.

    Raises:
        RuntimeError: if the dtypes or the numbers of elements differ.
    """
    if given.dtype != place.dtype or times * given.numel() != place.numel():
        many = "" if times == 1 else f"{times} times "
        raise RuntimeError(f"{operation} of {many}{described(given)} does not fit {described(place)}")


def check_shapes(operation: str, tensors: Sequence[Tensor], pattern: Tensor) -> None:
    """All are like a pattern.

    Raises:
        RuntimeError: if a dtype or shape differs.
    """
    for index, tensor in enumerate(tensors):
        if tensor.dtype != pattern.dtype or tensor.shape != pattern.shape:
            raise RuntimeError(
                f"{operation}: invalid tensor at index {index} of its list (expected {described(pattern)}, got "
                f"{described(tensor)})"
            )


def check_split(tensor: Tensor, sizes: Sequence[int], num_ranks: int) -> None:
    """The rows of a tensor are split among the ranks, by sizes or equally.

    Raises:
        RuntimeError: if they cannot be.
    """
    rows = len(tensor) if tensor.dim() else 0
    if not sizes and rows % num_ranks:
        raise RuntimeError(f"Tensor's dim 0 does not divide equally across {num_ranks} ranks, got {described(tensor)}")
    if sizes and len(sizes) != num_ranks:
        raise RuntimeError(f"Number of tensor splits must be the group's size {num_ranks}, got {list(sizes)}")
    if sizes and sum(sizes) != rows:
        raise RuntimeError(f"Split sizes must sum to dim 0 of {described(tensor)}, got {list(sizes)}")


def check_place(operation: str, tensor: Tensor) -> None:
    """A tensor is in the memory of the host, and dense.

    Raises:
        ValueError: if it is elsewhere, or has no values at all.
        NotImplementedError: if it is sparse.
    """
    if not tensor.is_cpu:
        raise ValueError(
            f"{operation} must be given tensors on cpu, which every simulated device computes with, got "
            f"{described(tensor)} on {tensor.device}"
        )
    if tensor.layout is not torch.strided:
        raise NotImplementedError(f"{operation} has no meaning for sparse tensors: make {described(tensor)} dense")
