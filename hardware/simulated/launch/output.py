"""What ranks print: whole lines, with the rank's number in front."""

import io
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from harness.errors import TwinclockError

_ENDS = re.compile(r"(?<=\n)|(?<=\r)(?!\n)")  # a carriage return ends a line that the next one overwrites


class OutputClosed(TwinclockError):
    """Whoever was to read the output, such as `head`, has gone."""


@contextmanager
def prefixed(shown: str, current_rank: Callable[[], int | None]) -> Iterator[None]:
    """A block in which ranks print so.

    Args:
        shown: the rank whose output is shown, or "all".
        current_rank: that of the calling thread; None for a thread of no rank, which prints as ever.
    """
    kept = sys.stdout, sys.stderr
    streams = [_Prefixed(stream, shown, current_rank) for stream in kept]
    sys.stdout, sys.stderr = streams
    try:
        yield
    finally:
        for stream in streams:
            stream.finish()
        sys.stdout, sys.stderr = kept


class _Prefixed(io.TextIOBase):
    """Writes the lines of ranks with their number in front; what other threads write, as it is."""

    encoding = "utf-8"
    errors = "replace"

    def __init__(self, target: TextIO, shown: str, current_rank: Callable[[], int | None]) -> None:
        self._target, self._shown, self._current_rank = target, shown, current_rank
        self.buffer = _Decoded(self)
        self._begun: dict[int, list[str]] = {}  # pieces of a line without an end, by rank

    def writable(self) -> bool:
        """It is."""
        return True

    def fileno(self) -> int:
        """The target's: what is written there has no prefix."""
        return self._target.fileno()

    def isatty(self) -> bool:
        """As the target."""
        return self._target.isatty()

    def reconfigure(
        self,
        *,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        line_buffering: bool | None = None,
        write_through: bool | None = None,
    ) -> None:
        """Nothing to do: lines are handed on as they end."""

    def write(self, text: str) -> int:
        """Write whole lines; keep the rest."""
        rank = self._current_rank()
        if rank is None:
            return self._target.write(text)
        if self._shown in ("all", str(rank)):
            begun = self._begun.setdefault(rank, [])
            for piece in filter(None, _ENDS.split(text)):
                begun.append(piece)
                if piece[-1] in "\r\n":
                    self._write(rank, begun)
        return len(text)

    def flush(self) -> None:
        """Flush what is written."""
        try:
            self._target.flush()
        except BrokenPipeError:
            raise OutputClosed("nobody reads the output any more") from None

    def finish(self) -> None:
        """Write lines that have no end."""
        for rank, begun in sorted(self._begun.items()):
            if begun:
                self._write(rank, [*begun, "\n"])
        self.flush()

    def _write(self, rank: int, begun: list[str]) -> None:
        line = "".join(begun)
        begun.clear()
        if line != "\r":
            try:
                self._target.write(f"[rank{rank}] {line}")
            except BrokenPipeError:
                raise OutputClosed("nobody reads the output any more") from None


class _Decoded(io.RawIOBase):
    """Bytes written here become text."""

    def __init__(self, target: _Prefixed) -> None:
        self._target = target

    def writable(self) -> bool:
        """It is."""
        return True

    def write(self, data: Any) -> int:
        """Write bytes."""
        self._target.write(bytes(data).decode("utf-8", "replace"))
        return len(data)
