"""The grid of a sweep: its combinations, and where to look beyond its ends."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from hemstitch.errors import ConfigError
from hemstitch.train._experiments._runs import vary
from hemstitch.train._recipe import Recipe

Settings = dict[str, Any]
"""``section.field`` -> value."""

STEP = 3.0
"""How far beyond the end of a grid the refinement goes."""
BIG_STEP = 2.0
"""Grids with a smaller last step are not extended: after momentum 0.8, 0.9 there is nothing three times as large."""


def combinations(recipe: Recipe, grid: Mapping[str, Sequence[Any]]) -> list[Settings]:
    """Every combination, checked and in the recipe's own types, each once.

    Raises:
        ConfigError: nothing to try, or a key or value does not fit.
    """
    if not grid or not all(grid.values()) or "seed" in grid:
        raise ConfigError("a sweep needs settings with values to try, and gets its seeds apart from them")
    found: dict[str, Settings] = {}
    for values in itertools.product(*grid.values()):
        flat = vary(recipe, dict(zip(grid, values)), "sweep").flat()
        settings = {key: flat[key] for key in grid}
        found.setdefault(label(settings), settings)
    return list(found.values())


def beyond(recipe: Recipe, best: Settings, tried: Sequence[Settings]) -> tuple[list[Settings], list[str]]:
    """Combinations one step beyond the ends of the grid at which the best lies, and remarks on them."""
    steps = {key: step for key in best if (step := step_beyond([s[key] for s in tried], best[key]))}
    choices = [(value, steps[key]) if key in steps else (value,) for key, value in best.items()]
    found, remarks = [], [f"{key} = {best[key]:g} was the end of the grid: tried {steps[key]:g}" for key in steps]
    for values in list(itertools.product(*choices))[1:]:
        settings = dict(zip(best, values))
        try:
            vary(recipe, settings, "sweep")
            found.append(settings)
        except ConfigError as error:
            remarks.append(f"{label(settings)} could not be tried: {error}")
    return found, remarks


def step_beyond(values: Sequence[Any], best: Any) -> float | None:
    """The next value, where the best is an end of a grid of positive numbers in big steps."""
    if not all(isinstance(value, float) and value > 0 for value in values):
        return None
    ordered = sorted(set(values))
    if len(ordered) > 1 and best == ordered[0] and ordered[1] >= BIG_STEP * best:
        return float(f"{best / STEP:.6g}")
    if len(ordered) > 1 and best == ordered[-1] and best >= BIG_STEP * ordered[-2]:
        return float(f"{best * STEP:.6g}")
    return None


def still_at_the_end(best: Settings, tried: Sequence[Settings]) -> list[str]:
    """A remark for each number of which nothing smaller, or nothing larger, was tried."""
    found = []
    for key, value in best.items():
        values = {settings[key] for settings in tried if _is_number(settings[key])}
        if len(values) > 1 and value in (min(values), max(values)):
            found.append(f"{key} = {value:g} is the end of what was tried: a wider grid may find better")
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def label(settings: Settings) -> str:
    """``update.lr=0.1,seed=1``."""
    shown = {key: value if isinstance(value, str) else json.dumps(value) for key, value in settings.items()}
    return ",".join(f"{key}={value}" for key, value in shown.items())
