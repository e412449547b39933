"""A run folder as its training left it, complete, still going, or cut short in the middle of a line.

=======================  ==============================================================================
``config.json``          {"section.field": {"value", "origin"}, ...}
``environment.json``     versions, platform, threads, device, start
``metrics.jsonl``        step, epoch, samples, passes, wall and CPU seconds, split, name, value
``events.jsonl``         wall_seconds, step, level, kind, message
``checkpoints/``         step-00001234.safetensors
``diagrams/NAME.json``    title, x_label, lines of label, x and y
``decode/SPLIT.jsonl``   id, speaker, reference, hypothesis, seconds
``result.json``          status, summary, word error rates, accuracies
=======================  ==============================================================================

Only a folder that is no run at all is refused. Whatever else is missing, half-written or unreadable is left out and
named in :attr:`Run.problems`.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from hemstitch.errors import RunError
from hemstitch.report._align import Errors, Pair, align_words, count_errors, sum_errors

Record = TypeVar("Record")
_UNREADABLE = (ValueError, TypeError, KeyError, AttributeError, ArithmeticError, RecursionError)
_EXPECTED = "expected a folder that `hemstitch train` has written, with config.json and metrics.jsonl in it"


@dataclass(frozen=True)
class Setting:
    """One configuration value and where it came from (default, a recipe file, command line)."""

    value: object
    origin: str


class Metric(NamedTuple):
    """One line of ``metrics.jsonl``; a count that the line lacks is NaN."""

    step: float
    epoch: float
    samples: float
    forward_passes: float
    backward_passes: float
    wall_seconds: float
    cpu_seconds: float
    split: str
    name: str
    value: float


@dataclass(frozen=True)
class Curve:
    """A metric over the course of a run, float64 arrays of equal length.

    `passes` adds forward and backward passes over the training set: an epoch of plain SGD is 2, one of a method that
    goes forward and backward twice is 4.
    """

    step: np.ndarray
    passes: np.ndarray
    wall_seconds: np.ndarray
    cpu_seconds: np.ndarray
    value: np.ndarray

    @classmethod
    def of(cls, metrics: Sequence[Metric]) -> "Curve":
        """The curve through some lines of ``metrics.jsonl``."""
        points = [
            (m.step, m.forward_passes + m.backward_passes, m.wall_seconds, m.cpu_seconds, m.value) for m in metrics
        ]
        return cls(*np.array(points, dtype=np.float64).T)


@dataclass(frozen=True)
class Event:
    """One line of ``events.jsonl``."""

    wall_seconds: float
    step: float
    level: str
    kind: str
    message: str


@dataclass(frozen=True)
class Decoded:
    """One recognised utterance."""

    id: str
    speaker: str
    reference: str
    hypothesis: str
    seconds: float

    @cached_property
    def pairs(self) -> tuple[Pair, ...]:
        """Reference and hypothesis words, aligned."""
        return align_words(self.reference.split(), self.hypothesis.split())

    @cached_property
    def errors(self) -> Errors:
        """Word errors of this utterance."""
        return count_errors(self.pairs)


@dataclass(frozen=True, kw_only=True)
class Score:
    """A final result on one split: word error rate or accuracy, as a fraction, with its confidence interval."""

    kind: str
    split: str
    rate: float
    low: float | None = None
    high: float | None = None
    errors: Errors | None = None


@dataclass(frozen=True)
class Run:
    """A run folder; each part is read when it is first asked for."""

    folder: Path

    @property
    def name(self) -> str:
        """The configured name, or that of the folder."""
        named = self.config.get("name")
        return str(named.value) if named and named.value else self.folder.resolve().name

    @property
    def seed(self) -> str:
        """The configured seed as text, "?" where it is not known."""
        return str(self.config["seed"].value) if "seed" in self.config else "?"

    @property
    def status(self) -> str:
        """What ``result.json`` says, or "unfinished" where it is missing."""
        return str(self.result.get("status", "unfinished"))

    @property
    def summary(self) -> dict[str, object]:
        """The summary of ``result.json``, empty where there is none."""
        return _mapping(self.result.get("summary"))

    @property
    def config(self) -> dict[str, Setting]:
        """Dotted key to value and origin, in the order of the file."""
        return self._config[0]

    @property
    def environment(self) -> dict[str, object]:
        """Versions and machine."""
        return self._environment[0]

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Every readable line of ``metrics.jsonl``, in order."""
        return self._metrics[0]

    @property
    def events(self) -> tuple[Event, ...]:
        """Every readable line of ``events.jsonl``, in order."""
        return self._events[0]

    @property
    def decoded(self) -> dict[str, tuple[Decoded, ...]]:
        """Split to its recognised utterances."""
        return {split: utterances for split, (utterances, _) in self._decoded.items() if utterances}

    @property
    def diagrams(self) -> dict[str, dict[str, object]]:
        """Name to a picture of the run's newest state: {"title", "x_label", "lines": [{"label", "x", "y"}]}."""
        return {name: content for name, (content, _) in self._diagrams.items() if content}

    @property
    def result(self) -> dict[str, object]:
        """``result.json``, empty while the run has not ended."""
        return self._result[0]

    @cached_property
    def curves(self) -> dict[tuple[str, str], Curve]:
        """(split, metric name) to its curve."""
        points = defaultdict(list)
        for metric in self.metrics:
            points[metric.split, metric.name].append(metric)
        return {key: Curve.of(metrics) for key, metrics in points.items()}

    @cached_property
    def scores(self) -> tuple[Score, ...]:
        """Results by split; where ``result.json`` has none, word errors are counted from ``decode/``."""
        named = {"WER": _mapping(self.result.get("wer")), "accuracy": _mapping(self.result.get("accuracy"))}
        given = [_score(kind, split, entry) for kind, splits in named.items() for split, entry in splits.items()]
        found = tuple(score for score in given if score)
        return found or tuple(_counted(split, utterances) for split, utterances in self.decoded.items())

    @cached_property
    def checkpoints(self) -> tuple[Path, ...]:
        """Kept checkpoints, oldest first."""
        return tuple(sorted((self.folder / "checkpoints").glob("step-*.safetensors")))

    @property
    def problems(self) -> tuple[str, ...]:
        """What is missing from the folder or could not be read; reads all of it."""
        folders = (*self._decoded.values(), *self._diagrams.values())
        parts = (self._config, self._environment, self._metrics, self._events, self._result, *folders)
        return tuple(problem for _, problems in parts for problem in problems)

    @cached_property
    def _config(self) -> tuple[dict[str, Setting], list[str]]:
        raw, problems = _read_object(self.folder / "config.json")
        try:
            return {key: Setting(entry["value"], str(entry["origin"])) for key, entry in raw.items()}, problems
        except (TypeError, KeyError):
            raise RunError(
                f"{self.folder / 'config.json'} has no value and origin for each key, so another program wrote it: "
                f"{_EXPECTED}"
            ) from None

    @cached_property
    def _environment(self) -> tuple[dict[str, object], list[str]]:
        return _read_object(self.folder / "environment.json")

    @cached_property
    def _metrics(self) -> tuple[tuple[Metric, ...], list[str]]:
        return _read_lines(self.folder / "metrics.jsonl", _metric)

    @cached_property
    def _events(self) -> tuple[tuple[Event, ...], list[str]]:
        path = self.folder / "events.jsonl"
        return _read_lines(path, _event) if path.exists() else ((), [])

    @cached_property
    def _decoded(self) -> dict[str, tuple[tuple[Decoded, ...], list[str]]]:
        return {path.stem: _read_lines(path, _utterance) for path in sorted((self.folder / "decode").glob("*.jsonl"))}

    @cached_property
    def _diagrams(self) -> dict[str, tuple[dict[str, object], list[str]]]:
        return {path.stem: _read_diagram(path) for path in sorted((self.folder / "diagrams").glob("*.json"))}

    @cached_property
    def _result(self) -> tuple[dict[str, object], list[str]]:
        path = self.folder / "result.json"
        return _read_object(path) if path.exists() else ({}, [])


