"""The page of one run: what came out, how it got there, what went wrong, what was recognised, how to do it again."""

import re
import shlex
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from hemstitch.report._curves import run_curves, run_diagnostics, title_of
from hemstitch.report._decoded import decoded_sections
from hemstitch.report._files import write_whole
from hemstitch.report._hessian_free import hessian_free_plots, is_hessian_free
from hemstitch.report._html import Html, cards, details, element, join, note, page, section, table
from hemstitch.report._run import Event, Run, Score, read_run
from hemstitch.report._text import NOTHING, duration, interval, known, literal, number, percent, plural

_EVENT_LIMIT = 300
_ORIGIN = re.compile(r":\d+$")  # the line, behind the file
_LEVELS = ("error", "warning", "info")
_KINDS = {"WER": "Word error rate", "accuracy": "Accuracy"}
_COSTS = {"steps", "forward_passes", "backward_passes", "wall_seconds", "cpu_seconds"}


def write_report(folder: str | Path, path: str | Path | None = None) -> Path:
    """Write the report of a run as one self-contained HTML file.

    Args:
        folder: A run folder, complete or not.
        path: Where to write; ``report.html`` in the run folder by default.

    Returns:
        The path written.

    Raises:
        RunError: The folder is not a run, or the file cannot be written.
    """
    run = read_run(folder)
    return write_whole(report_page(run), path or run.folder / "report.html")


def report_page(run: Run) -> Html:
    """The report of a run as a document."""
    seed = f", seed {run.seed}" if run.seed != "?" else ""
    started = run.environment.get("started")
    steps = hessian_free_plots(run)
    return page(
        f"{run.name}{seed}",
        _state(run),
        headline(run),
        section("Curves", run_curves(run)) if run.metrics else None,
        section("What happened on the way", _events(run)),
        section("What was recognised", decoded_sections(run.decoded)) if run.decoded else None,
        section("Hessian-free steps", steps) if steps else None,
        section("Diagnostics", run_diagnostics(run, leave_out=is_hessian_free if steps else None)),
        section("Configuration", _configuration(run)),
        section("Environment", _environment(run)),
        section("How to reproduce", _reproduction(run)),
        subtitle=f"{run.status}{f', started {started}' if started else ''} · {run.folder.resolve()}",
    )


def headline(run: Run) -> Html:
    """The figures one looks for first."""
    scores = [(f"{_KINDS[score.kind]}, {score.split}", *_score(score)) for score in run.scores]
    costs = list(_cost(run))
    return join((cards(scores, leading=True) if scores else None, cards(costs) if costs else None))


def _score(score: Score) -> tuple[str, str]:
    remarks = []
    if known(score.low) and known(score.high):
        remarks.append(f"confidence interval {interval(score.low, score.high)}")
    if score.errors:
        e = score.errors
        remarks.append(f"{e.insertions} ins, {e.deletions} del, {e.substitutions} sub in {plural(e.words, 'word')}")
    return percent(score.rate), "; ".join(remarks)


def _cost(run: Run) -> Iterator[tuple[str, str, str]]:
    """What the run reached and used; the summary's costs are those of the last line of the metrics."""
    for key, value in run.summary.items():
        if not (key in _COSTS and run.metrics):
            yield title_of(key), _shown(value, key), ""
    if run.metrics:
        last = run.metrics[-1]
        passes = last.forward_passes + last.backward_passes
        split = f"{number(last.forward_passes)} forward, {number(last.backward_passes)} backward"
        yield "Steps", number(last.step), f"epoch {number(last.epoch)}" if known(last.epoch) else ""
        yield "Passes over the data", number(passes), split
        yield "Wall time", duration(last.wall_seconds), f"{duration(last.cpu_seconds)} of CPU time"


def _shown(value: object, key: str = "") -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return duration(value) if key.endswith("seconds") else number(value)
    return NOTHING if value is None else literal(value)


