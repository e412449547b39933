"""English digits: pronunciations (as in CMUdict) and the loop of equally likely words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

PRONUNCIATIONS: Mapping[str, str] = {
    "zero": "Z IH R OW", "one": "W AH N", "two": "T UW", "three": "TH R IY", "four": "F AO R",
    "five": "F AY V", "six": "S IH K S", "seven": "S EH V AH N", "eight": "EY T", "nine": "N AY N",
}
DIGITS = tuple(PRONUNCIATIONS)


def write_digit_lexicon(path: Path) -> None:
    """The ten digits, one pronunciation a line."""
    path.write_text("".join(f"{word} {phones}\n" for word, phones in PRONUNCIATIONS.items()), encoding="utf-8")


def write_uniform_lm(path: Path, words: Sequence[str], mean_length: float) -> None:
    """A unigram in ARPA format: words equally likely, sentences of ``mean_length`` words on average."""
    end = 1 / (mean_length + 1)
    word = math.log10((1 - end) / len(words))
    entries = [("<s>", -99.0), ("</s>", math.log10(end)), *((w, word) for w in words)]
    lines = ["", "\\data\\", f"ngram 1={len(entries)}", "", "\\1-grams:"]
    lines += [f"{score:.6f}\t{name}" for name, score in entries]
    path.write_text("\n".join([*lines, "", "\\end\\", ""]), encoding="utf-8")
