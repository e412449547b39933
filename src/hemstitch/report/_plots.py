"""Plots as inline SVG that follow the page: they take its colours (light or dark), its font and its width.

Matplotlib draws in place-holder colours; each is then replaced by the style variable of its role, with the light
colour as what is shown outside such a page. Legends are HTML below the picture, so that long names wrap and nothing
covers a curve. Text stays text, no name is read as mathematics, and nothing in the SVG points outside.

Matplotlib is imported at the first plot (half a second), never with its global state (pyplot).
"""

import hashlib
import html
import io
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hemstitch.report._html import Html, element, swatch
from hemstitch.report._text import clean, shorten

Axes = Any  # matplotlib.axes.Axes, not imported here
Values = Sequence[float] | np.ndarray

_SERIES = [f"#0a0b{k:02x}" for k in range(8)]
_TEXT, _RULE = "#0a0c00", "#0a0c01"
_THEME = {
    **dict(zip(_SERIES, ("#2a5db0", "#c4570a", "#1f7a4a", "#a8327e", "#0b7d8c", "#8a6a00", "#6a48b8", "#5b6470"))),
    _TEXT: "#5c6670",
    _RULE: "#dde1e5",
}
_VARIABLES = {**{color: f"--series-{k}" for k, color in enumerate(_SERIES)}, _TEXT: "--quiet", _RULE: "--rule"}
_DASHES = ("-", "--", ":", "-.")
_RC = {
    "svg.fonttype": "none",
    "svg.hashsalt": "hemstitch",
    "text.usetex": False,
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "axes.unicode_minus": True,
    "path.simplify": True,
}


