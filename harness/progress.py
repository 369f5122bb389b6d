"""How far a run is: a bar on a terminal, a line every ten seconds elsewhere.

It has no thread of its own: it draws when it is told something, so that it takes no time from the workers.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as RichBar

REFRESH_S = 0.25
LINE_S = 10.0
LASTS_S = 1.0  # a phase shorter than this says nothing where there is no terminal


class Progress:
    """Shows the phases of a run, one at a time.

    Args:
        console: where, in the parent process.
        clock: seconds of the host.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock

    def say(self, sentence: str) -> None:
        """Print a line; any thread may."""
        self._console.print(sentence, markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def phase(self, name: str, total: int, virtual: bool = False) -> Iterator[Callable[[int], None]]:
        """A block with a known amount of work.

        Rates are those of the host, also where the run's own clock is virtual.

        Args:
            name: what is done.
            total: samples to process.
            virtual: whether the run's own clock is virtual.

        Yields:
            update: to be called with the samples done so far, as often as one likes.
        """
        phase = _Phase(name, total, self._clock, "samples/s (host)" if virtual else "samples/s")
        with self._bar(phase) if self._console.is_interactive else self._lines(phase) as draw:
            try:
                yield lambda done: phase.update(done, draw)
            finally:
                phase.ended = True
                draw()

    @contextmanager
    def _bar(self, phase: "_Phase") -> Iterator[Callable[[], None]]:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[text]}"),
        )
        with RichBar(*columns, console=self._console, auto_refresh=False) as bar:
            task = bar.add_task(phase.label, total=phase.total, text=phase.text())
            phase.due_s += REFRESH_S

            def draw() -> None:
                phase.due_s = phase.elapsed_s() + REFRESH_S
                bar.update(task, completed=phase.done, text=phase.text(), refresh=True)

            yield draw

    def _lines(self, phase: "_Phase") -> AbstractContextManager[Callable[[], None]]:
        phase.due_s = LASTS_S

        def draw() -> None:
            if phase.ended and phase.elapsed_s() < LASTS_S:
                return
            phase.due_s = phase.elapsed_s() + LINE_S
            self._console.print(f"{phase.label}: {phase.text()}", markup=False, highlight=False, soft_wrap=True)

        return nullcontext(draw)


class _Phase:
    def __init__(self, label: str, total: int, clock: Callable[[], float], rate_unit: str) -> None:
        self.label, self.total = label, total
        self._rate_unit = rate_unit
        self.done, self.ended = 0, False
        self.due_s = 0.0  # when to draw next
        self._clock, self._start_s = clock, clock()

    def elapsed_s(self) -> float:
        return self._clock() - self._start_s

    def update(self, done: int, draw: Callable[[], None]) -> None:
        self.done = done
        if self.elapsed_s() >= self.due_s:
            draw()

    def text(self) -> str:
        """Such as `1,200 of 6,000 samples, 4,000 samples/s, 2 s left`."""
        parts, elapsed_s = [f"{self.done:,} of {self.total:,} samples"], self.elapsed_s()
        if self.done > 0 and elapsed_s > 0:
            parts.append(f"{self.done / elapsed_s:,.0f} {self._rate_unit}")
        if self.ended:
            parts.append(f"{'done' if self.done >= self.total else 'ended'} in {_duration(elapsed_s)}")
        elif self.done > 0:
            parts.append(f"{_duration(elapsed_s * max(self.total - self.done, 0) / self.done)} left")
        return ", ".join(parts)


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"
