"""Reference and hypothesis words side by side, with the fewest insertions, deletions and substitutions."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

Pair = tuple[str | None, str | None]


@dataclass(frozen=True, kw_only=True)
class Errors:
    """Word errors of some utterances against their references."""

    words: int = 0
    insertions: int = 0
    deletions: int = 0
    substitutions: int = 0

    @property
    def total(self) -> int:
        """Insertions, deletions and substitutions."""
        return self.insertions + self.deletions + self.substitutions

    @property
    def rate(self) -> float:
        """Errors by reference words; infinite for errors without any reference word, 0 for nothing at all."""
        return self.total / self.words if self.words else float("inf" if self.total else 0)


def align_words(reference: Sequence[str], hypothesis: Sequence[str]) -> tuple[Pair, ...]:
    """Pairs (reference word, hypothesis word) of one alignment with the fewest errors; None where a word has no mate.

    Among equally good alignments, pairs are preferred to a deletion next to an insertion. Rows of the distance
    table are filled at once: D[i, j] = min over k <= j of (step[k] - k) + j, where step is the best arrival from the
    row above, takes the chain of insertions out of the loop. Cost: O(len(reference) x len(hypothesis)).
    """
    distance = _distances(reference, hypothesis)
    pairs: list[Pair] = []
    i, j = len(reference), len(hypothesis)
    while i or j:
        here = distance[i, j]
        if i and j and here == distance[i - 1, j - 1] + (reference[i - 1] != hypothesis[j - 1]):
            i, j = i - 1, j - 1
            pairs.append((reference[i], hypothesis[j]))
        elif i and here == distance[i - 1, j] + 1:
            i -= 1
            pairs.append((reference[i], None))
        else:
            j -= 1
            pairs.append((None, hypothesis[j]))
    return tuple(reversed(pairs))


def _distances(reference: Sequence[str], hypothesis: Sequence[str]) -> np.ndarray:
    numbers = {word: k for k, word in enumerate(dict.fromkeys((*reference, *hypothesis)))}
    columns = np.array([numbers[word] for word in hypothesis], dtype=np.int32)
    ramp = np.arange(len(hypothesis) + 1, dtype=np.int32)
    distance = np.empty((len(reference) + 1, len(ramp)), dtype=np.int32)
    distance[0] = ramp
    for i, word in enumerate(reference, start=1):
        step = distance[i - 1] + 1
        step[1:] = np.minimum(step[1:], distance[i - 1, :-1] + (columns != numbers[word]))
        distance[i] = np.minimum.accumulate(step - ramp) + ramp
    return distance


def count_errors(pairs: Iterable[Pair]) -> Errors:
    """The kinds of error in aligned pairs."""
    pairs = tuple(pairs)
    return Errors(
        words=sum(reference is not None for reference, _ in pairs),
        insertions=sum(reference is None for reference, _ in pairs),
        deletions=sum(hypothesis is None for _, hypothesis in pairs),
        substitutions=sum(None not in pair and pair[0] != pair[1] for pair in pairs),
    )


def sum_errors(errors: Iterable[Errors]) -> Errors:
    """Counts added up."""
    errors = tuple(errors)
    return Errors(
        words=sum(e.words for e in errors),
        insertions=sum(e.insertions for e in errors),
        deletions=sum(e.deletions for e in errors),
        substitutions=sum(e.substitutions for e in errors),
    )