def read_run(folder: str | Path) -> Run:
    """Open a run folder.

    Args:
        folder: Where a training wrote, or is still writing.

    Raises:
        RunError: The folder is not there, or is not a run: neither a configuration with origins nor metrics in it.
    """
    run = Run(Path(folder))
    if not run.folder.is_dir():
        came = "is a file" if run.folder.exists() else "does not exist"
        raise RunError(f"{run.folder} {came}: {_EXPECTED}")
    if not run.config and not run.metrics:
        raise RunError(f"{run.folder} is not a run folder ({'; '.join(run.problems[:2])}): {_EXPECTED}")
    return run


def _read_bytes(path: Path) -> tuple[bytes, list[str]]:
    try:
        return path.read_bytes(), []
    except FileNotFoundError:
        return b"", [f"{path.name} is missing"]
    except OSError as error:
        return b"", [f"{path.name} cannot be read ({error.strerror})"]


def _read_object(path: Path) -> tuple[dict[str, Any], list[str]]:
    content, problems = _read_bytes(path)
    if problems:
        return {}, problems
    try:
        return dict(json.loads(content).items()), []
    except _UNREADABLE:
        return {}, [f"{path.name} is damaged or half-written (not a JSON object) and was left out"]


def _read_diagram(path: Path) -> tuple[dict[str, Any], list[str]]:
    content, problems = _read_object(path)
    try:
        for line in content.get("lines", ()):
            line["x"], line["y"] = ([_number(value) for value in line[axis]] for axis in "xy")
            if not len(line["x"]) == len(line["y"]) > 0:
                raise ValueError
    except _UNREADABLE:
        return {}, [f"{path.name} is no picture of ours and was left out"]
    return content, problems


