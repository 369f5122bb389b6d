"""What numba lacks: prefetches, atomic operations and waiting, as instructions of LLVM and calls of the C library."""

import platform
from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

INLINE = {"nogil": True, "forceinline": True}  # a call for every sample would cost as much as ten nonzeros
LINE_BYTES = 64  # of a cache line
SPINS = 64  # looks of a waiting worker before it gives its core to others between them
_PAUSES = {"x86_64": ("llvm.x86.sse2.pause", []), "aarch64": ("llvm.aarch64.hint", [1])}  # what a spinning core does

lock_mutex = types.ExternalFunction("pthread_mutex_lock", types.int32(types.intp))
unlock_mutex = types.ExternalFunction("pthread_mutex_unlock", types.int32(types.intp))
yield_cpu = types.ExternalFunction("sched_yield", types.int32())


def _address(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    """Of array[position], the first two arguments of an intrinsic."""
    data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
    position = context.cast(builder, arguments[1], signature.args[1], types.intp)
    return builder.gep(data, [position])


@intrinsic
def borrowed(typing_context: Any, data: Any) -> Any:
    """An array, or a tuple of such, whose references are not counted: whoever calls must hold it meanwhile.

    Numba counts references atomically, at branches and at calls: often 100 ns for one nonzero.
    """

    def uncounted(context: Any, builder: Any, kind: Any, value: Any) -> Any:
        if isinstance(kind, types.BaseTuple):
            parts = [uncounted(context, builder, part, builder.extract_value(value, i)) for i, part in enumerate(kind)]
            return context.make_tuple(builder, kind, parts)
        if not isinstance(kind, types.Array):
            return value
        array = context.make_array(kind)(context, builder, value)
        array.meminfo = cgutils.get_null_value(array.meminfo.type)
        array.parent = cgutils.get_null_value(array.parent.type)
        return array._getvalue()

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return uncounted(context, builder, data, arguments[0])

    return data(data), generate


@intrinsic
def prefetch(typing_context: Any, array: Any, position: Any) -> Any:
    """Ask for the cache line of array[position], without waiting for it."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address = builder.bitcast(_address(context, builder, signature, arguments), cgutils.voidptr_t)
        number = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, number, number, number])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        read, keep_in_all_caches, data_cache = number(0), number(3), number(1)
        builder.call(function, [address, read, keep_in_all_caches, data_cache])
        return context.get_dummy_value()

    return types.void(array, position), generate


@intrinsic
def atomic_add(typing_context: Any, array: Any, position: Any, value: Any) -> Any:
    """array[position] += value, as one indivisible step; returns what was there before."""
    operation = "fadd" if isinstance(array.dtype, types.Float) else "add"

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address = _address(context, builder, signature, arguments)
        amount = context.cast(builder, arguments[2], signature.args[2], signature.args[0].dtype)
        return builder.atomic_rmw(operation, address, amount, "acq_rel")

    return array.dtype(array, position, value), generate


@intrinsic
def compare_and_swap(typing_context: Any, array: Any, position: Any, expected: Any, new: Any) -> Any:
    """If array[position] is `expected`, make it `new`, as one indivisible step; returns whether it was."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address = _address(context, builder, signature, arguments)
        numbers = zip(arguments[2:], signature.args[2:], strict=True)
        old, fresh = (context.cast(builder, value, kind, signature.args[0].dtype) for value, kind in numbers)
        return builder.extract_value(builder.cmpxchg(address, old, fresh, "acq_rel", "acquire"), 1)

    return types.boolean(array, position, expected, new), generate


@intrinsic
def load_acquire(typing_context: Any, array: Any, position: Any) -> Any:
    """array[position], read anew each time; what follows does not happen before."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address = _address(context, builder, signature, arguments)
        return builder.load_atomic(address, "acquire", align=signature.return_type.bitwidth // 8)

    return array.dtype(array, position), generate


@intrinsic
def store_release(typing_context: Any, array: Any, position: Any, value: Any) -> Any:
    """array[position] = value; what went before does not happen after."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address = _address(context, builder, signature, arguments)
        number = context.cast(builder, arguments[2], signature.args[2], signature.args[0].dtype)
        builder.store_atomic(number, address, "release", align=signature.args[0].dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, position, value), generate


@intrinsic
def _pause(typing_context: Any) -> Any:
    """Tell the core that it is in a loop that waits."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if platform.machine() in _PAUSES:
            name, numbers = _PAUSES[platform.machine()]
            kind = ir.FunctionType(ir.VoidType(), [ir.IntType(32)] * len(numbers))
            function = cgutils.get_or_insert_function(builder.module, kind, name)
            builder.call(function, [ir.IntType(32)(number) for number in numbers])
        return context.get_dummy_value()

    return types.void(), generate


@njit(nogil=True)
def wait_a_little(turn: int) -> None:
    """What a waiting worker does at its `turn`-th look: first it spins, then it gives its core to others."""
    if turn < SPINS:
        _pause()
    else:
        yield_cpu()