@dataclass(frozen=True, kw_only=True)
class Series:
    """Points of a line or a scatter plot.

    Attributes:
        x: Positions.
        y: Heights of the same length; what is not finite leaves a gap.
        label: Entry in the legend, shared by all series of the same label; none where it is empty.
        title: What is shown when the pointer rests on it; the label where it is empty.
        color: Number of the colour; from 8 on the colours repeat with dashes.
        width: Line width in points, or the diameter of a scatter plot's dots over 3.
        opacity: 0 to 1.
        band: Lower and upper edge of a faint area around the line.
    """

    x: Values
    y: Values
    label: str = ""
    title: str = ""
    color: int = 0
    width: float = 1.6
    opacity: float = 1.0
    band: tuple[Values, Values] | None = None


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A value with its interval and the single results behind it (such as one a seed)."""

    label: str
    value: float
    low: float | None = None
    high: float | None = None
    points: Values = ()
    color: int = 0


def line_plot(
    series: Sequence[Series], *, title: str, x_label: str = "", log_y: bool | None = None, percent: bool = False
) -> Html:
    """Lines over a common axis.

    Args:
        series: What to draw, later ones on top.
        title: Caption.
        x_label: Below the axis.
        log_y: Logarithmic heights; None: where all are positive and span more than a factor of 100.
        percent: Heights are fractions, shown as percent.
    """

    def paint(axes: Axes) -> None:
        for k, line in enumerate(series):
            look = dict(color=_SERIES[line.color % 8], alpha=line.opacity, linewidth=line.width)
            marker = "o" if np.isfinite(line.y).sum() == 1 else None
            dashes = _DASHES[line.color // 8 % len(_DASHES)]
            axes.plot(line.x, line.y, dashes, marker=marker, markersize=4, gid=f"series-{k}", **look)
            if line.band:
                axes.fill_between(line.x, *line.band, color=look["color"], alpha=0.15 * line.opacity, linewidth=0)
        if _spans_decades(series) if log_y is None else log_y:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")  # matplotlib's own writes TeX
            axes.yaxis.set_minor_formatter(lambda value, _: "")
        if percent:
            axes.yaxis.set_major_formatter(_percent)
        _count_in_integers(axes, series)

    return _figure(paint, series, title=title, x_label=x_label)


def scatter_plot(series: Sequence[Series], *, title: str, x_label: str = "", y_label: str = "") -> Html:
    """Dots, such as the cost of a run against its result; `y_label` goes into the caption."""

    def paint(axes: Axes) -> None:
        for k, dots in enumerate(series):
            area = (3 * dots.width) ** 2
            axes.scatter(dots.x, dots.y, area, _SERIES[dots.color % 8], alpha=dots.opacity, gid=f"series-{k}", lw=0)
        _count_in_integers(axes, series)

    return _figure(paint, series, title=f"{title} ({y_label})" if y_label else title, x_label=x_label)


def bar_plot(bars: Sequence[Bar], *, title: str, x_label: str = "", percent: bool = False) -> Html:
    """Horizontal bars from the top, each with its interval (a line) and single results (dots)."""
    places = np.arange(len(bars))[::-1]

    def paint(axes: Axes) -> None:
        for k, (place, bar) in enumerate(zip(places, bars)):
            color = _SERIES[bar.color % 8]
            axes.barh(place, bar.value, height=0.32, color=color, alpha=0.35, gid=f"series-{k}", linewidth=0)
            if bar.low is not None and bar.high is not None:
                axes.plot([bar.low, bar.high], [place, place], color=color, linewidth=2)
            axes.plot(bar.points, np.full(len(bar.points), place), "o", color=color, markersize=3.5)
            axes.text(0, place + 0.25, shorten(clean(bar.label), 60), color=_TEXT, fontsize=9.5, in_layout=False)
        axes.set_yticks([])
        axes.set_ylim(-0.35, len(bars) - 0.38)
        axes.set_xlim(left=min(0.0, axes.get_xlim()[0]))
        axes.locator_params(axis="x", nbins=6)
        if percent:
            axes.xaxis.set_major_formatter(_percent)

    titles = [Series(x=(), y=(), title=bar.label) for bar in bars]
    return _figure(paint, titles, title=title, x_label=x_label, height=0.45 + 0.55 * max(len(bars), 2))


def histogram(samples: Mapping[str, Values], *, title: str, x_label: str = "", bins: int = 30) -> Html:
    """How often values occur, one outline a label on common bins; whole numbers of a small range get a bin each."""
    finite = {label: np.asarray(values, dtype=float) for label, values in samples.items()}
    finite = {label: values[np.isfinite(values)] for label, values in finite.items()}
    edges = _edges(np.concatenate([*finite.values(), []]), bins)

    def paint(axes: Axes) -> None:
        for k, values in enumerate(finite.values()):
            look = dict(color=_SERIES[k % 8], alpha=0.35, linewidth=0, gid=f"series-{k}")
            axes.stairs(np.histogram(values, edges)[0], edges, fill=True, **look)

    legend = [Series(x=(), y=(), label=label, color=k) for k, label in enumerate(finite)]
    return _figure(paint, legend, title=title, x_label=x_label)


def _edges(values: np.ndarray, bins: int) -> np.ndarray:
    if not len(values):
        return np.array([0.0, 1.0])
    low, high = values.min(), values.max()
    if high - low < 2 * bins and np.array_equal(values, values.round()):
        return np.arange(low, high + 2) - 0.5
    return np.histogram_bin_edges(values, bins)


def _count_in_integers(axes: Axes, series: Sequence[Series]) -> None:
    """No tick between two steps."""
    places = np.concatenate([*(np.asarray(line.x, dtype=float) for line in series), []])
    if len(places) and np.array_equal(places, places.round()):
        axes.locator_params(axis="x", integer=True)


def _spans_decades(series: Sequence[Series]) -> bool:
    heights = np.concatenate([*(np.asarray(line.y, dtype=float) for line in series), []])
    heights = heights[np.isfinite(heights)]
    return bool(len(heights)) and heights.min() > 0 and heights.max() > 100 * heights.min()


def _percent(value: float, _: int) -> str:
    return f"{100 * value:g}\u00a0%"


def _figure(
    paint: Callable[[Axes], None], series: Sequence[Series], *, title: str, x_label: str, height: float = 2.8
) -> Html:
    """The painted axes as a figure with caption and legend."""
    titles = [line.title or line.label for line in series]
    legend = {line.label: line.color for line in reversed(series) if line.label}
    entries = [element("li", swatch(color), label) for label, color in reversed(legend.items())]
    return element(
        "figure",
        element("figcaption", title),
        _picture(paint, titles, x_label=x_label, height=height, name=title),
        element("ul", *entries, class_="legend") if len(entries) > 1 else None,
        class_="plot",
    )


def _picture(paint: Callable[[Axes], None], titles: Sequence[str], *, x_label: str, height: float, name: str) -> Html:
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    stream = io.BytesIO()
    with matplotlib.rc_context(_RC), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # measured in another font than the browser's
        figure = Figure(figsize=(4.7, height), layout="constrained")
        axes = figure.subplots()
        _dress(axes)
        paint(axes)
        axes.set_xlabel(clean(x_label), color=_TEXT, fontsize=9.5)
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        FigureCanvasSVG(figure).print_svg(stream, metadata=nothing)
    return _embed(stream.getvalue().decode("utf-8"), titles, name)


def _dress(axes: Axes) -> None:
    for part in (axes.figure.patch, axes.patch):
        part.set_visible(False)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(_RULE)
    axes.tick_params(which="both", length=0, labelsize=9.5, labelcolor=_TEXT)
    axes.grid(True, color=_RULE, linewidth=0.7)
    axes.set_axisbelow(True)


def _embed(svg: str, titles: Sequence[str], name: str) -> Html:
    """The bare element with themed colours, its own names, tool tips, and nothing that reaches outside."""
    svg = re.sub(r"<style.*?</style>|<!--.*?-->", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r"\s*\n\s*", " ", svg)
    svg = re.sub(r' d="[^"]*"', lambda path: re.sub(r"\d+\.\d+", lambda m: f"{float(m[0]):.1f}", path[0]), svg)
    svg = re.sub(r' (xmlns|xmlns:xlink|version)="[^"]*"', "", svg).replace("xlink:href", "href")
    svg = re.sub(r'<g id="series-(\d+)">', lambda m: f"<g>{_tool_tip(titles[int(m[1])])}", svg)
    svg = re.sub(r'<g id="[^"]*">', "<g>", svg)
    own = f"p{hashlib.sha256(svg.encode()).hexdigest()[:8]}-"
    svg = re.sub(r'(?<=[ "])(id="|url\(#|href="#)', rf"\1{own}", svg)
    svg = re.sub("|".join(_VARIABLES), lambda m: f"var({_VARIABLES[m[0]]}, {_THEME[m[0]]})", svg)
    svg = re.sub(r' (width|height)="[^"]*pt"', "", svg, count=2)
    return Html(svg.replace("<svg", f'<svg role="img" aria-label="{html.escape(clean(name))}"', 1).strip())


def _tool_tip(title: str) -> str:
    return element("title", title) if title else ""
