"""What the documents call a setting is one."""

import re
import tomllib
from pathlib import Path

import pytest

from hemstitch.train._config import options_of
from hemstitch.train._recipe import SECTIONS

DOCS = Path(__file__).parents[1] / "docs"
PAGES = sorted([*DOCS.glob("*.md"), *DOCS.glob("how-to/*.md"), *DOCS.glob("concepts/*.md")])
BLOCK = re.compile(r"```toml\n(.*?)```", re.DOTALL)
SETTING = re.compile(rf"(?:`|--)({'|'.join(SECTIONS)})\.([a-z]\w+)(?!\w*[(.])")


def fields(section):
    """Every setting of a section, whatever its kind."""
    entry = SECTIONS[section]
    kinds = entry.values() if isinstance(entry, dict) else [entry]
    return {"kind"} | {name for kind in kinds for name in options_of(kind)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_settings_exist(page):
    named = set(SETTING.findall(page.read_text(encoding="utf-8")))
    assert {f"{section}.{name}" for section, name in named if name not in fields(section)} == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_pieces_of_recipes_exist(page):
    for block in BLOCK.findall(page.read_text(encoding="utf-8")):
        for section, values in tomllib.loads(block).items():
            if isinstance(values, dict):
                assert set(values) <= fields(section), block
                assert "kind" not in values or values["kind"] in SECTIONS[section], block


def test_the_how_tos_name_many_settings():
    assert sum(len(set(SETTING.findall(page.read_text(encoding="utf-8")))) for page in PAGES) > 60
