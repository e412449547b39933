"""Results and costs of groups of runs: one table, and bars with intervals."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from hemstitch.report._curves import at
from hemstitch.report._groups import Group
from hemstitch.report._html import Html, element, join, swatch, table
from hemstitch.report._plots import Bar, bar_plot
from hemstitch.report._run import Run, Score
from hemstitch.report._text import NOTHING, duration, interval, known, number, percent

Cell = Callable[[Group], object]
Which = tuple[str, str]  # kind and split of a score


def results_table(groups: Sequence[Group]) -> Html:
    """One row a group, one column a fact that some group has."""
    columns: list[tuple[str, Cell]] = [
        ("Seeds", lambda group: ", ".join(run.seed for run in group.runs)),
        ("Parameters", lambda group: _same(group, lambda run: run.summary.get("parameters"))),
        *((_outcome_name(which), lambda group, which=which: _outcome(group, which)) for which in _outcomes(groups)),
        ("Best dev loss", lambda group: _each([_best_loss(run) for run in group.runs], number)),
        ("Passes", lambda group: number(_mean_end(group, "passes"))),
        ("Wall time", lambda group: duration(_mean_end(group, "wall time"))),
        ("CPU time", lambda group: duration(_mean_end(group, "CPU time"))),
    ]
    rows = [(group_name(k, group), *(cell(group) for _, cell in columns)) for k, group in enumerate(groups)]
    kept = [0, *(i for i in range(1, len(columns) + 1) if any(row[i] != NOTHING for row in rows))]
    header = ("Method", *(title for title, _ in columns))
    shown = table([header[i] for i in kept], [[row[i] for i in kept] for row in rows], numeric=range(1, len(kept)))
    remark = "Means over seeds, with each seed below. Passes are forward plus backward passes over the training set."
    several = any(len(group.runs) > 1 for group in groups) and _outcomes(groups)
    more = " The confidence interval of several seeds is the mean of their intervals." if several else None
    return join((shown, element("p", remark, more, class_="quiet")))


def result_plots(groups: Sequence[Group]) -> Html:
    """For each result a bar a group, with interval and seeds; a group without the result is left out."""
    plots = []
    for which in _outcomes(groups):
        bars = (_bar(k, group, which) for k, group in enumerate(groups))
        known_bars = [bar for bar in bars if known(bar.value)]
        plots.append(bar_plot(known_bars, title=_outcome_name(which), percent=True) if known_bars else None)
    return element("div", *plots, class_="plots") if any(plots) else Html()


def group_name(k: int, group: Group) -> Html:
    """The label of a group beside its colour."""
    return join((swatch(k), group.label))


def _bar(k: int, group: Group, which: Which) -> Bar:
    rates = [rate for rate in _rates(group, which) if known(rate)]
    low, high = _interval(group, which) or (None, None)
    return Bar(
        label=group.label, value=float(np.mean(rates)) if rates else np.nan, low=low, high=high, points=rates, color=k
    )


def _outcomes(groups: Sequence[Group]) -> list[Which]:
    return sorted({(score.kind, score.split) for group in groups for run in group.runs for score in run.scores})


def _outcome_name(which: Which) -> str:
    kind, split = which
    return f"{kind[:1].upper()}{kind[1:]}, {split}"


def _outcome(group: Group, which: Which) -> Html:
    """The mean over seeds, the confidence interval, and each seed."""
    ends = _interval(group, which)
    return _each(_rates(group, which), percent, remark=interval(*ends) if ends else None)


def _scores(group: Group, which: Which) -> list[Score | None]:
    """The result of each run, None where it has none."""
    named = ({(score.kind, score.split): score for score in run.scores} for run in group.runs)
    return [scores.get(which) for scores in named]


def _rates(group: Group, which: Which) -> list[float | None]:
    return [score and score.rate for score in _scores(group, which)]


def _interval(group: Group, which: Which) -> tuple[float, float] | None:
    """The mean of the seeds' intervals, None where a seed lacks one."""
    ends = [(score.low, score.high) if score else (None, None) for score in _scores(group, which)]
    if not all(known(low) and known(high) for low, high in ends):
        return None
    low, high = np.mean(np.array(ends, dtype=float), axis=0)
    return float(low), float(high)


def _best_loss(run: Run) -> float | None:
    given = run.summary.get("best_dev_loss")
    if isinstance(given, int | float):
        return given
    curve = run.curves.get(("dev", "loss"))
    return None if curve is None else float(np.nanmin(np.append(curve.value, np.inf)))


def _mean_end(group: Group, axis: str) -> float | None:
    """How far along an axis the runs went."""
    ends = ([np.nanmax(at(curve, axis), initial=0) for curve in run.curves.values()] for run in group.runs)
    return _mean(max(end, default=None) for end in ends)


def _mean(values: Iterable[float | None]) -> float | None:
    """The mean of what is known, None where nothing is."""
    finite = [value for value in values if known(value)]
    return sum(finite) / len(finite) if finite else None


def _each(values: Sequence[float | None], show: Callable[[float | None], str], remark: str | None = None) -> Html:
    """The mean over seeds, below it a remark and each seed."""
    seeds = ", ".join(map(show, values)) if len(values) > 1 and any(map(known, values)) else None
    return join((show(_mean(values)), *(element("small", line) for line in (remark, seeds) if line)))


def _same(group: Group, fact: Callable[[Run], object]) -> str:
    """A fact that ought not to depend on the seed; every value where it does."""
    values = dict.fromkeys(number(v) if isinstance(v, int | float) else NOTHING for v in map(fact, group.runs))
    return ", ".join(values)
