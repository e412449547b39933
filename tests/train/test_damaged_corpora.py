"""Whatever is wrong in a corpus folder is refused in words: its files with lines, words and bytes changed at random."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from hemstitch.errors import HemstitchError
from hemstitch.testing import write_tiny_corpus
from hemstitch.train import Console, load_recipe
from hemstitch.train._build import build_run

FILES = ("utterances.jsonl", "lexicon.txt", "lm.arpa", "corpus.json", "features.npy")
WORDS = (
    b"",
    b"nan",
    b"-1",
    b"1e999",
    b"[]",
    b"null",
    b"{",
    b'"',
    b"\\",
    b"\xff\xfe",
    b"<s>",
    b"999999999999",
    b"\t",
    b"ONE ONE",
)
SETTINGS = ["--features.kind", "given", "--hmm.flat_start", "1", "--model.hidden", "[4]", "--features.deltas", "0"]


def damaged(content: bytes, random: np.random.Generator) -> bytes:
    """One change of one of six kinds."""
    lines = content.split(b"\n")
    at = int(random.integers(len(lines)))
    kind = int(random.integers(6))
    if kind == 0:
        del lines[at]
    elif kind == 1:
        lines.insert(at, lines[int(random.integers(len(lines)))])
    elif kind == 2:
        words = lines[at].split(b" ")
        words[int(random.integers(len(words)))] = WORDS[int(random.integers(len(WORDS)))]
        lines[at] = b" ".join(words)
    elif kind == 3:
        return content[: int(random.integers(len(content)))]
    elif kind == 4:
        place = int(random.integers(len(content)))
        return content[:place] + bytes([int(random.integers(256))]) + content[place + 1 :]
    else:
        word = WORDS[int(random.integers(len(WORDS)))]
        place = int(random.integers(len(content)))
        return content[:place] + word + content[place:]
    return b"\n".join(lines)


def attempt(folder: Path, file: str, seed: int) -> str:
    """Read all that a run reads of a corpus with one damage; "" or why it was refused."""
    shutil.rmtree(folder, ignore_errors=True)
    write_tiny_corpus(folder)
    random = np.random.default_rng(seed)
    (folder / file).write_bytes(damaged((folder / file).read_bytes(), random))
    recipe = load_recipe(
        Path(__file__).parents[2] / "recipes" / "starter.toml", ["--data.corpus", str(folder), *SETTINGS]
    )
    try:
        build_run(recipe, Console(quiet=True))
    except HemstitchError as refusal:
        return str(refusal)
    return ""


@pytest.mark.parametrize("file", FILES)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_damage_is_refused_in_words_or_does_no_harm(file: str, tmp_path: Path) -> None:
    answers = [attempt(tmp_path / "corpus", file, seed) for seed in range(6)]
    assert all(len(answer) > 20 for answer in answers if answer)


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_much_damage(file: str, tmp_path: Path) -> None:
    answers = [attempt(tmp_path / "corpus", file, seed) for seed in range(6, 306)]
    assert any(answers)
    assert all(len(answer) > 20 for answer in answers if answer)
