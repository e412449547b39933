"""The page of a cross-validated comparison: which method is better, by how much, how sure; one table, one picture."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hemstitch.errors import RunError
from hemstitch.report._files import write_whole
from hemstitch.report._html import Html, details, element, join, note, page, section, swatch, table
from hemstitch.report._plots import Bar, bar_plot
from hemstitch.report._text import NOTHING, duration, interval, known, literal, number, percent, plural

Fields = Mapping[str, Any]

ONE_SEED = (
    "One seed: the intervals take the networks as they are, and say nothing on what other seeds would have given. "
    "False alarms are two to four times as frequent as they should be."
)


def write_method_comparison(folder: str | Path) -> Path:
    """Write ``comparison.html`` beside the ``cross-validation.json`` in a folder.

    Raises:
        RunError: there is no such result, or the page cannot be written.
    """
    return write_whole(
        method_comparison_page(read_result(folder, "cross-validation.json")), Path(folder) / "comparison.html"
    )


def read_result(folder: str | Path, name: str) -> dict[str, Any]:
    """A result of an experiment, from its folder.

    Raises:
        RunError: it is not there or not JSON.
    """
    path = Path(folder) / name
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise RunError(f"{path} cannot be read ({error}): run the experiment again, it goes on where it was") from None


def method_comparison_page(result: Fields) -> Html:
    """The content of cross-validation.json as a document."""
    methods, pairs = result["methods"], result["comparisons"]
    names = " and ".join(method["name"] for method in methods) if len(methods) <= 2 else f"{len(methods)} methods"
    seeds = f"{'seeds' if len(result['seeds']) > 1 else 'seed'} {', '.join(map(str, result['seeds']))}"
    size = f"{plural(result['words'], 'word')} of {plural(result['units'], 'speaker')}"
    images = f"{plural(result['words'], 'image')} in {plural(result['units'], 'block')}"
    return page(
        f"{names}, cross-validated",
        note(ONE_SEED, level="warning") if len(result["seeds"]) == 1 else None,
        section("Verdict", *(element("p", verdict(pair)) for pair in pairs)),
        section(
            "Results", element("div", *_pictures(result), class_="plots"), _methods_table(result), _pairs_table(pairs)
        ),
        section("Settings", *(_settings(method) for method in methods)),
        section("Again", _command(result)),
        subtitle=f"{size if result['measure'] == 'WER' else images}, {result['folds']} folds, {seeds}",
    )


def verdict(pair: Fields) -> str:
    """One sentence on two methods."""
    a, b, relative = pair["a"], pair["b"], pair["relative"]
    if relative is None:
        return f"{b} makes no errors, so there is no relative gain; {a} has {points(-pair['absolute'])} more."
    ends = pair["relative_low"], pair["relative_high"]
    how = "fewer" if relative >= 0 else "more"
    ends = ends if relative >= 0 else (-ends[1], -ends[0])
    fact = f"{a} makes {percent(abs(relative))} {how} errors than {b} (95 %: {interval(*ends)})"
    belief = f"it is the better one with a probability of {sure(pair['probability'])}"
    unclear = "The two cannot be told apart: " if pair["verdict"] == "unclear" else ""
    return f"{unclear}{fact}; {belief}."


def points(difference: float) -> str:
    """A difference of rates: 0.0123 is 1.23 points."""
    return f"{100 * difference:.2f}\u00a0points"


def sure(probability: float) -> str:
    """A probability from some thousand replicates, which cannot tell certainty."""
    if not 0.001 <= probability <= 0.999:
        return "more than 99.9\u00a0%" if probability > 0.5 else "less than 0.1\u00a0%"
    return percent(probability)


def _pictures(result: Fields) -> Sequence[Html]:
    """Error rates, and gains: bars with 95 % intervals and a dot a seed."""
    rates = [
        Bar(label=m["name"], value=m["rate"], low=m["low"], high=m["high"], points=list(m["seeds"].values()), color=k)
        for k, m in enumerate(result["methods"])
    ]
    gains = [
        Bar(
            label=f"{pair['a']} against {pair['b']}",
            value=pair["relative"],
            low=pair["relative_low"],
            high=pair["relative_high"],
            points=[gain for gain in pair["by_seed"] if known(gain)],
            color=k,
        )
        for k, pair in enumerate(result["comparisons"])
        if known(pair["relative"])
    ]
    title = f"{result['measure']}, all folds"
    pictures = [bar_plot(rates, title=title, percent=True)]
    return [*pictures, bar_plot(gains, title="Relative gain", percent=True)] if gains else pictures


def _methods_table(result: Fields) -> Html:
    measure = result["measure"]
    header = ("Method", f"{measure}, all folds", f"{measure}, official test", "Paper",
              "Passes", "Wall time", "CPU time", "Tuning")  # fmt: skip
    rows = [
        (
            join((swatch(k), m["name"])),
            _with_seeds(percent(m["rate"]), interval(m["low"], m["high"]), m["seeds"]),
            _with_seeds(percent(_mean(m["official"])), None, m["official"]),
            m["paper"] or NOTHING,
            number(m["cost"]["forward_passes"] + m["cost"]["backward_passes"]),
            duration(m["cost"]["wall_seconds"]),
            duration(m["cost"]["cpu_seconds"]),
            duration(m["tuning"]["cpu_seconds"]) if m["tuning"] else NOTHING,
        )
        for k, m in enumerate(result["methods"])
    ]
    remark = (
        "Means over seeds, below them the 95 % interval and each seed. The cost is that of all runs on folds; passes "
        "are forward plus backward passes over the training set, tuning is CPU time."
    )
    return join((table(header, rows, numeric=range(1, 8)), element("p", remark, class_="quiet")))


def _pairs_table(pairs: Sequence[Fields]) -> Html:
    if not pairs:
        return Html()
    rows = [
        (
            f"{pair['a']} against {pair['b']}",
            _with_seeds(points(pair["absolute"]), f"{points(pair['low'])} to {points(pair['high'])}", {}),
            _with_seeds(percent(pair["relative"]), _ends(pair), dict(enumerate(pair["by_seed"]))),
            sure(pair["probability"]),
        )
        for pair in pairs
    ]
    header = ("Comparison", "Gain", "Relative gain", "Probability of a gain")
    several = (
        f" {len(pairs)} comparisons were made: the more there are, the likelier one looks sure by chance."
        if len(pairs) > 1
        else ""
    )
    remark = "A gain is positive where the method named first is better." + several
    return join((table(header, rows, numeric=range(1, 4)), element("p", remark, class_="quiet")))


def _ends(pair: Fields) -> str | None:
    ends = pair["relative_low"], pair["relative_high"]
    return interval(*ends) if all(known(end) for end in ends) else None


def _with_seeds(value: str, ends: str | None, seeds: Mapping[Any, float | None]) -> Html:
    each = ", ".join(percent(rate) for rate in seeds.values()) if len(seeds) > 1 else None
    return join((value, *(element("small", line) for line in (ends, each) if line)))


def _mean(rates: Mapping[str, float]) -> float | None:
    return sum(rates.values()) / len(rates) if rates else None


def _settings(method: Fields) -> Html:
    rows = [(element("code", key), element("code", literal(value))) for key, value in method["settings"].items()]
    return details(method["name"], table(("key", "value"), rows))


def _command(result: Fields) -> Html:
    command = result.get("environment", {}).get("command", [])
    return element("pre", element("code", " ".join(map(str, command)))) if command else Html()
