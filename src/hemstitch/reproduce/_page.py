"""The results page: every entry with the paper's value beside ours, as HTML with pictures and as Markdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from hemstitch.report import Html, Series, element, line_plot, note, page, section, table, write_whole
from hemstitch.report._text import NOTHING, duration, interval, number, percent
from hemstitch.reproduce._engine import read_outcomes
from hemstitch.reproduce._entry import PAPERS, Entry

VERDICTS = ("reproduced", "partly", "not reproduced", "not run")
LOOKS = {"reproduced": "good", "not reproduced": "warning", "not run": "quiet"}
NOT_YET = "not run yet"


def write_page(folder: Path, entries: Sequence[Entry], scale: str) -> Path:
    """Write ``index.html`` beside the outcomes of a scale."""
    outcomes = complete_list(read_outcomes(folder), entries)
    parts = [section(_heading(number, name), *(_entry(o) for o in outcomes if o["paper"] == number))
             for number, name in PAPERS.items()]  # fmt: skip
    whole = page("Results", section("At a glance", _overview(outcomes)), *parts,
                 subtitle=f"Tables and figures of five papers, scale {scale}: {tally(outcomes)}")  # fmt: skip
    return write_whole(whole, folder / "index.html")


def _heading(paper: int, name: str) -> str:
    return f"Paper {paper}: {name}" if paper else name


def complete_list(outcomes: Iterable[dict[str, Any]], entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """An outcome for each entry of the catalogue, in its order; those not run yet say so."""
    found = {outcome["key"]: outcome for outcome in outcomes}
    return [found.get(entry.key, not_yet(entry)) for entry in entries]


def not_yet(entry: Entry) -> dict[str, Any]:
    """The outcome of an entry that has not been run."""
    return {"key": entry.key, "paper": entry.paper, "title": entry.title, "paper_says": entry.paper_says,
            "verdict": "not run", "summary": entry.unavailable or NOT_YET, "rows": [], "plots": [],
            "cpu_seconds": None, "command": f"hemstitch reproduce {entry.key}"}  # fmt: skip


def tally(outcomes: Sequence[dict[str, Any]]) -> str:
    """3 reproduced, 1 partly, ..."""
    counts = Counter(outcome["verdict"] for outcome in outcomes)
    return ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS if counts[verdict])


def _overview(outcomes: Sequence[dict[str, Any]]) -> Html:
    rows = [(element("a", o["key"], href=f"#{_anchor(o)}"), o["title"],
             element("span", o["verdict"], class_=LOOKS.get(o["verdict"])), duration(o["cpu_seconds"]))
            for o in outcomes]  # fmt: skip
    return table(("Entry", "What", "Verdict", "CPU time"), rows, numeric=(3,))


def _anchor(outcome: dict[str, Any]) -> str:
    return outcome["key"].replace("/", "-")


def _entry(outcome: dict[str, Any]) -> Html:
    level = {"reproduced": "info", "partly": "info", "not run": "info"}.get(outcome["verdict"], "warning")
    return element(
        "article",
        element("h3", f"{outcome['key']}: {outcome['title']}", id=_anchor(outcome)),
        element("p", f"The paper: {outcome['paper_says']}", class_="quiet"),
        note(element("strong", outcome["verdict"].capitalize()), ". ", outcome["summary"], level=level),
        _rows(outcome["rows"]),
        element("div", *(_plot(plot) for plot in outcome["plots"]), class_="plots") if outcome["plots"] else None,
        element("pre", element("code", outcome["command"])),
    )


def _rows(rows: Sequence[dict[str, Any]]) -> Html:
    if not rows:
        return Html()
    cells = [(r["quantity"], r["paper"] or NOTHING, shown(r), _range(r) or NOTHING, r["seeds"]) for r in rows]
    return table(("", "Paper", "Ours", "Range", "Seeds"), cells, numeric=(1, 2, 3, 4))


def shown(row: dict[str, Any]) -> str:
    """Our value of a row."""
    return (percent if row["percent"] else number)(row["ours"])


def _range(row: dict[str, Any]) -> str:
    low, high = row["low"], row["high"]
    if low is None or high is None:
        return ""
    return interval(low, high) if row["percent"] else f"{number(low)} to {number(high)}"


def _plot(plot: dict[str, Any]) -> Html:
    labels = list(dict.fromkeys(line["label"] for line in plot["lines"]))
    series = [
        Series(x=_gaps(line["x"]), y=_gaps(line["y"]), label=line["label"], color=labels.index(line["label"]),
               band=line["band"] and tuple(map(_gaps, line["band"])))
        for line in plot["lines"]
    ]  # fmt: skip
    return line_plot(series, title=plot["title"], x_label=plot["x_label"], log_y=plot["log_y"], percent=plot["percent"])


def _gaps(values: Sequence[float | None]) -> list[float]:
    return [float("nan") if value is None else value for value in values]


def markdown(outcomes: Sequence[dict[str, Any]], scale: str) -> str:
    """The same as one Markdown text without pictures: what docs/results.md holds."""
    lines = [
        "# Results",
        "",
        f"Generated from the outcome files in `results/{scale}`; do not edit. {tally(outcomes)}.",
        "Each command can be given again and goes on where it was stopped; `hemstitch reproduce all` runs everything",
        "and writes the same page with pictures.",
        "",
        "| entry | what | verdict | CPU time |",
        "|---|---|---|---|",
        *(f"| {o['key']} | {o['title']} | {o['verdict']} | {duration(o['cpu_seconds'])} |" for o in outcomes),
    ]
    for number_, name in PAPERS.items():
        lines += ["", f"## {_heading(number_, name)}"]
        for outcome in (o for o in outcomes if o["paper"] == number_):
            lines += ["", *_markdown_entry(outcome)]
    return "\n".join(lines) + "\n"


def _markdown_entry(outcome: dict[str, Any]) -> list[str]:
    cost = f"; {duration(outcome['cpu_seconds'])} of CPU time" if outcome["cpu_seconds"] else ""
    lines = [
        f"### {outcome['key']}: {outcome['title']}",
        "",
        f"The paper: {outcome['paper_says']}",
        "",
        f"**{outcome['verdict'].capitalize()}.** {outcome['summary']}",
        "",
        f"`{outcome['command']}`{cost}",
    ]
    if outcome["rows"]:
        lines += ["", "| | paper | ours | range | seeds |", "|---|---|---|---|---|"]
        lines += [f"| {r['quantity']} | {r['paper'] or NOTHING} | {shown(r)} | {_range(r) or NOTHING} | {r['seeds']} |"
                  for r in outcome["rows"]]  # fmt: skip
    return lines
