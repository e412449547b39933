"""Recipes read strictly: an unknown key, a wrong type or a value out of range is an error that says what to do.

A recipe is a TOML file of sections; a section is a frozen dataclass of options, and where a section has several
``kind``\\ s (which model, which update rule ...) the kind chooses the dataclass. Values come from, in rising
precedence: the defaults, the recipe that this one ``extends``, the recipe, the command line
(``--section.field value``). The origin of every value is kept.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import tomllib
import types
import typing
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import hemstitch
from hemstitch.errors import ConfigError

Values = dict[str, tuple[Any, str]]
"""``section.field`` -> (raw value, origin)."""


def read_recipe(path: Path, default_kinds: Collection[str] = (), above: Sequence[Path] = ()) -> Values:
    """Flatten a recipe file, the recipes it extends first.

    Args:
        path: of the file.
        default_kinds: see :func:`override`.
        above: those that extend it.

    Raises:
        ConfigError: it cannot be read, or extends itself.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        content = tomllib.loads(text)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"cannot read the recipe {path}: {error}. Give the path of a TOML file, or a name from `hemstitch list`."
        ) from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None
    values: Values = {}
    parent = content.pop("extends", None)
    if parent is not None:
        if not isinstance(parent, str):
            raise ConfigError(f"{path}: extends needs the name of a recipe file beside this one, got {parent!r}")
        base = _base_of(path, parent)
        above = [*above, path.resolve()]
        if base.resolve() in above:
            raise ConfigError(f"{path}: the recipe extends itself{' by way of others' * (base.resolve() != above[-1])}")
        values = read_recipe(base, default_kinds, above)
    own: Values = {}
    for key, value in content.items():
        if isinstance(value, dict):
            own.update({f"{key}.{field}": (v, _origin(path, text, key, field)) for field, v in value.items()})
        else:
            own[key] = (value, _origin(path, text, None, key))
    return override(values, own, default_kinds)


def recipe_folder() -> Path:
    """The folder of the recipes that come with the package (or the checkout)."""
    package = Path(hemstitch.__file__).parent
    installed = package / "recipes"
    return installed if installed.is_dir() else package.parents[1] / "recipes"


def _base_of(path: Path, parent: str) -> Path:
    """The file that a recipe extends: beside it, or one that comes with the package; with or without .toml."""
    name = parent if parent.endswith(".toml") else f"{parent}.toml"
    places = [path.parent / name, recipe_folder() / name]
    if found := next((place for place in places if place.is_file()), None):
        return found
    known = [file.stem for file in (*sorted(path.parent.glob("*.toml")), *sorted(recipe_folder().glob("*.toml")))]
    raise ConfigError(f"{path}: extends {parent!r}, which is neither beside it nor a recipe of the package: "
                      + nearest(name.removesuffix(".toml"), known))  # fmt: skip


def override(values: Values, above: Values, default_kinds: Collection[str] = ()) -> Values:
    """``values`` with those of ``above`` on top; a section that gets another ``kind`` there starts afresh.

    Args:
        values, above: raw values.
        default_kinds: "section.kind" of each section that does not name its kind.
    """

    def is_new(key: str, kind: Any) -> bool:
        return values[key][0] != kind if key in values else f"{key.removesuffix('kind')}{kind}" not in default_kinds

    afresh = {
        key.removesuffix("kind") for key, (kind, _) in above.items() if key.endswith(".kind") and is_new(key, kind)
    }
    kept = {key: entry for key, entry in values.items() if key.rpartition(".")[0] + "." not in afresh}
    return {**kept, **above}


def _origin(path: Path, text: str, section: str | None, field: str) -> str:
    """``file:line`` of a key, found by a scan for its section and then its name."""
    current = None
    for number, line in enumerate(text.splitlines(), start=1):
        if header := re.match(r"\s*\[\s*([\w.-]+)\s*\]", line):
            current = header[1]
        elif current == section and re.match(rf"\s*[\"']?{re.escape(field)}[\"']?\s*=", line):
            return f"{path}:{number}"
    return str(path)


def read_overrides(arguments: Sequence[str]) -> Values:
    """``--section.field value`` or ``--section.field=value`` pairs; values in TOML notation, or bare words."""
    values: Values = {}
    rest = list(arguments)
    while rest:
        name = rest.pop(0)
        if not name.startswith("--") or len(name) < 3:
            raise ConfigError(f"unexpected argument {name!r}: settings are given as --section.field value")
        name, equals, value = name[2:].partition("=")
        if not equals:
            if not rest or rest[0].startswith("--"):
                unknown = "" if "." in name else "; or is it an option that this command does not have? See --help"
                raise ConfigError(f"--{name} needs a value: --{name} VALUE{unknown}")
            value = rest.pop(0)
        values[name.replace("-", "_")] = (_literal(value), "command line")
    return values


