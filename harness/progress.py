"""How far a run is: a bar on a terminal, a line every ten seconds elsewhere.

It has no thread of its own: it draws when it is told something, so that it takes no time from the workers.
"""

import time
from collections import deque
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
    def phase(
        self, name: str, total: int, of: str = "samples", rate: str = "samples/s"
    ) -> Iterator[Callable[[int], None]]:
        """A block with a known amount of work.

        Rates are those of the host, also where the run's own clock is virtual, and count from when the work began: what
        comes before, such as compiling, is not among it.

        Args:
            name: what is done.
            total: how much there is to do.
            of: what that counts, in words.
            rate: what a rate counts, in words; "" for none.

        Yields:
            update: to be called with what is done so far, as often as one likes, and with 0 when the work begins.
        """
        phase = _Phase(name, total, self._clock, of, rate)
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
            phase.drawn.append(phase.done)
            self._console.print(f"{phase.label}: {phase.text()}", markup=False, highlight=False, soft_wrap=True)

        return nullcontext(draw)


class _Phase:
    def __init__(self, label: str, total: int, clock: Callable[[], float], of: str, rate_unit: str) -> None:
        self.label, self.total = label, total
        self._of, self._rate_unit = of, rate_unit
        self.done, self.ended = 0, False
        self.due_s = 0.0  # when to draw next
        self.drawn = deque([0], maxlen=2)  # what was done at the last lines that were drawn
        self._clock, self._start_s = clock, clock()
        self._first: tuple[float, int] | None = None  # seconds and what was done, when last heard of none, or ever
        self._last = (0.0, 0)

    def elapsed_s(self) -> float:
        return self._clock() - self._start_s

    def update(self, done: int, draw: Callable[[], None]) -> None:
        self._last = (self.elapsed_s(), done)
        if done == 0 or self._first is None:
            self._first = self._last
        self.done = min(done, self.total)  # who claims work may take a little more than there is
        if self.elapsed_s() >= self.due_s:
            draw()

    def text(self) -> str:
        """Such as `1,200 of 6,000 samples, 4,000 samples/s, 2 s left`."""
        parts, rate = [f"{self.done:,} of {self.total:,} {self._of}"], self._rate()
        if rate > 0 and self._rate_unit:
            parts.append(f"{f'{rate:,.0f}' if rate >= 10 else f'{rate:.2g}'} {self._rate_unit}")
        if self.ended:
            parts.append(f"{'done' if self.done >= self.total else 'ended'} in {_duration(self.elapsed_s())}")
        elif self.done >= self.total or list(self.drawn) == [self.done] * 2:  # nothing new since the line before
            stage = "finishing" if self.done >= self.total else "at work on what is next"
            parts.append(f"{_duration(self.elapsed_s())} so far, {stage}")
        elif rate > 0:
            parts.append(f"{_duration(max(self.total - self.done, 0) / rate)} left")
        return ", ".join(parts)

    def _rate(self) -> float:
        """A second, since the work began; 0 where nothing is known."""
        (before_s, before), (now_s, now) = self._first or self._last, self._last
        return (now - before) / (now_s - before_s) if now_s > before_s else 0.0


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"
