"""The house style of pictures: SVG that is the same whenever it is drawn, colours that the colour-blind can tell."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

# Okabe and Ito's, without yellow, which is too light for a line.
BLUE, ORANGE, GREEN, RED, PURPLE, SKY, GREY = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#CC79A7",
    "#56B4E9",
    "#666666",
)
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "twinclock",
    "svg.fonttype": "none",  # text stays text: small files, and searchable
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E5E5E5",
    "grid.linewidth": 0.6,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "lines.linewidth": 1.6,
    "lines.markersize": 4,
}
PANEL_INCHES = (4.4, 3.2)


@contextmanager
def canvas(path: Path, panels: int) -> Iterator[Sequence[Axes]]:
    """Axes side by side, saved to `path` (SVG, or PNG to look at) in the end."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(PANEL_INCHES[0] * panels, PANEL_INCHES[1]), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure.subplots(1, panels, squeeze=False)[0]
        figure.savefig(path, dpi=120, metadata={"Date": None} if path.suffix == ".svg" else None)


def line(axes: Axes, x: Sequence[float], y: Sequence[float], colour: str, label: str = "", style: str = "o-") -> None:
    """A curve, with its label at its right end."""
    axes.plot(x, y, style, color=colour)
    if label:
        beside(axes, x[-1], y[-1], label, colour)


def beside(axes: Axes, x: float, y: float, label: str, colour: str) -> None:
    """A label to the right of a point."""
    axes.annotate(label, (x, y), xytext=(6, 0), textcoords="offset points", va="center", color=colour, clip_on=False)


def log_ticks(axes: Axes, which: str, ticks: Sequence[float], labels: Sequence[str]) -> None:
    """A logarithmic axis, "x" or "y", with these ticks alone."""
    getattr(axes, f"set_{which}scale")("log")
    axis = getattr(axes, f"{which}axis")
    axis.set_ticks(list(ticks), list(labels))
    axis.set_minor_locator(NullLocator())


def seconds(value: float) -> str:
    """A duration in its own unit.

    >>> seconds(5e-5), seconds(0.02), seconds(1.5)
    ('50 µs', '20 ms', '1.5 s')
    """
    for unit, factor in (("µs", 1e6), ("ms", 1e3)):
        if value * factor < 999:
            return f"{value * factor:g} {unit}"
    return f"{value:g} s"


def bits_per_s(bytes_per_s: float) -> str:
    """A bandwidth in its own unit.

    >>> bits_per_s(1.25e6), bits_per_s(1.25e9)
    ('10 Mb/s', '10 Gb/s')
    """
    bits = 8 * bytes_per_s
    for unit, factor in (("Gb/s", 1e9), ("Mb/s", 1e6)):
        if bits >= factor:
            return f"{bits / factor:g} {unit}"
    return f"{bits / 1e3:g} kb/s"


def times(axis: object) -> None:
    """Ticks of a speedup: 2x."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))  # type: ignore[attr-defined]


def bars(axes: Axes, values: Mapping[str, Sequence[float]], colours: Sequence[str]) -> None:
    """A horizontal bar for the mean of each name's values, a dot for every value."""
    for height, ((name, own), colour) in enumerate(zip(values.items(), colours, strict=True)):
        average = sum(own) / len(own)
        axes.barh(height, average, color=colour, height=0.7)
        axes.plot(own, [height] * len(own), ".", color="black", markersize=3)
        axes.text(max(own), height, f"  {average:.0f}" if average >= 10 else f"  {average:.2g}", va="center")
        axes.text(0, height, f"{name}  ", va="center", ha="right")
    axes.set_yticks([])
    axes.invert_yaxis()
    axes.grid(False)
    axes.margins(x=0.12)
