"""Whatever is set, a run trains or is refused in words that name a setting: random values in random combinations."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hemstitch.errors import HemstitchError, NonFiniteError
from hemstitch.reproduce._combinations import AXES, BASE
from hemstitch.train import Console, Recipe, load_recipe, train
from hemstitch.train._experiments._runs import vary
from tiny_speech import speech_recipe

QUIET = Console(quiet=True)
MODELS: list[dict[str, Any]] = [
    {},
    {"model.kind": "p-norm"},
    {"model.kind": "tdnn", "model.width": 8, "train.batch_size": 4, "criterion.kind": "lattice-free-mmi"},
    {"model.kind": "lstm", "criterion.kind": "ctc", "train.batch_size": 4},
    {"average.kind": "ema"},
    {"average.kind": "swa"},
]
KEPT = {"train.threads", "train.epochs", "train.device", "data.corpus", "data.importer", "data.source"}
"""What costs time, or belongs to the machine and the corpus."""


def strange(value: Any, random: np.random.Generator) -> Any:
    """A value of the kind of the given one: every other one that may do, the others what nobody would choose."""
    may_do = random.random() < 0.5
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        choices: list[Any] = [1, 2, 3] if may_do else [-1, 0]
    elif isinstance(value, float):
        choices = [value / 2, value * 2, 0.1, 0.5] if may_do else [-1.0, 0.0, 1.0, 1e-30, 1e30, math.nan, math.inf]
    elif isinstance(value, (list, tuple)):
        choices = [value, [1], [1, 2]] if may_do else [[], [-1], [0], [0.5], ["x"], [[0]]]
    else:
        choices = [value] if may_do else ["", "zzz", "nan", "0"]
    return choices[int(random.integers(len(choices)))]


def start(random: np.random.Generator) -> dict[str, Any]:
    """A choice on every axis; two in three of them the plain one, so that most go together."""
    chosen: dict[str, Any] = {}
    for choices in AXES.values():
        options = list(choices.values())
        chosen |= options[max(0, int(random.integers(3 * len(options))) - 2 * len(options))]
    return chosen | MODELS[max(0, int(random.integers(3 * len(MODELS))) - 2 * len(MODELS))]


def attempt(base: Recipe, seed: int, folder: Path) -> str:
    """One run with one to four strange values; "" if it trained, else what is wrong with its refusal."""
    random = np.random.default_rng(seed)
    settings: dict[str, Any] = {}
    try:
        settings = start(random) | {"train.epochs": 1}
        values = vary(base, settings, "test").flat()
        keys = [key for key in values if "." in key and key not in KEPT and not key.endswith(".kind")]
        for key in random.choice(keys, int(random.integers(1, 5)), replace=False):
            settings[str(key)] = strange(values[str(key)], random)
        train(vary(base, settings, "test"), folder / "run", QUIET)
    except NonFiniteError:
        return ""
    except HemstitchError as refusal:
        named = {part for key in settings for part in (*key.split("."), str(settings[key])) if len(part) > 1}
        return "" if any(name in str(refusal) for name in named) else f"{settings}: {refusal}"
    except Exception as error:
        return f"{settings}: {type(error).__name__}: {error}"
    finally:
        shutil.rmtree(folder / "run", ignore_errors=True)
    return ""


@pytest.fixture
def base(tiny_corpus, tmp_path):
    return vary(load_recipe(speech_recipe(tmp_path / "recipe.toml", tiny_corpus)), BASE, "test")


pytestmark = pytest.mark.filterwarnings("ignore")


def test_some_settings(base, tmp_path):
    assert [wrong for seed in range(12) if (wrong := attempt(base, seed, tmp_path))] == []


@pytest.mark.slow
def test_many_settings(base, tmp_path):
    assert [wrong for seed in range(12, 400) if (wrong := attempt(base, seed, tmp_path))] == []
