"""Phones told apart by their place in the word, the cheapest kind of context dependence."""

from __future__ import annotations

from hemstitch.speech._lexicon import Lexicon, Pronunciation

BEGIN, INSIDE, END, SINGLE = "_B", "_I", "_E", "_S"


def position_dependent(lexicon: Lexicon) -> Lexicon:
    """The lexicon with each phone marked by its place: ``_B`` first, ``_I`` inside, ``_E`` last, ``_S`` the only one.

    The vowel of the letter A (``EY_S``) and the one that begins EIGHT (``EY_B``) then have states of their own, with no
    tree to grow and no wider decoding graph. Silence stays as it is. Sizes the network's output up to fourfold.

    Reference: D. Povey et al., "The Kaldi speech recognition toolkit", ASRU 2011 (word-position-dependent phones).
    """

    def marked(pronunciation: Pronunciation) -> Pronunciation:
        phones = pronunciation.phones
        places = [SINGLE] if len(phones) == 1 else [BEGIN, *[INSIDE] * (len(phones) - 2), END]
        names = (p if p == lexicon.silence else p + place for p, place in zip(phones, places))
        return Pronunciation(tuple(names), pronunciation.probability)

    entries = {word: tuple(marked(p) for p in pronunciations) for word, pronunciations in lexicon.entries.items()}
    return Lexicon(entries, lexicon.silence)
