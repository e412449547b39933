"""Curves of runs against steps, passes over the data, wall time and CPU time."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from hemstitch.report._html import Html, element, join, tabs
from hemstitch.report._plots import Series, line_plot
from hemstitch.report._run import Curve, Run
from hemstitch.report._text import number

AXES = {"steps": "step", "passes": "passes", "wall time": "wall_seconds", "CPU time": "cpu_seconds"}
_LABELS = {
    "steps": "steps",
    "passes": "forward + backward passes over the training set",
    "wall time": "wall time",
    "CPU time": "CPU time",
}
_UNITS = {"seconds": 1, "minutes": 60, "hours": 3600}
_SPLITS = {"dev": 0, "train": 1, "test": 2}
_RATES = ("error", "accuracy")


def metric_rank(name: str) -> tuple[int, str]:
    """Sorting key: what is optimised, what is hoped for, how fast, and everything else by name."""
    ranks = (name == "loss", any(rate in name for rate in _RATES), name == "learning_rate")
    return ranks.index(True) if any(ranks) else len(ranks), name


def is_main(name: str) -> bool:
    """Whether a metric is shown against every axis; the others (diagnostics) are shown against steps."""
    return metric_rank(name)[0] < 3


def is_rate(name: str, curves: Iterable[Curve]) -> bool:
    """Whether a metric is a fraction to be shown as percent: by its name, and by lying between 0 and 1."""
    named = any(rate in name for rate in _RATES)
    return named and all(np.nanmax(c.value, initial=0) <= 1 and np.nanmin(c.value, initial=1) >= 0 for c in curves)


def axis_tabs(runs: Iterable[Run], draw: Callable[[str], Iterable[Html]]) -> Html:
    """A switch of the x-axis over the plots that `draw` makes for each axis along which the runs move."""
    curves = [curve for run in runs for curve in run.curves.values()]
    moving = [axis for axis in AXES if any(np.nanmax(at(curve, axis), initial=0) > 0 for curve in curves)]
    return tabs("against", {axis: element("div", *draw(axis), class_="plots") for axis in moving or ["steps"]})


def at(curve: Curve, axis: str) -> np.ndarray:
    """Positions along one of :data:`AXES`, times in seconds."""
    return getattr(curve, AXES[axis])


def axis_scale(axis: str, curves: Iterable[Curve]) -> tuple[str, float]:
    """The label of an axis with its unit, and how many of the curves' units make one of it."""
    if not axis.endswith("time"):
        return _LABELS[axis], 1.0
    longest = max((np.nanmax(at(curve, axis), initial=0) for curve in curves), default=0)
    unit = next((unit for unit in ("hours", "minutes") if longest > 3 * _UNITS[unit]), "seconds")
    return f"{_LABELS[axis]} ({unit})", float(_UNITS[unit])


def thin(x: np.ndarray, y: np.ndarray, limit: int = 300) -> tuple[np.ndarray, np.ndarray, tuple | None]:
    """Means over neighbours so that at most `limit` points remain, and the band from least to greatest value.

    Values that are not finite stay visible as gaps. The band is None where nothing had to be averaged.
    """
    y = np.where(np.isfinite(y), y, np.nan)
    group = -(-len(x) // limit)
    if group < 2:
        return x, y, None
    starts = np.arange(0, len(x), group)
    counts = np.diff(np.append(starts, len(x)))
    mean_x, mean_y = (np.add.reduceat(values, starts) / counts for values in (x, y))
    return mean_x, mean_y, (np.minimum.reduceat(y, starts), np.maximum.reduceat(y, starts))


def run_curves(run: Run) -> Html:
    """Every main metric of a run with a line for each split, behind a switch of the x-axis."""
    names = _names([run])
    return axis_tabs([run], lambda axis: (metric_plot(run, name, axis) for name in names if is_main(name)))


def run_diagnostics(run: Run, leave_out: Callable[[str], bool] | None = None) -> Html:
    """Every other metric of a run against steps, but those that are shown elsewhere, and pictures of its state."""
    names = [name for name in _names([run]) if not is_main(name) and not (leave_out and leave_out(name))]
    constant = {name: value for name in names if (value := _constant(run, name)) is not None}
    plots = [metric_plot(run, name, "steps") for name in names if name not in constant]
    plots += [_diagram(content) for content in run.diagrams.values()]
    said = "; ".join(f"{name.replace('_', ' ')} {number(value)}" for name, value in constant.items())
    shown = element("div", *plots, class_="plots") if plots else None
    return join((shown, element("p", f"The same throughout: {said}.", class_="quiet") if said else None))


def _constant(run: Run, name: str) -> float | None:
    """The value that a metric has on every line, all splits together; None where it changes or is not finite."""
    values = np.concatenate([curve.value for (_, metric), curve in run.curves.items() if metric == name])
    return float(values[0]) if np.isfinite(values[0]) and np.all(values == values[0]) else None


def _diagram(content: Mapping[str, Any]) -> Html:
    lines = [Series(x=line["x"], y=line["y"], label=str(line.get("label", "")), color=k)
             for k, line in enumerate(content.get("lines", ()))]  # fmt: skip
    return line_plot(lines, title=str(content.get("title", "")), x_label=str(content.get("x_label", "")))


def metric_plot(run: Run, name: str, axis: str) -> Html:
    """One metric of one run, a line a split."""
    curves = {split: curve for (split, metric), curve in run.curves.items() if metric == name}
    label, scale = axis_scale(axis, run.curves.values())
    series = [_series(split, color, curves[split], axis, scale) for split, color in _colors(curves).items()]
    log_y = False if name == "learning_rate" else None  # a schedule that ends near zero would be all tail
    return line_plot(series, title=title_of(name), x_label=label, log_y=log_y, percent=is_rate(name, curves.values()))


def title_of(name: str, split: str = "") -> str:
    """A metric's name as a caption."""
    words = f"{split} {name}".replace("_", " ").replace("non finite", "non-finite").strip()
    return "CPU" + words[3:] if words.startswith("cpu ") else words[:1].upper() + words[1:]


def _series(split: str, color: int, curve: Curve, axis: str, scale: float) -> Series:
    x, y, band = thin(at(curve, axis) / scale, curve.value)
    return Series(x=x, y=y, band=band, label=split or "run", color=color)


def _colors(curves: Mapping[str, Curve]) -> dict[str, int]:
    others = [split for split in curves if split not in _SPLITS]
    colors = _SPLITS | {split: len(_SPLITS) + k for k, split in enumerate(others)}
    return {split: colors[split] for split in sorted(curves, key=lambda split: -colors[split])}


def _names(runs: Sequence[Run]) -> list[str]:
    return sorted({name for run in runs for _, name in run.curves}, key=metric_rank)
