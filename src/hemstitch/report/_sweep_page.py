"""The page of a sweep: what was tried, what dev said, what the search cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hemstitch.report._files import write_whole
from hemstitch.report._html import Html, cards, element, note, page, section, table
from hemstitch.report._method_comparison import read_result
from hemstitch.report._plots import Bar, bar_plot
from hemstitch.report._text import NOTHING, duration, known, literal, number, percent, plural

Fields = Mapping[str, Any]
_NAMES = {"wer": "WER"}


def write_sweep_page(folder: str | Path) -> Path:
    """Write ``sweep.html`` beside the ``sweep.json`` in a folder.

    Raises:
        RunError: there is no such result, or the page cannot be written.
    """
    return write_whole(sweep_page(read_result(folder, "sweep.json")), Path(folder) / "sweep.html")


def sweep_page(result: Fields) -> Html:
    """The content of sweep.json as a document."""
    best, cost, rows = result["best"], result["cost"], result["rows"]
    found = [
        ("Best settings", _settings(best["settings"]), f"of {plural(len(rows), 'combination')}"),
        (f"Dev {result['by']}", score(best["score"], result["by"]), "by which it was chosen"),
        *((f"Test {_NAMES.get(name, name)}", percent(value), "had no say") for name, value in best["test"].items()),
    ]
    spent = [
        ("Cost of the search", duration(cost["cpu_seconds"]), f"CPU time of {plural(cost['runs'], 'run')}"),
        ("Passes", number(cost["forward_passes"] + cost["backward_passes"]), "forward and backward, all runs"),
    ]
    remarks = [element("li", remark) for remark in result["remarks"]]
    return page(
        f"Sweep of {result['name']}",
        cards(found, leading=True),
        cards(spent),
        note(element("ul", *remarks)) if remarks else None,
        section("What dev said", _picture(result), _table(result)),
        subtitle=", ".join(best["settings"]),
    )


def score(value: float | None, by: str) -> str:
    """A score on dev: losses as they are, errors in percent."""
    return number(value) if by == "loss" else percent(value)


def _picture(result: Fields) -> Html:
    bars = [
        Bar(label=_settings(row["settings"]), value=row["score"], points=list(row["scores"].values()))
        for row in result["rows"]
        if known(row["score"])
    ]
    return bar_plot(bars, title=f"dev {result['by']}, mean and each seed", percent=result["by"] != "loss")


def _table(result: Fields) -> Html:
    rows: Sequence[Fields] = result["rows"]
    keys = list(rows[0]["settings"])
    header = (*(element("code", key) for key in keys), f"dev {result['by']}", "Seeds", "Outcome", "Passes", "Wall time",
              "CPU time")  # fmt: skip
    shown = [
        (
            *(literal(row["settings"][key]) for key in keys),
            score(row["score"], result["by"]),
            ", ".join(f"{seed}: {score(value, result['by'])}" for seed, value in row["scores"].items()),
            row["status"] + (", beyond the grid" if row["refinement"] else ""),
            number(row["cost"]["forward_passes"] + row["cost"]["backward_passes"]),
            duration(row["cost"]["wall_seconds"]),
            duration(row["cost"]["cpu_seconds"]),
        )
        for row in rows
    ]
    best = [k for k, row in enumerate(rows) if row["settings"] == result["best"]["settings"]]
    return table(header, shown, numeric=range(len(keys), len(header)), marked=best)


def _settings(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} = {literal(value)}" for key, value in settings.items()) or NOTHING
