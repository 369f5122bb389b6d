"""Work that may stay in native code for seconds, such as compiling, without keeping Ctrl-C waiting."""

import threading
from collections.abc import Callable


def interruptible(work: Callable[[], None]) -> None:
    """Do `work` in a thread of its own, and wait for it; a KeyboardInterrupt is raised at once, and leaves it behind.

    Python handles signals in the main thread, between two of its own instructions; a compiler makes none for seconds.

    Raises:
        BaseException: what `work` raised.
    """
    raised: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, name="compiling", daemon=True)
    thread.start()
    thread.join()
    if raised:
        raise raised[0]
