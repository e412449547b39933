"""Words of transcripts that the lexicon does not have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from hemstitch.errors import DataError, MisuseError
from hemstitch.speech._lexicon import Lexicon, Pronunciation

UNKNOWN = "<unk>"
"""The word that stands for every word outside the lexicon."""

UnknownWords = Literal["error", "skip", "garbage"]
"""Refuse a transcript with such words; leave the utterance out; align them with a garbage phone."""


def with_garbage(lexicon: Lexicon, word: str = UNKNOWN, phone: str = "SPN") -> Lexicon:
    """The lexicon with a word that is said as one phone of its own, which learns what does not fit elsewhere.

    It is recognised only where the language model has it too.

    Raises:
        MisuseError: the lexicon already uses the phone for something else.
    """
    entry = (Pronunciation((phone,)),)
    if lexicon.entries.get(word) == entry:
        return lexicon
    if word in lexicon or phone in lexicon.phones:
        raise MisuseError(f"with_garbage: the lexicon already has the word '{word}' or the phone '{phone}'; take "
                          "another name for it")
    return replace(lexicon, entries={**lexicon.entries, word: entry})


def resolve_unknown(
    words: Sequence[str], lexicon: Lexicon, policy: UnknownWords, unknown: str = UNKNOWN
) -> list[str] | None:
    """A transcript that can be aligned, or ``None`` if the utterance is to be left out.

    Args:
        words: the transcript.
        lexicon: pronunciations, for "garbage" from :func:`with_garbage`.
        policy: what to do about words that are not in the lexicon.
        unknown: what stands for them under "garbage".

    Raises:
        DataError: there are such words and the policy is "error", or ``unknown`` itself is not in the lexicon.
        MisuseError: there is no such policy.
    """
    if policy not in ("error", "skip", "garbage"):
        raise MisuseError(f"unknown words: expected the policy 'error', 'skip' or 'garbage', got '{policy}'")
    if not lexicon.missing(words):
        return list(words)
    if policy == "skip":
        return None
    if policy == "error":
        lexicon.pronunciations(words)
    if unknown not in lexicon:
        raise DataError(f"unknown words: '{unknown}' is not in the lexicon; add it with `with_garbage`")
    return [word if word in lexicon else unknown for word in words]
