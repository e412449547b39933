"""Runs in two stages: what a run begins with is trained first, from a recipe, on the same data with the same seed.

The first stage is a run of its own, in ``runs/starts``, named after everything that it does. Runs that begin with the
same thing share it: the folds of a comparison of four criteria train their start once.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from hemstitch.errors import ConfigError
from hemstitch.train._config import override, read_recipe
from hemstitch.train._console import Console
from hemstitch.train._recipe import DEFAULT_KINDS, Recipe, resolve
from hemstitch.train._recipe_files import find_recipe
from hemstitch.train._run_folder import CONFIG

STARTS = Path("runs") / "starts"
SHARED = ("data.", "seed", "train.device", "train.threads")
"""Keys that the first stage takes from the run that begins with it."""


def first_stage(recipe: Recipe) -> Recipe:
    """The recipe of the first stage.

    Raises:
        ConfigError: there is no such recipe, or it has a first stage itself.
    """
    assert recipe.start.recipe is not None
    values = json.loads(json.dumps({k: v for k, v in recipe.flat().items() if k.startswith(SHARED)}))
    above = {key: (value, f"the run {recipe.name!r} that begins with it") for key, value in values.items()}
    first = resolve(override(read_recipe(find_recipe(recipe.start.recipe), DEFAULT_KINDS), above, DEFAULT_KINDS))
    if first.start.recipe is not None:
        raise ConfigError(f"start.recipe = {recipe.start.recipe!r}: that recipe has a first stage itself; train it on "
                          "its own and give its folder as start.run")  # fmt: skip
    return first


def stage_path(first: Recipe) -> Path:
    """The folder of a first stage."""
    digest = hashlib.sha256(json.dumps(first.flat(), sort_keys=True).encode()).hexdigest()[:12]
    return STARTS / f"{first.name}-seed-{first.seed}-{digest}"


def after_first_stage(recipe: Recipe) -> Recipe:
    """The recipe with ``start.run`` in the place of ``start.recipe``; nothing is trained for it."""
    if recipe.start.recipe is None or recipe.start.run is not None:
        return recipe
    start = dataclasses.replace(recipe.start, run=stage_path(first_stage(recipe)), recipe=None)
    origins = recipe.origins | {"start.run": f"first stage: {recipe.start.recipe}"}
    return dataclasses.replace(recipe, sections=recipe.sections | {"start": start}, origins=origins)


def with_first_stage(recipe: Recipe, console: Console, train: Callable, resume: Callable) -> Recipe:  # type: ignore[type-arg]
    """The recipe after its first stage, which is trained, continued, or found finished.

    Args:
        recipe: of the run.
        console: messages.
        train, resume: of :mod:`hemstitch.train`.
    """
    second = after_first_stage(recipe)
    if second is recipe:
        return recipe
    first, path = first_stage(recipe), second.start.run
    console.say(f"first stage: {first.name} in {path}")
    if (path / CONFIG).exists():
        resume(path, console)
    else:
        train(first, path, console)
    return second
