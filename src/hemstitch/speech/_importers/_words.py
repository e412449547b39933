"""The words of an imported corpus: their pronunciations, and the language model that comes with it.

The lexicon knows the words of all transcripts, so that every part can be aligned. What can be recognised is decided by
the language model, and that sees nothing but the training part.
"""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from hemstitch.errors import ConfigError
from hemstitch.speech._broken import BrokenUtterance
from hemstitch.speech._importers._recording import Recording
from hemstitch.speech._language_model import LanguageModel
from hemstitch.speech._lexicon import Lexicon, Pronunciation

LETTERS = "letters"
LISTED = 30
"""Words without pronunciation that an error names; the rest are counted."""

_STRESSED = re.compile(r"(AA|AE|AH|AO|AW|AY|EH|ER|EY|IH|IY|OW|OY|UH|UW)[012]")


@dataclass(frozen=True, kw_only=True)
class Words:
    """Where pronunciations and language model come from.

    Attributes:
        lexicon: file in the format of CMUdict or of Kaldi's lexicon.txt; or "letters": each letter is a phone.
        lm: ARPA file; "" for the word frequencies of the training part.
        stress: keep the stress marks of ARPAbet vowels (AH0, AH1, AH2 instead of AH).
        silence: the phone that stands for silence.
    """

    lexicon: str
    lm: str = ""
    stress: bool = False
    silence: str = "SIL"

    def pronounce(self, recordings: Iterable[Recording]) -> tuple[Lexicon, Counter[str]]:
        """The lexicon of the words of transcripts and language model, and those of the transcripts that it lacks.

        A word that is not found as it is written is looked up without regard to upper and lower case.

        Raises:
            ConfigError: no lexicon was given.
            DataError: lexicon or language model cannot be read.
        """
        if not self.lexicon:
            raise ConfigError("no pronunciations: set lexicon to a file with lines WORD PHONE PHONE ... (CMUdict for "
                              "English), or to letters to spell each word")
        spoken = Counter(word for recording in recordings for word in recording.text.split())
        wanted = dict.fromkeys([*sorted(spoken), *(LanguageModel.read(self.lm).vocabulary if self.lm else ())])
        found = _spelled(wanted) if self.lexicon == LETTERS else self._looked_up(wanted)
        missing = Counter({word: count for word, count in spoken.items() if word not in found})
        return Lexicon(found, self.silence), missing

    def write_language_model(self, path: Path, recordings: Iterable[Recording]) -> None:
        """Copy the model that was given, or count the words of the split "train" (of all if there is none)."""
        if self.lm:
            shutil.copyfile(self.lm, path)
            return
        recordings = list(recordings)
        train = [r for r in recordings if r.split == "train"] or recordings
        LanguageModel.unigram(r.text.split() for r in train).write(path)

    def _looked_up(self, wanted: Iterable[str]) -> Mapping[str, tuple[Pronunciation, ...]]:
        entries = Lexicon.read(self.lexicon, self.silence).entries
        folded = {word.casefold(): word for word in reversed(entries)}
        found = {}
        for word in wanted:
            if entry := entries.get(word) or entries.get(folded.get(word.casefold(), "")):
                found[word] = entry if self.stress else tuple(dict.fromkeys(_unstressed(p) for p in entry))
        return found


def _spelled(wanted: Iterable[str]) -> Mapping[str, tuple[Pronunciation, ...]]:
    letters = {word: tuple(c for c in word.casefold() if c.isalnum()) for word in wanted}
    return {word: (Pronunciation(phones),) for word, phones in letters.items() if phones}


def _unstressed(pronunciation: Pronunciation) -> Pronunciation:
    phones = tuple(match[1] if (match := _STRESSED.fullmatch(phone)) else phone for phone in pronunciation.phones)
    return Pronunciation(phones, pronunciation.probability)


def without_pronunciation(recordings: Iterable[Recording], missing: Mapping[str, int]) -> list[BrokenUtterance]:
    """Utterances that cannot be aligned for want of a pronunciation; those of split "test" are only recognised."""
    return [
        BrokenUtterance(r.id, r.where, f"no pronunciation of {', '.join(unknown)}")
        for r in recordings
        if r.split != "test" and (unknown := [word for word in dict.fromkeys(r.text.split()) if word in missing])
    ]


def summary(missing: Counter[str]) -> str:
    """The words without pronunciation, the most frequent first, and what to do."""
    ordered = sorted(missing.items(), key=lambda item: (-item[1], item[0]))
    listed = ", ".join(f"{word} ({count}x)" for word, count in ordered[:LISTED])
    more = f" and {len(ordered) - LISTED} more" if len(ordered) > LISTED else ""
    return f"{len(ordered)} words have no pronunciation: {listed}{more}. Add them to the lexicon."
