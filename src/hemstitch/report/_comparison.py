"""The page that sets runs against each other: seeds as thin lines, their mean heavy, and what each method cost.

Curves are drawn against passes and time as well as steps, so that a method that goes through the data twice for
every step does not look better for it.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from hemstitch.errors import RunError
from hemstitch.report._curves import at, axis_scale, axis_tabs, is_main, is_rate, metric_rank, thin, title_of
from hemstitch.report._files import write_whole
from hemstitch.report._groups import SAME, Group, group_runs
from hemstitch.report._html import Html, details, element, join, note, page, section, table
from hemstitch.report._plots import Series, line_plot
from hemstitch.report._results import group_name, result_plots, results_table
from hemstitch.report._run import Run, read_run
from hemstitch.report._text import literal, plural

_SPLIT_ORDER = ("dev", "test", "train")


def write_comparison(folders: Sequence[str | Path], path: str | Path) -> Path:
    """Write one self-contained HTML page that compares runs, grouped by configuration up to the seed.

    Args:
        folders: Run folders; one named twice counts once.
        path: The file to write, or a folder to write ``comparison.html`` into.

    Returns:
        The path written.

    Raises:
        RunError: No folder is named, or one is not a run, or the file cannot be written.
    """
    if not folders:
        raise RunError("no run to compare: name one or more run folders")
    runs = [read_run(folder) for folder in {Path(folder).resolve(): folder for folder in folders}.values()]
    path = Path(path)
    return write_whole(comparison_page(runs), path / "comparison.html" if path.is_dir() else path)


def comparison_page(runs: Sequence[Run]) -> Html:
    """The comparison as a document."""
    groups = group_runs(runs)
    title = " and ".join(group.label for group in groups) if len(groups) <= 2 else f"{len(groups)} configurations"
    return page(
        f"Comparison: {title}",
        _troubles(runs),
        section("Results", result_plots(groups), results_table(groups)),
        section("Curves", axis_tabs(runs, lambda axis: _plots(groups, axis, is_main))),
        section("What differs between the configurations", _differences(groups)),
        section("Diagnostics", _diagnostics(groups)),
        section("Runs", _runs(groups)),
        subtitle=f"{plural(len(runs), 'run')} in {plural(len(groups), 'configuration')}",
    )


def _plots(groups: Sequence[Group], axis: str, chosen: Callable[[str], bool]) -> Iterable[Html]:
    """A plot for each split and metric, a colour a group."""
    runs = [run for group in groups for run in group.runs]
    keys = {key for run in runs for key in run.curves if chosen(key[1])}
    label, scale = axis_scale(axis, (curve for run in runs for curve in run.curves.values()))
    splits = Counter(name for _, name in keys)
    for split, name in sorted(keys, key=_plot_rank):
        series = [line for k, group in enumerate(groups) for line in _lines(group, (split, name), k, axis, scale)]
        curves = [run.curves[split, name] for run in runs if (split, name) in run.curves]
        title = title_of(name, split if splits[name] > 1 else "")
        yield line_plot(series, title=title, x_label=label, percent=is_rate(name, curves))


def _plot_rank(key: tuple[str, str]) -> tuple:
    split, name = key
    return (_SPLIT_ORDER.index(split) if split in _SPLIT_ORDER else len(_SPLIT_ORDER), split, metric_rank(name))


def _lines(group: Group, key: tuple[str, str], color: int, axis: str, scale: float) -> Iterable[Series]:
    """A thin line a seed and a heavy one for their mean; a heavy one for a single seed."""
    present = [(run, run.curves[key]) for run in group.runs if key in run.curves]
    seeds = [(run, *thin(at(curve, axis) / scale, curve.value)[:2]) for run, curve in present]
    mean = _mean_curve([(x, y) for _, x, y in seeds]) if len(seeds) > 1 else None
    look = dict(width=0.8, opacity=0.55) if mean else dict(width=1.8)
    for run, x, y in seeds:
        yield Series(x=x, y=y, label=group.label, title=f"{group.label}, seed {run.seed}", color=color, **look)
    if mean:
        x, y = mean
        yield Series(x=x, y=y, title=f"{group.label}, mean of {len(seeds)} seeds", color=color, width=2.4)


def _mean_curve(lines: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray] | None:
    """The mean where all lines have values, in between interpolated; None where they nowhere overlap."""
    lines = [(x[np.isfinite(x)], y[np.isfinite(x)]) for x, y in lines]
    if not all(len(x) for x, _ in lines):
        return None
    start, end = max(x[0] for x, _ in lines), min(x[-1] for x, _ in lines)
    places = np.unique(np.concatenate([x for x, _ in lines]))
    places = places[(places >= start) & (places <= end)]
    if len(places) < 2:
        return None
    return thin(places, np.mean([np.interp(places, x, y) for x, y in lines], axis=0))[:2]


def _diagnostics(groups: Sequence[Group]) -> Html:
    plots = list(_plots(groups, "steps", lambda name: not is_main(name)))
    return element("div", *plots, class_="plots") if plots else Html()


def _differences(groups: Sequence[Group]) -> Html:
    """One row a differing key with the values of each group, and what they share behind a fold."""
    keys = list(groups[0].differences) if groups else []
    first = groups[0].runs[0].config if groups else {}
    shared = [(element("code", key), literal(s.value)) for key, s in first.items() if key not in (*keys, *SAME)]
    header = ("key", *(group_name(k, group) for k, group in enumerate(groups)))
    rows = [(element("code", key), *(element("code", g.differences[key]) for g in groups)) for key in keys]
    body = table(header, rows) if rows else element("p", "Nothing but the seed.", class_="quiet")
    return join((body, details(f"The same in all: {plural(len(shared), 'key')}", table(("key", "value"), shared))))


def _runs(groups: Sequence[Group]) -> Html:
    rows = [
        (group_name(k, group), run.seed, run.status, element("code", str(run.folder)))
        for k, group in enumerate(groups)
        for run in group.runs
    ]
    return table(("method", "seed", "status", "folder"), rows)


def _troubles(runs: Sequence[Run]) -> Html:
    """Runs that did not finish, or of which something is missing."""
    stopped = [f"{run.folder}: {run.status}" for run in runs if run.status != "finished"]
    missing = [f"{run.folder}: {problem}" for run in runs for problem in run.problems]
    items = [element("li", trouble) for trouble in (*stopped, *missing)]
    return note("Not all runs are complete:", element("ul", *items), level="warning") if items else Html()
