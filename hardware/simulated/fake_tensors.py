"""Tensors of shapes without values, of all ranks of a run together.

A program does the same to many layers, micro-batches and ranks. Torch remembers what an operator gives of tensors of
some shapes, and spends most of an operator's time on finding that again. `FakeTensors` finds it by a plainer key.
"""

import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

_PLAIN = {int, float, bool, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format}
_UNKNOWN: Any = object()
_UNSAFE_VIEW, _VIEW = torch.ops.aten._unsafe_view.default, torch.ops.aten.view.default


class FakeTensors(FakeTensorMode):
    """Torch's mode, which several threads may be in at a time: what they go back to is each one's own."""

    def __init__(self) -> None:
        self._of_thread = threading.local()
        self._remembered: dict[tuple, Any] = {}  # torch's entries, None where it has none
        super().__init__()

    @property
    def enter_stack(self) -> list:
        """What the calling thread goes back to."""
        return self._of_thread.__dict__.setdefault("stack", [])

    @enter_stack.setter
    def enter_stack(self, stack: list) -> None:
        self._of_thread.__dict__["stack"] = stack

    def __deepcopy__(self, memo: dict) -> "FakeTensors":
        """Itself: copies of its tensors are of the same mode."""
        return self

    def dispatch(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """What an operator gives: as remembered, or else as torch finds it."""
        kwargs = kwargs or {}
        if func is _UNSAFE_VIEW:
            func = _VIEW  # which is the same below autograd, and remembered
        known = [id(func), torch.get_default_dtype(), torch._C._get_default_device(), torch.is_inference_mode_enabled()]
        if not (self._describe(args, known) and self._describe(kwargs.items(), known)):
            return super().dispatch(func, types, args, kwargs)
        key = tuple(known)
        entry = self._remembered.get(key, _UNKNOWN)
        if entry is _UNKNOWN:
            output = super().dispatch(func, types, args, kwargs)
            self._remembered[key] = self._entry(func, args, kwargs)
            return output
        if entry is None:
            return super().dispatch(func, types, args, kwargs)
        made = [self._made(each, args) for each in entry.output_infos]
        return tuple(made) if entry.is_output_tuple else made[0]

    def _describe(self, arguments: Iterable[Any], known: list) -> bool:
        """Append all that torch's answer depends on; false where that is more than this knows of."""
        for each in arguments:
            kind = type(each)
            if kind is FakeTensor:
                if each.fake_mode is not self or each.constant is not None or each.dtype.is_complex:
                    return False
                known += (each.dtype, each.shape, each.stride(), each.storage_offset(), each.fake_device)
                known += (each.requires_grad, each.layout, each.untyped_storage().nbytes())
            elif kind in _PLAIN:
                known += (kind, each)
            elif kind is list or kind is tuple:
                known.append(len(each))
                if not self._describe(each, known):
                    return False
            else:
                return False
        return True

    def _entry(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """What torch remembers of a call just made; None where that is nothing, or nothing plain."""
        try:
            key = self._cache_key(fake_tensor._CacheKeyState(None), func, args, kwargs)
        except fake_tensor._BypassDispatchCache:
            return None
        entry = FakeTensorMode.cache.get(key)
        if not isinstance(entry, fake_tensor._DispatchCacheValidEntry):
            return None
        made = [each.metadata for each in entry.output_infos if each.metadata is not None]
        plain = all(each.layout is torch.strided and not (each.requires_grad or each.is_neg) for each in made)
        return entry if plain else None

    def _made(self, info: Any, args: Sequence[Any]) -> Any:
        """An output, as torch makes it of what it remembers."""
        if info.inplace_idx is not None:
            return args[info.inplace_idx]
        like = info.metadata
        if like is None:
            return info.constant_value
        with fake_tensor.in_kernel_invocation_manager(self):
            made = torch.empty_strided(like.shape, like.stride, dtype=like.dtype, device="meta")
            if info.view_idx is not None:
                storage = args[info.view_idx].untyped_storage()
                made.set_(storage, like.storage_offset, like.shape, like.stride)
        return FakeTensor(self, made, like.device)
