"""Ordinary runs in the service of an experiment: each in a folder of its own, done once, continued where it was cut."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from hemstitch.errors import HemstitchError, NonFiniteError, RunError
from hemstitch.train._config import Values, override
from hemstitch.train._console import Console
from hemstitch.train._first_stage import after_first_stage
from hemstitch.train._loop import Watch
from hemstitch.train._recipe import DEFAULT_KINDS, Recipe, resolve, restore_recipe
from hemstitch.train._run import resume, train
from hemstitch.train._run_folder import CHECKPOINTS, CONFIG, ENVIRONMENT, RESULT, RunFolder, read_json


class HopelessRunError(HemstitchError):
    """A run that was stopped early, because it is far behind another."""


OUTCOMES = {NonFiniteError.__name__: "diverged", HopelessRunError.__name__: "stopped early"}
"""Errors that are an outcome of an experiment, not an obstacle to it: the run counts, and is not repeated."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What training took, tests not counted; add costs with ``+``.

    Attributes:
        runs: how many.
        forward_passes, backward_passes: through the training part of the run.
        wall_seconds, cpu_seconds: of all sessions of the run.
    """

    runs: int = 0
    forward_passes: float = 0.0
    backward_passes: float = 0.0
    wall_seconds: float = 0.0
    cpu_seconds: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})

    @classmethod
    def of(cls, result: Mapping[str, Any]) -> Cost:
        """The cost of the run that left this result.json."""
        summary = result["summary"]
        return cls(runs=1, **{f.name: summary[f.name] for f in fields(cls) if f.name != "runs"})


def chosen(recipe: Recipe) -> Values:
    """What somebody chose, ``section.field`` -> value and origin: all that is not a default."""
    entries = recipe.with_origins().items()
    return {key: (e["value"], e["origin"]) for key, e in entries if e["origin"] != "default"}


def vary(recipe: Recipe, settings: Mapping[str, Any], origin: str) -> Recipe:
    """The recipe with some settings replaced; a section that gets another ``kind`` starts from its defaults.

    Args:
        recipe: the recipe.
        settings: ``section.field`` -> value.
        origin: where these come from, for config.json.

    Raises:
        ConfigError: a key or value does not fit.
    """
    return resolve(override(chosen(recipe), {key: (value, origin) for key, value in settings.items()}, DEFAULT_KINDS))


def complete(recipe: Recipe, path: Path, console: Console, watch: Watch | None = None) -> dict[str, Any]:
    """The result.json of the run in ``path``: made from the start, continued, or as it stands there already.

    Raises:
        RunError: the folder holds a run of another configuration, or something else.
        Interrupted: stopped by a signal; call again to continue.
        HemstitchError: the run failed in another way than by diverging.
    """
    _clear_stillborn(path)
    started = (path / CONFIG).is_file()
    if started:
        _check_same(recipe, path)
        if (path / RESULT).is_file() and outcome(result := read_json(path / RESULT)) != "failed":
            return result
    try:
        if started:
            resume(path, console, watch)
        else:
            train(recipe, path, console, watch)
    except HemstitchError as error:
        if type(error).__name__ not in OUTCOMES or not (path / RESULT).is_file():
            raise
    return read_json(path / RESULT)


def outcome(result: Mapping[str, Any]) -> str:
    """finished, diverged, stopped early, or failed: by an obstacle that may be gone now."""
    return "finished" if result["status"] == "finished" else OUTCOMES.get(result.get("error_type", ""), "failed")


def _clear_stillborn(path: Path) -> None:
    """Remove what a run leaves that is killed before its configuration is written."""
    begun = {CHECKPOINTS, ENVIRONMENT, f".{ENVIRONMENT}.tmp", f".{CONFIG}.tmp"}
    empty = not any((path / CHECKPOINTS).glob("*"))
    if path.is_dir() and empty and {file.name for file in path.iterdir()} <= begun:
        shutil.rmtree(path)


def _check_same(recipe: Recipe, path: Path) -> None:
    wanted, found = after_first_stage(recipe).flat(), restore_recipe(RunFolder.open(path).config()).flat()
    differing = [key for key in wanted | found if wanted.get(key) != found.get(key)]
    if differing:
        key = differing[0]
        raise RunError(
            f"{path} holds a run with {key} = {found.get(key)!r}, wanted is {wanted.get(key)!r}"
            f"{f' ({len(differing)} settings differ)' if len(differing) > 1 else ''}: give another folder with --out, "
            "or delete this one."
        )


def folder_name(text: str) -> str:
    """A file name for any text, one to one: what does not go into file names makes way for a digest of the whole."""
    plain = re.sub(r"[^\w.,=+-]+", "-", text)
    if plain == text and len(text) <= 100 and not text.startswith("."):
        return text
    return f"{plain[:80].strip('.-')}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
