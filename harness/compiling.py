"""Says that native kernels are being compiled, which takes seconds, when numba begins to."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

SENTENCE = "compiling native kernels: some seconds, once for each new one"


@contextmanager
def announced(say: Callable[[str], None]) -> Iterator[None]:
    """A block in which `say` is called once, by the thread that first compiles; numba's cache is silent."""
    from numba.core import event  # noqa: PLC0415 - slow

    class Listener(event.Listener):
        """Hears of compilations of native kernels, as numba tells its listeners of events."""

        said = False

        def on_start(self, event: object) -> None:
            if not self.said:
                self.said = True
                say(SENTENCE)

        def on_end(self, event: object) -> None:
            return

    with event.install_listener("numba:run_pass", Listener()):
        yield
