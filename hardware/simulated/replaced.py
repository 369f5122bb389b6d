"""Functions and classes of a module that mean something else in some threads."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any


@contextmanager
def replaced(
    module: Any,
    meanings: Mapping[str, Callable],
    applies: Callable[[], bool],
    classes: Mapping[str, type] | None = None,
) -> Iterator[None]:
    """A block in which names of `module` have another meaning wherever `applies()`.

    Args:
        module: or a class.
        meanings: what is called instead, by name.
        applies: asked at each call, in the thread that calls.
        classes: of what is made instead of an instance, by name, so that `isinstance` tells the truth.
    """
    kept = {name: getattr(module, name) for name in meanings}
    try:
        for name, inside in meanings.items():
            outside = kept[name]
            called = _chosen(outside, inside, applies)
            if isinstance(outside, type):
                called = _chosen_class(outside, called, (classes or {}).get(name, outside))
            setattr(module, name, called)
        yield
    finally:
        for name, before in kept.items():
            setattr(module, name, before)


def _chosen(outside: Callable, inside: Callable, applies: Callable[[], bool]) -> Callable:
    def call(*arguments: Any, **options: Any) -> Any:
        return (inside if applies() else outside)(*arguments, **options)

    return call


def _chosen_class(outside: type, make: Callable, made: type) -> type:
    """A class that is called as `make` is; one derived from it, as torch derives some late, is derived from its own."""

    class Chosen(type(outside)):  # type: ignore[misc]
        """The class of such classes."""

        def __call__(cls, *arguments: Any, **options: Any) -> Any:
            return make(*arguments, **options) if cls is chosen else super().__call__(*arguments, **options)

        def __instancecheck__(cls, thing: object) -> bool:
            return isinstance(thing, (outside, made)) if cls is chosen else super().__instancecheck__(thing)

    chosen: type = Chosen(outside.__name__, (outside,), {"__doc__": outside.__doc__})
    return chosen
