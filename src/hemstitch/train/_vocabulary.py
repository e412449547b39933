"""Text files as words, words as numbers."""

from __future__ import annotations

import gzip
import json
import lzma
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from hemstitch.errors import DataError

END, UNKNOWN = "<eos>", "<unk>"
Unit = Literal["word", "character"]


@dataclass(frozen=True)
class Vocabulary:
    """Words and their numbers.

    Attributes:
        words: in the order of their numbers; the first is ``END``, which stands at the end (and as history at the
            start) of every sentence, the second ``UNKNOWN``.
        unit: what a word is.
    """

    words: tuple[str, ...]
    unit: Unit = "word"

    @classmethod
    def of(cls, words: Iterable[str], unit: Unit = "word", largest: int = 0) -> Vocabulary:
        """The most frequent of ``words``, as many as ``largest`` (0: all); among equals the first in the alphabet."""
        counts = Counter(words)
        for special in (END, UNKNOWN):
            counts.pop(special, None)
        ordered = sorted(counts, key=lambda word: (-counts[word], word))
        return cls((END, UNKNOWN, *ordered[: max(largest - 2, 0) if largest else None]), unit)

    def __len__(self) -> int:
        return len(self.words)

    @cached_property
    def numbers(self) -> dict[str, int]:
        """Word -> number."""
        return {word: number for number, word in enumerate(self.words)}

    def encode(self, words: Iterable[str]) -> list[int]:
        """Numbers of words; those that are not in the vocabulary become ``UNKNOWN``."""
        return [self.numbers.get(word, 1) for word in words]

    def split(self, sentence: str) -> Sequence[str]:
        """The units of a sentence."""
        return sentence.split() if self.unit == "word" else sentence


def read_sentences(path: Path) -> Iterator[str]:
    """The sentences of a text file: its lines, or the "text" of its JSON lines; empty ones are left out.

    Raises:
        DataError: missing, damaged, or not text.
    """
    opened = {".xz": lzma.open, ".gz": gzip.open}.get(path.suffix, open)
    try:
        with opened(path, "rt", encoding="utf-8") as lines:
            for line in lines:
                sentence = json.loads(line)["text"] if path.suffix == ".jsonl" else line
                if sentence := sentence.strip():
                    yield sentence
    except (OSError, EOFError, lzma.LZMAError, zlib.error, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: cannot be read as text, one sentence a line ({error}).") from None


def read_words(path: Path, unit: Unit, most: int = 0) -> list[str]:
    """Running words of a text file, ``END`` after each sentence; the first ``most`` of them (0: all).

    Raises:
        DataError: the file cannot be read, or has fewer than two words.
    """
    words: list[str] = []
    for sentence in read_sentences(path):
        words.extend(sentence.split() if unit == "word" else sentence)
        words.append(END)
        if most and len(words) >= most:
            break
    if len(words) < 2:
        raise DataError(f"{path}: no text in it.")
    return words[:most] if most else words
