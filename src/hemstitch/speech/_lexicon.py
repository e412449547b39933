"""The pronunciation lexicon: how each word may be said.

File format: one pronunciation a line, ``WORD PHONE PHONE ...``, separated by blanks. A word may have several lines,
also numbered as ``WORD(2)``; ``# ...`` after a blank is a comment, as are lines that begin with ``#`` or ``;;;``. A
number with a decimal point after the word (``WORD 0.8 PHONE ...``) is the probability of the pronunciation.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from hemstitch.errors import DataError
from hemstitch.speech._files import new_file

_VARIANT = re.compile(r"(.+)\(\d+\)$")
_PROBABILITY = re.compile(r"\d*\.\d+$")


@dataclass(frozen=True)
class Pronunciation:
    """One way to say a word: its phones, and how probable that is among the word's pronunciations (0 < p <= 1)."""

    phones: tuple[str, ...]
    probability: float = 1.0


@dataclass(frozen=True)
class Lexicon:
    """Words with their pronunciations.

    Attributes:
        entries: the pronunciations of each word; the order of the words gives their numbers, from 1.
        silence: the phone between words; it need not occur in any pronunciation.
    """

    entries: Mapping[str, tuple[Pronunciation, ...]]
    silence: str = "SIL"

    @classmethod
    def read(cls, path: str | Path, silence: str = "SIL") -> Lexicon:
        """Read a lexicon file (format: see the module). Repeated lines count once.

        Raises:
            DataError: the file cannot be read, has no entry, or has a word without phones; names file and line.
        """
        entries: dict[str, list[Pronunciation]] = {}
        for number, line in enumerate(_lines(path), start=1):
            fields = re.split(r"(?:^|\s)#", line, maxsplit=1)[0].split()
            if not fields or fields[0].startswith(";;;"):
                continue
            word = variant[1] if (variant := _VARIANT.match(fields[0])) else fields[0]
            pronunciations = entries.setdefault(word, [])
            pronunciation = _pronunciation(fields, f"{path}:{number}")
            if pronunciation not in pronunciations:
                pronunciations.append(pronunciation)
        if not entries:
            raise DataError(f"{path}: no pronunciation in this lexicon; write lines like 'HELLO HH AH L OW'")
        return cls({word: tuple(pronunciations) for word, pronunciations in entries.items()}, silence)

    def write(self, path: str | Path) -> None:
        """Write the lexicon, with probabilities where they are not 1."""
        with new_file(Path(path)) as partial, open(partial, "w", encoding="utf-8") as file:
            for word, pronunciations in self.entries.items():
                for p in pronunciations:
                    probability = [] if p.probability == 1 else [f"{p.probability:.6f}"]
                    file.write(" ".join([word, *probability, *p.phones]) + "\n")

    @cached_property
    def words(self) -> tuple[str, ...]:
        """All words; the number of ``words[i]`` is i + 1."""
        return tuple(self.entries)

    @cached_property
    def phones(self) -> tuple[str, ...]:
        """All phones, silence first, the others sorted; the number of ``phones[i]`` is i + 1."""
        spoken = {phone for entry in self.entries.values() for p in entry for phone in p.phones}
        return (self.silence, *sorted(spoken - {self.silence}))

    @cached_property
    def word_ids(self) -> dict[str, int]:
        """The number of each word."""
        return {word: i for i, word in enumerate(self.words, start=1)}

    def missing(self, words: Iterable[str]) -> tuple[str, ...]:
        """Those of the words that are not in the lexicon, each once, in order."""
        return tuple(word for word in dict.fromkeys(words) if word not in self.entries)

    def pronunciations(self, words: Sequence[str]) -> list[tuple[Pronunciation, ...]]:
        """The pronunciations of each word of a transcript.

        Raises:
            DataError: some words are not in the lexicon; lists them all, each with the nearest word.
        """
        if missing := self.missing(words):
            raise DataError(f"not in the lexicon: {', '.join(map(self._with_nearest, missing))}. Add a pronunciation "
                            "for each, correct the transcript, or leave the utterance out")
        return [self.entries[word] for word in words]

    def restrict(self, words: Iterable[str]) -> Lexicon:
        """The lexicon of these words only, in their order.

        Raises:
            DataError: some words are not in the lexicon.
        """
        kept = tuple(dict.fromkeys(words))
        return Lexicon(dict(zip(kept, self.pronunciations(kept))), self.silence)

    def __contains__(self, word: object) -> bool:
        return word in self.entries

    def __len__(self) -> int:
        return len(self.entries)

    def _with_nearest(self, word: str) -> str:
        folded = {known.casefold(): known for known in self.words}
        nearest = difflib.get_close_matches(word.casefold(), folded, n=1)
        return f"'{word}' (nearest: '{folded[nearest[0]]}')" if nearest else f"'{word}'"


def _lines(path: str | Path) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text (byte {error.start}); convert it with iconv") from None
    except OSError as error:
        raise DataError(f"{path}: cannot read the lexicon: {error.strerror}") from None


def _pronunciation(fields: Sequence[str], where: str) -> Pronunciation:
    phones, probability = fields[1:], 1.0
    if phones and _PROBABILITY.match(phones[0]):
        probability, phones = float(phones[0]), phones[1:]
        if not 0 < probability <= 1:
            raise DataError(f"{where}: the probability of '{fields[0]}' is {probability}, expected 0 < p <= 1")
    if not phones:
        raise DataError(f"{where}: the word '{fields[0]}' has no phones; write '{fields[0]} PHONE PHONE ...' or "
                        "remove the line")
    return Pronunciation(tuple(phones), probability)
