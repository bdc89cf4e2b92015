"""Draw the figures of a report with matplotlib, as inline SVG in the fonts and colors of the page.

Each figure is as narrow as a phone, so that its text is not scaled down there. Figures contain no
names that a user has chosen: legends are text of the page, below the figure.
"""

import io
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import matplotlib
import numpy as np
from cycler import cycler
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..drawing.figures import PALETTE

_INK, _FAINT, _GRID, _PAPER = "#1b2733", "#5b6874", "#dde3e9", "#ffffff"
# Color -> CSS variable of the page that replaces it in the SVG. The variables have other values in
# dark mode.
_VARIABLES = {_INK: "ink", _FAINT: "faint", _GRID: "line", _PAPER: "paper"} | {
    c: f"s{n}" for n, c in enumerate(PALETTE)
}
_FOUND, _MISSED = 0, 4  # indices in PALETTE of a dark and a light color, which also differ in gray
_WIDTH = 3.6  # inches, about 345 pixels on a phone
_MAX_TICKS = 8  # on an axis of sizes
_MAX_POINTS = 500  # per curve; neighboring points of longer curves are averaged
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 9.5,
    "font.sans-serif": ["DejaVu Sans"],  # for the layout; the page shows its own font
    "axes.edgecolor": _FAINT,
    "axes.labelcolor": _INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.8,
    "text.color": _INK,
    "xtick.color": _FAINT,
    "xtick.labelcolor": _INK,
    "ytick.color": _FAINT,
    "ytick.labelcolor": _INK,
    "lines.linewidth": 1.6,
    "axes.prop_cycle": cycler(color=PALETTE),
}


@dataclass
class Drawing:
    """A figure of the report: inline SVG, with title, description and legend.

    Attributes:
        title: heading above the figure.
        svg: the figure.
        alt: description of the figure for screen readers.
        note: text below the figure.
        legend: (label, index of the color in PALETTE) of each curve.
    """

    title: str
    svg: Markup
    alt: str
    note: str = ""
    legend: list[tuple[str, int]] = field(default_factory=list)


@dataclass
class Line:
    """A curve through the points (x, y), which are arrays of equal length."""

    label: str
    x: np.ndarray
    y: np.ndarray


@contextmanager
def _axes(title: str, height: float = 2.5) -> Iterator[tuple[Axes, Callable[[], Markup]]]:
    """Yield axes in the style of the page, and a function that returns them as SVG.

    The SVG of equal figures is equal byte for byte.
    """
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": title}):
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        yield figure.add_subplot(), lambda: _svg(figure)


def _svg(figure: Figure) -> Markup:
    """Return the figure as an SVG element without metadata, styles and unused ids."""
    buffer = io.StringIO()
    figure.savefig(
        buffer, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
    )
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", buffer.getvalue(), flags=re.DOTALL)
    text = re.sub(
        r".*?<svg [^>]*?(viewBox=\"[^\"]*\")[^>]*>", r'<svg \1 aria-hidden="true">', text, count=1, flags=re.DOTALL
    )
    used = set(re.findall(r"[\"(]#([\w.-]+)", text))  # other ids could collide with those of the page
    text = re.sub(r' id="([^"]*)"', lambda match: match[0] if match[1] in used else "", text)
    for color, name in _VARIABLES.items():
        text = text.replace(color, f"var(--{name})")
    return Markup(re.sub(r"\s*\n\s*", "\n", text))


def curves(
    title: str,
    lines: Sequence[Line],
    x_label: str,
    y_label: str,
    *,
    alt: str,
    note: str = "",
    top: float | None = None,
    dots: bool = False,
) -> Drawing:
    """Draw curves over a common x axis. Both axes start at 0.

    Args:
        top: end of the y axis. By default above the highest value; a few values far above all
            others are cut off and mentioned in the note.
        dots: whether to mark each point.
    """
    lines = [_thin_out(line) for line in lines]
    values = np.concatenate([line.y[np.isfinite(line.y)] for line in lines])
    high = float(values.max(initial=0))
    limit = 1.5 * float(np.percentile(values, 97)) if len(values) else 0.0
    if top is None and 0 < limit < high / 2:
        top, count = limit, int((values > limit).sum())
        note = f"{note} Not shown: {count} value{'s' if count > 1 else ''} up to {high:.3g}.".strip()
    with _axes(title) as (ax, to_svg):
        for line in lines:
            ax.plot(line.x, line.y, marker="o" if dots else None, markersize=3.5, clip_on=True)
        ax.set(xlabel=x_label, ylabel=y_label, ylim=(0, top or 1.08 * high or 1))
        ax.set_xlim(left=0)
        svg = to_svg()
    legend = [(line.label, number % len(PALETTE)) for number, line in enumerate(lines)] if len(lines) > 1 else []
    return Drawing(title, svg, alt, note, legend)