def _literal(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


LARGEST = 3e38
"""What single precision can hold."""

SYNONYMS = {"learning_rate": "lr", "num_epochs": "epochs", "max_epochs": "epochs", "batch": "batch_size"}


def nearest(name: str, known: Sequence[str]) -> str:
    """A hint for a name that is not known: the nearest one, and all of them if they are few."""
    section, _, field = name.rpartition(".")
    field = SYNONYMS.get(field, field)
    close = [k for k in known if k == f"{section}.{field}"] or [k for k in known if k.rpartition(".")[2] == field]
    close = close or difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}?" if close else ""
    listed = f"known: {', '.join(sorted(known))}" if len(known) <= 14 or not close else ""
    return " ".join(part for part in (hint, listed) if part)


def build(cls: type, values: Mapping[str, tuple[Any, str]], section: str) -> Any:
    """An options dataclass from raw values of one section; the error of a bad value names key and origin."""
    hints = typing.get_type_hints(cls)
    arguments = {
        field: coerce(value, hints[field], f"{section}.{field}", origin) for field, (value, origin) in values.items()
    }
    try:
        return cls(**arguments)
    except (ValueError, ConfigError) as error:
        origins = sorted({origin for _, origin in values.values()})
        raise ConfigError(f"[{section}]: {error} (values from: {', '.join(origins) or 'the defaults'})") from None


def coerce(value: Any, hint: Any, key: str, origin: str) -> Any:
    """``value`` as type ``hint``, where that loses nothing; otherwise an error with key, origin and both types."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        options = [arg for arg in typing.get_args(hint) if arg is not type(None)]
        if len(options) < len(typing.get_args(hint)) and value in (None, "none"):
            return None
        return coerce(value, options[0], key, origin)
    if typing.get_origin(hint) is typing.Literal:
        choices = typing.get_args(hint)
        if value in choices:
            return value
        raise ConfigError(
            f"{key} = {value!r} ({origin}): expected one of {', '.join(map(repr, choices))}. "
            + nearest(str(value), [str(c) for c in choices])
        )
    if typing.get_origin(hint) is tuple:
        if isinstance(value, list | tuple):
            return tuple(coerce(item, typing.get_args(hint)[0], key, origin) for item in value)
    elif hint is Path:
        if isinstance(value, str | Path):
            return Path(value)
    elif hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        if abs(value) <= LARGEST:
            return float(value)
        raise ConfigError(f"{key} = {value!r} ({origin}): expected a finite number of at most {LARGEST:g}")
    elif isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        return value
    hint_of_list = ""
    if typing.get_origin(hint) is tuple:
        hint_of_list = ": a list ends with ]" if str(value).startswith("[") else f": write [{value}]"
    got = type(value).__name__
    raise ConfigError(f"{key} = {value!r} ({origin}): expected {type_name(hint)}, got {got}{hint_of_list}")


def type_name(hint: Any) -> str:
    """How a type is written for a user of TOML."""
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join("none" if a is type(None) else type_name(a) for a in arguments)
    if typing.get_origin(hint) is typing.Literal:
        return " | ".join(map(str, arguments))
    if typing.get_origin(hint) is tuple:
        return f"list of {type_name(arguments[0])}"
    names = {int: "integer", float: "number", str: "string", bool: "true or false", Path: "path"}
    return names.get(hint, getattr(hint, "__name__", str(hint)))


def field_help(cls: type) -> dict[str, str]:
    """The ``Attributes:`` of the docstrings of a class and its bases: field -> text; a line may name several fields."""
    return {field: text for base in reversed(cls.__mro__) for field, text in _own_help(base).items()}


def _own_help(cls: type) -> dict[str, str]:
    entries: dict[str, str] = {}
    current: list[str] = []
    body = (cls.__doc__ or "").partition("Attributes:")[2]
    for line in body.splitlines():
        if match := re.match(r"\s{4,8}([a-z_][\w, ]*): (.*)", line):
            current = [name.strip() for name in match[1].split(",")]
            entries.update({name: match[2].strip() for name in current})
        elif line.strip():
            entries.update({name: f"{entries[name]} {line.strip()}" for name in current})
        else:
            current = [] if entries else current
    return entries


def options_of(cls: type) -> dict[str, tuple[str, Any, str]]:
    """Field -> (type name, default, help) of an options dataclass; for help pages."""
    hints, texts = typing.get_type_hints(cls), field_help(cls)
    return {
        field.name: (type_name(hints[field.name]), _default(field), texts.get(field.name, ""))
        for field in dataclasses.fields(cls)
    }


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else "required"