def _read_lines(path: Path, parse: Callable[[dict], Record]) -> tuple[tuple[Record, ...], list[str]]:
    content, problems = _read_bytes(path)
    lines = content.split(b"\n")
    records, bad = [], []
    for count, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            records.append(parse(json.loads(line)))
        except _UNREADABLE:
            bad.append(count)
    if bad and bad[-1] == len(lines):
        problems.append(f"{path.name}: the last line is half-written and was left out")
        bad.pop()
    if bad:
        problems.append(f"{path.name}: {len(bad)} unreadable line(s) left out, the first is line {bad[0]}")
    return tuple(records), problems


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)


def _metric(line: dict) -> Metric:
    counts = (_number(line.get(field)) for field in Metric._fields[:7])
    return Metric(*counts, str(line.get("split", "")), str(line["name"]), _number(line["value"]))


def _event(line: dict) -> Event:
    when = _number(line.get("wall_seconds")), _number(line.get("step"))
    return Event(*when, str(line.get("level", "info")), str(line.get("kind", "")), str(line["message"]))


def _utterance(line: dict) -> Decoded:
    texts = (str(line.get(key) or "") for key in ("id", "speaker", "reference", "hypothesis"))
    return Decoded(*texts, _number(line.get("seconds")))


def _mapping(value: object) -> dict[str, object]:
    return value if isinstance(value, dict) else {}


def _score(kind: str, split: str, entry: Any) -> Score | None:
    """One result, in full or as a bare rate; None where it is not readable."""
    try:
        if not isinstance(entry, dict):
            return Score(kind=kind, split=split, rate=float(entry))
        low, high = (float(entry[end]) if entry.get(end) is not None else None for end in ("low", "high"))
        kinds = ("words", "insertions", "deletions", "substitutions")
        errors = Errors(**{k: int(entry[k]) for k in kinds}) if all(k in entry for k in kinds) else None
        return Score(kind=kind, split=split, rate=float(entry["rate"]), low=low, high=high, errors=errors)
    except _UNREADABLE:
        return None


def _counted(split: str, utterances: tuple[Decoded, ...]) -> Score:
    errors = sum_errors(utterance.errors for utterance in utterances)
    return Score(kind="WER", split=split, rate=errors.rate, errors=errors)
