"""What alignments tell of how words are said: which pronunciation, and how often after a pause.

Reference: G. Chen et al., "Pronunciation and silence probability modeling for ASR", Interspeech 2015, sections 2 and 3
(without its dependence of silence on the words around it).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

from hemstitch.errors import DataError, MisuseError
from hemstitch.speech._align import Alignment
from hemstitch.speech._lexicon import Lexicon, Pronunciation


def estimate_pronunciations(
    lexicon: Lexicon, alignments: Iterable[Alignment], *, smoothing: float = 1.0, relative_to_best: bool = True
) -> Lexicon:
    """The lexicon with probabilities of pronunciations counted in alignments.

    With c the number of times a word was said so, p = (c + s) / sum (c + s) over the pronunciations of the word. Words
    that never occur keep their probabilities, and so do those with one pronunciation.

    Args:
        lexicon: what the alignments were made with.
        alignments: of the training data.
        smoothing: s > 0.
        relative_to_best: divide by the largest p of the word. A search for the best path takes one pronunciation, not
            their sum: so a word is not the dearer for having many.

    Raises:
        MisuseError: ``smoothing`` is not positive.
        DataError: a word was said as the lexicon does not have it.
    """
    if not smoothing > 0:
        raise MisuseError(f"estimate_pronunciations: expected smoothing > 0, got {smoothing}: what was never heard may "
                          "still be said")
    said = Counter(spoken for alignment in alignments for spoken in _said(alignment))
    for word, phones in said:
        if phones not in {p.phones for p in lexicon.entries.get(word, ())}:
            raise DataError(f"'{word}' was aligned as '{' '.join(phones)}', which is not in the lexicon: the alignment "
                            "was made with another one")
    heard = {word for word, _ in said}

    def estimated(word: str, entry: tuple[Pronunciation, ...]) -> tuple[Pronunciation, ...]:
        if word not in heard or len(entry) == 1:
            return entry
        counts = [said[word, p.phones] + smoothing for p in entry]
        whole = max(counts) if relative_to_best else sum(counts)
        return tuple(replace(p, probability=count / whole) for p, count in zip(entry, counts))

    return replace(lexicon, entries={word: estimated(word, entry) for word, entry in lexicon.entries.items()})


def estimate_silence_probability(
    alignments: Iterable[Alignment], silence: str = "SIL", *, smoothing: float = 1.0
) -> float:
    """How often silence stands between words and at the ends of utterances: (n + s) / (gaps + 2 s).

    Args:
        alignments: of the training data; one of w words has w + 1 gaps.
        silence: the silence phone.
        smoothing: s >= 0, counted for silence and for its absence.

    Raises:
        DataError: there is nothing to count.
    """
    silent, gaps = smoothing, 2 * smoothing
    for alignment in alignments:
        silent += sum(phone.label == silence for phone in alignment.phones)
        gaps += len(alignment.words) + 1
    if not gaps > 0:
        raise DataError("estimate_silence_probability: no alignments to count in")
    return silent / gaps


def _said(alignment: Alignment) -> Iterable[tuple[str, tuple[str, ...]]]:
    """Every word of an alignment with its phones."""
    for word in alignment.words:
        yield word.label, tuple(p.label for p in alignment.phones if word.start <= p.start < word.end)
