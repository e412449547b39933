"""Plots: what is drawn, in the colours of the page, with nothing that reaches outside."""

import re

import numpy as np
import pytest

from hemstitch.report import Bar, Series, bar_plot, histogram, line_plot, page, scatter_plot

X = np.arange(5.0)
HOSTILE = "_<b>$x$</b>--> \u4f60\u597d \U0001f600 \x01\ud800 #0a0b00 #0a0b0f"


def paths(svg: str) -> list[np.ndarray]:
    """Points of the open paths in the first series colour."""
    found = re.findall(r'<path d="([^"z]*)"[^>]*stroke: var\(--series-0', svg)
    return [np.array(re.findall(r"[\d.]+", path), dtype=float).reshape(-1, 2) for path in found]


def test_line_follows_the_values():
    (points,) = paths(line_plot([Series(x=X, y=X**2)], title="square"))
    heights = points[0, 1] - points[:, 1]  # SVG counts downwards
    np.testing.assert_allclose(heights / heights[-1], X**2 / 16, atol=2e-3)


def test_gap_where_a_value_is_not_finite():
    y = np.array([1.0, 2.0, np.nan, 2.0, np.inf])
    svg = line_plot([Series(x=X, y=y)], title="gap")
    assert sum(path.count("M") for path in re.findall(r'd="([^"z]*)"[^>]*stroke: var\(--series-0', svg)) == 2


@pytest.mark.parametrize(
    ("y", "logarithmic"), [([1, 10, 1000, 1, 1], True), ([1, 2, 3, 4, 5], False), ([0, 1, 2, 3, 999], False)]
)
def test_decades_are_drawn_logarithmically(y, logarithmic):
    (points,) = paths(line_plot([Series(x=X, y=y)], title="decades"))
    third = (points[0, 1] - points[1, 1]) / (points[0, 1] - points[2, 1])
    assert (abs(third - 1 / 3) < 0.01) == logarithmic


def test_decades_are_named_in_plain_numbers(parse):
    words = parse(line_plot([Series(x=X, y=10.0 ** (X - 4))], title="damping")).text.split()
    assert {"0.0001", "0.01", "1"} <= set(words) and not any("$" in word for word in words)


def test_legend_names_each_label_once(parse):
    lines = [Series(x=X, y=X, label="a <b>"), Series(x=X, y=X + 1, label="a <b>"), Series(x=X, y=X, label="c", color=9)]
    parsed = parse(line_plot(lines, title="two methods"))
    assert parsed.tags.count("li") == 2
    assert parsed.values("class").count("swatch ring") == 1
    assert parsed.text.count("a <b>") == 3  # two tool tips and the legend


def test_bars_show_value_interval_and_results():
    bars = [Bar(label="sgd", value=0.1, low=0.05, high=0.2, points=[0.08, 0.12]), Bar(label="none", value=0.3, color=1)]
    svg = bar_plot(bars, title="WER", percent=True)
    low, high = next(path for path in paths(svg) if len(path) == 2 and path[0, 1] == path[1, 1])
    (bar,) = re.findall(r'<path d="([^"]*)"[^>]*fill: var\(--series-0[^>]*opacity: 0.35', svg)
    left, right = (f(np.array(re.findall(r"[\d.]+", bar), dtype=float)[::2]) for f in (np.min, np.max))
    assert (low[0] - left) / (right - left) == pytest.approx(0.5, abs=0.01)
    assert (high[0] - left) / (right - left) == pytest.approx(2.0, abs=0.01)
    assert "sgd" in svg and svg.count("<use") == 2


def test_histogram_gives_whole_numbers_a_bin_each():
    svg = histogram({"staleness": [0, 0, 0, 1, 2, 2]}, title="staleness")
    (outline,) = re.findall(r'<path d="([^"]*)"[^>]*fill: var\(--series-0', svg)
    heights = sorted({float(y) for _, y in re.findall(r"([\d.]+) ([\d.]+)", outline)}, reverse=True)
    floor = heights[0]
    np.testing.assert_allclose((floor - np.array(heights[1:])) / (floor - heights[-1]), [1 / 3, 2 / 3, 1], atol=5e-3)


@pytest.mark.parametrize("values", [[], [float("nan")], [float("inf"), 1.0]])
def test_nothing_to_draw_is_no_error(parse, values):
    x = list(range(len(values)))
    plots = [line_plot([Series(x=x, y=values)], title="t"), scatter_plot([Series(x=x, y=values)], title="t")]
    plots += [histogram({"a": values}, title="t"), bar_plot([], title="t"), line_plot([], title="t")]
    for plot in plots:
        parse(plot)


def test_hostile_names_stay_text_and_pictures_stay_inside(parse):
    series = [Series(x=X, y=X, label=HOSTILE, title=HOSTILE), Series(x=X, y=X, label="other", color=1)]
    plots = [
        line_plot(series, title=HOSTILE, x_label=HOSTILE),
        scatter_plot(series, title=HOSTILE, x_label=HOSTILE, y_label=HOSTILE),
        bar_plot([Bar(label=HOSTILE, value=1.0)], title=HOSTILE),
        histogram({HOSTILE: X, "b": X + 0.5}, title=HOSTILE),
    ]
    parsed = parse(page("plots", *plots))
    parsed.assert_self_contained()
    assert "://" not in parsed.source
    assert "b" not in parsed.tags


def test_every_colour_follows_the_theme():
    svg = line_plot([Series(x=X, y=X, color=k, label=str(k)) for k in range(8)], title="colours", x_label="x")
    for role in ("--quiet", "--rule", *(f"--series-{k}" for k in range(8))):
        assert f"var({role}, #" in svg
    assert set(re.findall(r"(?<!, )#[0-9a-f]{6}\b", svg)) <= {"#000000"}
