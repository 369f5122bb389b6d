"""How a coordinate of a model is read and added to, whatever it is stored as.

    float32, float64  as they are, or by an atomic addition
    int16             the bits of a bfloat16, the upper half of a float32, rounded stochastically
    int8              a fixed-point number of `quantum` steps in [-127, 127], rounded stochastically
    Hot               a float model whose hottest coordinates are replicated

Stochastic rounding takes the upper neighbour with the probability that makes the mean right: Buckwild! (De Sa, Zhang,
Olukotun, Re, NIPS 2015, section 4). Its random bits are a hash of the update and the coordinate, never of arrival.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from numba import njit, types
from numba.extending import intrinsic, overload

from harness.kernels.native import INLINE, atomic_add

_SLOT = np.empty(0, np.int32)


class Step(NamedTuple):
    """What the updates of a chunk have in common."""

    learning_rate: float
    atomic: bool
    quantum: float


class Hot(NamedTuple):
    """A model in two parts; slots[j] is where coordinate j lies in `hot`, or -1 if it lies in `cold` at j.

    Parts are addresses: numba would count references to arrays at every nonzero, which costs fifty times as much.

    Args:
        cold, hot: addresses of numbers.
        slots: address of int32.
        number: an empty array of the numbers' type.
    """

    cold: int
    hot: int
    slots: int
    number: np.ndarray


@njit(nogil=True)
def hashed(salt: int, number: int) -> int:
    """64 random bits (splitmix64 of Steele, Lea, Flood, OOPSLA 2014), uint64."""
    bits = np.uint64(salt) + np.uint64(number) * np.uint64(0x9E3779B97F4A7C15)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


@njit(nogil=True)
def uniform(bits: int) -> float:
    """A number in [0, 1) of 64 random bits."""
    return np.float64(bits >> np.uint64(11)) * 2.0**-53


@njit(nogil=True)
def normal(bits: int) -> float:
    """A standard normal number of 64 random bits (Box and Muller, Ann. Math. Statist. 1958), at most 6.7 from 0."""
    radius = (np.float64(bits >> np.uint64(32)) + 1.0) * 2.0**-32
    angle = np.float64(bits & np.uint64(0xFFFFFFFF)) * 2.0**-32
    return math.sqrt(-2.0 * math.log(radius)) * math.cos(2.0 * math.pi * angle)


@intrinsic
def _as_float(typing_context: Any, bits: Any) -> Any:
    """The float32 whose bits an uint32 holds."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], context.get_value_type(types.float32))

    return types.float32(types.uint32), generate


@intrinsic
def _value_at(typing_context, address, position, like):
    """What lies at `address`, `position` numbers of the type of the array `like` further."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load(_place(context, builder, signature, arguments))

    return like.dtype(address, position, like), generate


@intrinsic
def _put_at(typing_context, address, position, like, value):
    """Write what `_value_at` reads."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        number = context.cast(builder, arguments[3], signature.args[3], signature.args[2].dtype)
        builder.store(number, _place(context, builder, signature, arguments))
        return context.get_dummy_value()

    return types.void(address, position, like, value), generate


@intrinsic
def _add_atomically_at(typing_context, address, position, like, value):
    """Add to what `_value_at` reads, as one indivisible step."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        number = context.cast(builder, arguments[3], signature.args[3], signature.args[2].dtype)
        builder.atomic_rmw("fadd", _place(context, builder, signature, arguments), number, "acq_rel")
        return context.get_dummy_value()

    return types.void(address, position, like, value), generate


def _place(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    kind = context.get_data_type(signature.args[2].dtype).as_pointer()
    position = context.cast(builder, arguments[1], signature.args[1], types.intp)
    return builder.gep(builder.inttoptr(arguments[0], kind), [position])


@intrinsic
def _as_bits(typing_context: Any, number: Any) -> Any:
    """The bits of a float32, an uint32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], context.get_value_type(types.uint32))

    return types.uint32(types.float32), generate


def load(weights: Any, j: int, step: Step) -> float:
    """Coordinate j of a model, as a float."""
    raise NotImplementedError


def add(weights: Any, j: int, change: float, step: Step, salt: int) -> None:
    """Add to coordinate j of a model.

    Args:
        salt: uint64, different for every update.
    """
    raise NotImplementedError


@overload(load, jit_options=INLINE)
def _load(weights, j, step):
    if isinstance(weights, types.NamedTuple):
        return _load_hot
    return {types.int8: _load_int8, types.int16: _load_bfloat16}.get(weights.dtype, _load_float)


@overload(add, jit_options=INLINE)
def _add(weights, j, change, step, salt):
    if isinstance(weights, types.NamedTuple):
        return _add_hot
    return {types.int8: _add_int8, types.int16: _add_bfloat16}.get(weights.dtype, _add_float)


def _load_float(weights, j, step):
    return weights[j]


def _add_float(weights, j, change, step, salt):
    if step.atomic:
        atomic_add(weights, j, change)
    else:
        weights[j] += change


@njit(**INLINE)
def _bfloat16(bits):
    return _as_float(np.uint32(np.uint16(bits)) << np.uint32(16))


def _load_bfloat16(weights, j, step):
    return _bfloat16(weights[j])


def _add_bfloat16(weights, j, change, step, salt):
    exact = _as_bits(np.float32(_bfloat16(weights[j]) + change))
    noise = np.uint32(hashed(salt, j) >> np.uint64(48))  # 16 bits: those that are cut off
    weights[j] = np.int16(np.uint16((exact + noise) >> np.uint32(16)))


def _load_int8(weights, j, step):
    return np.float32(weights[j] * step.quantum)


def _add_int8(weights, j, change, step, salt):
    exact = weights[j] + change / step.quantum
    rounded = np.floor(exact + uniform(hashed(salt, j)))
    weights[j] = np.int8(min(max(rounded, -127.0), 127.0))


def _load_hot(weights, j, step):
    slot = _value_at(weights.slots, j, _SLOT)
    if slot < 0:
        return _value_at(weights.cold, j, weights.number)
    return _value_at(weights.hot, slot, weights.number)


def _add_hot(weights, j, change, step, salt):
    slot = _value_at(weights.slots, j, _SLOT)
    if slot >= 0:
        _put_at(weights.hot, slot, weights.number, _value_at(weights.hot, slot, weights.number) + change)
    elif step.atomic:
        _add_atomically_at(weights.cold, j, weights.number, change)
    else:
        _put_at(weights.cold, j, weights.number, _value_at(weights.cold, j, weights.number) + change)