def _state(run: Run) -> Html:
    """How the run ended, and what of its folder is missing."""
    remarks = []
    if run.status == "unfinished":
        reached = f"The last entry is step {number(run.metrics[-1].step)}. " if run.metrics else ""
        command = element("code", shlex.join(["hemstitch", "resume", str(run.folder)]))
        kept = f" from {run.checkpoints[-1].name}" if run.checkpoints else ", though it kept no checkpoint yet"
        ended = "No result.json: this run is still going, or was stopped. "
        remarks.append(note(ended, reached, "Continue with ", command, kept, ".", level="warning"))
    elif run.status != "finished":
        reason = run.result.get("reason") or run.result.get("error") or run.result.get("message")
        remarks.append(note(f"This run ended as: {run.status}. ", reason, level="error"))
    if run.problems:
        missing = element("ul", *(element("li", problem) for problem in run.problems))
        remarks.append(note("Parts of the run folder could not be shown:", missing, level="warning"))
    return join(remarks)


def _events(run: Run) -> Html:
    """Events by kind, worst first, and the single ones folded away."""
    kinds: dict[tuple[str, str], list[Event]] = defaultdict(list)
    for event in run.events:
        kinds[event.level, event.kind].append(event)
    if not kinds:
        return element("p", "Nothing was reported.", class_="quiet")
    ranked = sorted(kinds.items(), key=lambda item: _LEVELS.index(item[0][0]) if item[0][0] in _LEVELS else 0)
    rows = [
        (kind.replace("_", " "), _level(level), number(len(some)), _when(some[0]), _when(some[-1]), some[-1].message)
        for (level, kind), some in ranked
    ]
    kept = [e for _, events in ranked for e in events][:_EVENT_LIMIT]
    single = ((_when(e), duration(e.wall_seconds), _level(e.level), e.kind.replace("_", " "), e.message) for e in kept)
    header = ("kind", "level", "times", "first", "last", "last message")
    title = f"{'All' if len(kept) == len(run.events) else f'{len(kept)} of'} {plural(len(run.events), 'event')}"
    singly = table(("when", "after", "level", "kind", "message"), single, numeric=(1,))
    return join((table(header, rows, numeric=(2,)), details(title, singly)))


def _when(event: Event) -> str:
    return f"step\u00a0{number(event.step)}" if known(event.step) else NOTHING


def _level(level: str) -> Html:
    return element("span", level, class_=level if level in _LEVELS[:2] else "quiet")


def _configuration(run: Run) -> Html:
    """What was chosen, and behind a fold every value; each with its origin."""
    rows = [(element("code", key), element("code", literal(s.value)), s.origin) for key, s in run.config.items()]
    chosen = [row for row in rows if row[2] != "default"]
    header = ("key", "value", "from")
    if not rows:
        return Html()
    everything = details(f"All {plural(len(rows), 'value')}, defaults among them", table(header, rows))
    return join((table(header, chosen) if chosen else None, everything))


def _environment(run: Run) -> Html:
    rows = [(key.replace("_", " "), literal(value)) for key, value in run.environment.items()]
    return table(("what", "value"), rows) if rows else Html()


def _reproduction(run: Run) -> Html:
    if not run.config:
        return Html()
    command, remark = reproduction_command(run)
    return join((element("pre", element("code", command)), element("p", remark, class_="quiet") if remark else None))


def reproduction_command(run: Run) -> tuple[str, str]:
    """The command that trains such a run, and what else has to be said.

    It is the one that was typed, where the environment records it, else made from the origins of the values.
    """
    typed = run.environment.get("command")
    if isinstance(typed, list) and typed[:2] == ["hemstitch", "train"]:
        return shlex.join(map(str, typed)), ""
    origins = {key: _ORIGIN.sub("", s.origin) for key, s in run.config.items()}
    recipes = dict.fromkeys(origin for origin in origins.values() if origin not in ("default", "command line"))
    named = origins.get("name")
    recipe = named if named in recipes else next(iter(recipes), "RECIPE.toml")
    settings = [(key, run.config[key].value) for key, origin in origins.items() if origin == "command line"]
    options = [word for key, value in settings for word in (f"--{key}", literal(value))]
    remark = "" if recipes else "No value came from a recipe: write those above into RECIPE.toml."
    others = ", ".join(file for file in recipes if file != recipe)
    return shlex.join(["hemstitch", "train", recipe, *options]), f"It builds on {others}." if others else remark
