"""Every command line in the documents is one that the program takes."""

import re
import shlex
from pathlib import Path

import pytest

from hemstitch.cli import build_parser
from hemstitch.reproduce import catalogue
from hemstitch.train._config import options_of
from hemstitch.train._recipe import SECTIONS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)
TYPED = re.compile(r"^ *(?:\$ )?(?:\w+=\S+ )*(hemstitch [a-z].*)$", re.MULTILINE)
MENTIONED = re.compile(r"`(hemstitch [a-z][^`]*)`")
NAMED = re.compile(r"(?<![\w/])((?:src|tests|benchmarks|examples|recipes|train|docs)/[\w./-]*+)(?!\*)")
WITHOUT_SECTION = {"--name", "--seed", "--description"}


def commands(page):
    """Command lines of a page: in blocks, where a backslash goes on on the next line, and in running text."""
    text = page.read_text(encoding="utf-8")
    blocks = [block.replace("\\\n", " ") for block in FENCE.findall(text)]
    lines = [line for block in blocks for line in TYPED.findall(block)]
    lines += [" ".join(line.split()) for line in MENTIONED.findall(FENCE.sub("", text))]
    return [line for line in lines if " " in line.removeprefix("hemstitch ")]


def is_setting(option):
    """Whether `--section.field` is a setting of some recipe."""
    section, _, name = option.removeprefix("--").partition(".")
    kinds = SECTIONS.get(section, {})
    kinds = kinds.values() if isinstance(kinds, dict) else [kinds]
    return option in WITHOUT_SECTION or name in {"kind"}.union(*map(options_of, kinds)) or section == "data"


def is_entry(name):
    """Whether `reproduce` knows it; capitals stand for any."""
    return name.isupper() or name == "all" or any(name in (e.key, e.key.split("/")[0]) for e in catalogue())


def is_recipe(name):
    """Whether `train` knows it; capitals, files and what the page calls "mine" stand for the reader's own."""
    return name.isupper() or name == "mine" or name.endswith(".toml") or (ROOT / "recipes" / f"{name}.toml").is_file()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_files_are_there(page):
    named = {name.rstrip(".") for name in NAMED.findall(page.read_text(encoding="utf-8"))}
    assert [name for name in named if not any((root / name).exists() for root in (ROOT, ROOT / "src/hemstitch"))] == []


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=lambda page: page.stem)
def test_command_lines_are_understood(page):
    for line in commands(page):
        words = shlex.split(re.split(r" [|>] ", line)[0], comments=True)[1:]
        parsed, rest = build_parser().parse_known_args(words)
        assert getattr(parsed, "takes_settings", False) or not rest, line
        assert all(is_entry(name) for name in getattr(parsed, "entries", [])), line
        assert is_recipe(getattr(parsed, "recipe", None) or "RECIPE"), line
        if parsed.command != "data":  # whose further options are the importer's
            assert [word for word in rest if word.startswith("--") and not is_setting(word.split("=")[0])] == [], line


def test_many_command_lines_are_seen():
    assert sum(len(commands(page)) for page in PAGES) > 100
