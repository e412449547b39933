"""Commands that show and change nothing: settings, configuration, dry run, lists."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from typing import Any

import rich.console
import rich.table

from hemstitch.train import SECTIONS, TOP_LEVEL, Console, dry_run, options_class, options_of
from hemstitch.train._recipe_files import read, recipe_names


def show_settings(name: str, settings: Sequence[str]) -> int:
    """The settings that apply to a recipe, with their values and what they mean."""
    recipe = read(name, settings)
    table = rich.table.Table("setting", "value", "meaning", title=f"Settings of {name}", title_justify="left", box=None)
    for key, (_, _, text) in TOP_LEVEL.items():
        table.add_row(f"--{key}", show(getattr(recipe, key)), text)
    for section, options in recipe.sections.items():
        if section in recipe.kinds:
            known = SECTIONS[section]
            table.add_row(f"--{section}.kind", recipe.kinds[section], f"one of: {', '.join(known)}")
        for field, (type_name, _, text) in options_of(options_class(section, recipe.kinds)).items():
            table.add_row(f"--{section}.{field}", show(getattr(options, field)), f"{text} ({type_name})")
    _print(table)
    return 0


def print_config(name: str, settings: Sequence[str]) -> int:
    """Every value of the resolved recipe and where it came from."""
    table = rich.table.Table("key", "value", "origin", box=None)
    for key, entry in read(name, settings).with_origins().items():
        table.add_row(key, show(entry["value"]), entry["origin"])
    _print(table)
    return 0


def show_dry_run(name: str, settings: Sequence[str]) -> int:
    """Shapes, parameters, passes and memory."""
    table = rich.table.Table("what", "how much", box=None)
    for key, value in dry_run(read(name, settings), Console()).items():
        table.add_row(key, show(value))
    _print(table)
    return 0


def show_lists() -> int:
    """Recipes, kinds of every section, importers."""
    from hemstitch.speech import IMPORTERS

    recipes = rich.table.Table(
        "recipe", "what it is for", box=None, title="Recipes (hemstitch train NAME)", title_justify="left"
    )
    for name, path in recipe_names().items():
        recipes.add_row(name, tomllib.loads(path.read_text(encoding="utf-8")).get("description", ""))
    kinds = rich.table.Table("section.kind", "value", "what it is", box=None, title="Parts", title_justify="left")
    for section, entry in SECTIONS.items():
        if isinstance(entry, dict):
            for kind, cls in entry.items():
                kinds.add_row(f"{section}.kind", kind, (cls.__doc__ or "").strip().splitlines()[0])
    importers = rich.table.Table(
        "importer", "what it reads", box=None, title="Importers (hemstitch data NAME FOLDER)", title_justify="left"
    )
    for name, (_, text) in IMPORTERS.items():
        importers.add_row(name, text)
    for table in (recipes, kinds, importers):
        _print(table)
        _print("")
    return 0


def show(value: Any) -> str:
    """A value as it would be written in a recipe."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{', '.join(show(v) for v in value)}]"
    return "none" if value is None else str(value)


def _print(content: Any) -> None:
    console = rich.console.Console(highlight=False)
    if not console.is_terminal:  # a pipe has no width: do not wrap or cut
        console = rich.console.Console(highlight=False, width=240)
    console.print(content)
