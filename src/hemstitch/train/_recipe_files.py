"""Where recipes are found: a path, or the name of one that comes with the package."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hemstitch.errors import ConfigError
from hemstitch.train._config import nearest, recipe_folder
from hemstitch.train._recipe import Recipe, load_recipe


def recipe_names() -> dict[str, Path]:
    """Name -> file of the recipes that come with the package."""
    return {path.stem: path for path in sorted(recipe_folder().glob("*.toml"))}


def find_recipe(name: str) -> Path:
    """The file of a recipe given by path or name."""
    path = Path(name)
    if path.is_file():
        return path
    known = recipe_names()
    if name in known:
        return known[name]
    if path.is_dir():
        raise ConfigError(f"{name} is a folder, and a recipe a TOML file or a name from `hemstitch list`. A run in it "
                          f"goes on with `hemstitch resume {name}`; a corpus in it is trained on with "
                          f"`hemstitch train starter --data.corpus {name}`")  # fmt: skip
    if path.with_name(f"{path.name}.toml").is_file():
        raise ConfigError(f"no recipe {name!r}: did you mean the file {name}.toml?")
    raise ConfigError(f"no recipe {name!r}: neither a file nor the name of one: {nearest(name, list(known))}")


def read(name: str, settings: Sequence[str]) -> Recipe:
    """The resolved recipe of that path or name, with settings from the command line."""
    return load_recipe(find_recipe(name), settings)