def _thin_out(line: Line) -> Line:
    """Average neighboring points of a line with more than ``_MAX_POINTS``."""
    step = -(-len(line.x) // _MAX_POINTS)
    if step < 2:
        return line
    parts = [slice(start, start + step) for start in range(0, len(line.x), step)]
    return Line(line.label, *(np.array([values[part].mean() for part in parts]) for values in (line.x, line.y)))


def precision_recall(title: str, lines: Sequence[Line], alt: str, note: str = "") -> Drawing:
    """Draw precision over recall, both in percent, from 0 to 100."""
    with _axes(title, height=2.9) as (ax, to_svg):
        for line in lines:
            ax.plot(line.x, line.y)
        ax.set(xlabel="recall (%)", ylabel="precision (%)", xlim=(0, 100), ylim=(0, 102))
        svg = to_svg()
    return Drawing(title, svg, alt, note, [(line.label, number) for number, line in enumerate(lines)])


def size_histogram(title: str, side: np.ndarray, found: np.ndarray, alt: str, note: str = "") -> Drawing:
    """Draw a histogram of the sizes of found and missed objects.

    Args:
        side: (M) square root of the area of each object, in pixels.
        found: (M) bool, whether the object was found.
    """
    edges = _size_edges(side)
    hits, misses = (np.histogram(np.clip(side[which], edges[0], None), edges)[0] for which in (found, ~found))
    with _axes(title) as (ax, to_svg):
        ax.bar(edges[:-1], hits, np.diff(edges), align="edge", color=PALETTE[_FOUND], edgecolor=_PAPER)
        ax.bar(edges[:-1], misses, np.diff(edges), hits, align="edge", color=PALETTE[_MISSED], edgecolor=_PAPER)
        _format_sizes(ax, edges, (32, 96))
        ax.set(xlabel="square root of the area (pixels)", ylabel="objects")
        svg = to_svg()
    return Drawing(title, svg, alt, note, [("found", _FOUND), ("missed", _MISSED)])


def anchor_histogram(title: str, side: np.ndarray, anchors: Sequence[float], alt: str, note: str = "") -> Drawing:
    """Draw a histogram of the sizes of objects, with a line at the size of each anchor.

    Args:
        side: (M) square root of the area of each object, in pixels after resizing for the model.
        anchors: square root of the area of each anchor.
    """
    edges = _size_edges(np.concatenate([side, anchors]))
    with _axes(title) as (ax, to_svg):
        counts = np.histogram(np.clip(side, edges[0], None), edges)[0]
        ax.bar(edges[:-1], counts, np.diff(edges), align="edge", color=PALETTE[_FOUND], edgecolor=_PAPER)
        _format_sizes(ax, edges, anchors)
        ax.set(xlabel="square root of the area after resizing (pixels)", ylabel="objects")
        svg = to_svg()
    return Drawing(title, svg, alt, note)


def _size_edges(side: np.ndarray) -> np.ndarray:
    """Return the edges of bins for these sizes, two per doubling."""
    low, high = np.floor(2 * np.log2(max(side.min(), 1))), np.ceil(2 * np.log2(max(side.max(), 2)) + 1e-9)
    return 2 ** (np.arange(low, max(high, low + 1) + 1) / 2)


def _format_sizes(ax: Axes, edges: np.ndarray, limits: Sequence[float]) -> None:
    """Make the x axis one of sizes, with a dashed line at each of the limits, and the y axis one of counts."""
    ax.set_xscale("log", base=2)
    ticks = [tick for tick in 2.0 ** np.arange(0, 14) if edges[0] <= tick <= edges[-1]]
    ticks = ticks[:: -(-len(ticks) // _MAX_TICKS) or 1]
    ax.set_xticks(ticks, [f"{tick:.0f}" for tick in ticks])
    ax.minorticks_off()
    ax.grid(axis="x", visible=False)
    for limit in limits:
        if edges[0] < limit < edges[-1]:
            ax.axvline(limit, color=_FAINT, linewidth=0.9, linestyle=(0, (3, 3)))
    ax.yaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    ax.set_xlim(edges[0], edges[-1])
