"""Word error rate, with the uncertainty that a small test set leaves.

    rate = (substitutions + deletions + insertions) / reference words

from the alignment of each hypothesis with its reference that has the fewest errors. The confidence interval is the
bootstrap's: whole speakers (or utterances) are drawn with replacement, because errors of one speaker go together.

Reference: M. Bisani, H. Ney, "Bootstrap estimates for confidence intervals in ASR performance evaluation", ICASSP 2004.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from hemstitch.errors import DataError
from hemstitch.speech._media import require

Transcripts = Mapping[str, str | Sequence[str]]
_GAP = ""
"""Stands for no word in an alignment; no word is empty."""


@dataclass(frozen=True, kw_only=True)
class ErrorCounts:
    """Errors of an utterance, a speaker or a test set.

    Attributes:
        words: words of the reference.
        insertions, deletions, substitutions: errors of each kind.
    """

    words: int = 0
    insertions: int = 0
    deletions: int = 0
    substitutions: int = 0

    @property
    def errors(self) -> int:
        """All errors."""
        return self.insertions + self.deletions + self.substitutions

    @property
    def rate(self) -> float:
        """Errors per reference word: 0.1 is 10 %; inf for errors against an empty reference."""
        return self.errors / self.words if self.words else float("inf") if self.errors else 0.0

    def __add__(self, other: ErrorCounts) -> ErrorCounts:
        return ErrorCounts(words=self.words + other.words, insertions=self.insertions + other.insertions,
                           deletions=self.deletions + other.deletions,
                           substitutions=self.substitutions + other.substitutions)


@dataclass(frozen=True, kw_only=True)
class WordErrorRate:
    """A scored test set.

    Attributes:
        total: errors of the whole set; also as ``words``, ``insertions``, ``deletions``, ``substitutions``, ``rate``.
        low, high: 95 % bootstrap confidence interval of the rate.
        utterances: errors of each utterance, in the order of the references.
        speakers: errors of each speaker; empty where speakers were not told.
        missing: utterances without a hypothesis, counted as deletions.
        pairs: the aligned (reference word, hypothesis word) pairs of each utterance; "" for none.
    """

    total: ErrorCounts
    low: float
    high: float
    utterances: Mapping[str, ErrorCounts]
    speakers: Mapping[str, ErrorCounts]
    missing: tuple[str, ...]
    pairs: Mapping[str, tuple[tuple[str, str], ...]]

    @property
    def words(self) -> int:
        """Words of the references."""
        return self.total.words

    @property
    def insertions(self) -> int:
        """Words of the hypotheses without a counterpart."""
        return self.total.insertions

    @property
    def deletions(self) -> int:
        """Words of the references without a counterpart."""
        return self.total.deletions

    @property
    def substitutions(self) -> int:
        """Words recognised as others."""
        return self.total.substitutions

    @property
    def rate(self) -> float:
        """Errors per reference word: 0.1 is 10 %."""
        return self.total.rate

    @cached_property
    def confusions(self) -> list[tuple[str, str, int]]:
        """(reference word, hypothesis word, count) of all errors, most frequent first; "" for none."""
        counts = Counter(pair for pairs in self.pairs.values() for pair in pairs if pair[0] != pair[1])
        return [(*pair, n) for pair, n in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]

    def aligned_text(self, utterance: str, gap: str = "***") -> str:
        """Reference and hypothesis, one below the other, errors marked by S, D, I in a third line."""
        columns = [(ref or gap, hyp or gap, _kind(ref, hyp)) for ref, hyp in self.pairs[utterance]]
        widths = [max(map(len, column)) for column in columns]
        rows = zip(("REF", "HYP", "   "), zip(*columns) if columns else ((), (), ()))
        return "\n".join(" ".join([name, *map(str.ljust, row, widths)]).rstrip() for name, row in rows)

    def __str__(self) -> str:
        by = "speaker" if self.speakers else "utterance"
        missing = f"; no hypothesis for {', '.join(self.missing[:3])}" if self.missing else ""
        missing += f" and {len(self.missing) - 3} more" if len(self.missing) > 3 else ""
        return (f"WER {self.rate:.2%} [{self.low:.2%}, {self.high:.2%}] (95 %, by {by}): {self.total.errors} errors in "
                f"{self.words} words, {self.insertions} insertions, {self.deletions} deletions, "
                f"{self.substitutions} substitutions{missing}")


def word_error_rate(
    references: Transcripts,
    hypotheses: Transcripts,
    speakers: Mapping[str, str] | None = None,
    *,
    replications: int = 10_000,
    seed: int = 0,
) -> WordErrorRate:
    """Score hypotheses; an utterance without one counts as deleted.

    Args:
        references: the words of each utterance (a string is split at blanks).
        hypotheses: likewise.
        speakers: the speaker of each utterance; given, the bootstrap draws speakers, else utterances.
        replications: bootstrap samples.
        seed: of the bootstrap: the same seed gives the same interval.

    Raises:
        DataError: no reference words, a hypothesis without a reference, or an utterance without a speaker.
    """
    refs, hyps = _split(references), _split(hypotheses)
    _check(refs, hyps, speakers)
    pairs = {utterance: _align(words, hyps.get(utterance, ())) for utterance, words in refs.items()}
    utterances = {utterance: _count(aligned) for utterance, aligned in pairs.items()}
    by_speaker: dict[str, ErrorCounts] = {}
    for utterance, speaker in ((key, speakers[key]) for key in refs) if speakers else ():
        by_speaker[speaker] = by_speaker.get(speaker, ErrorCounts()) + utterances[utterance]
    low, high = _interval(list((by_speaker or utterances).values()), replications, seed)
    return WordErrorRate(
        total=sum(utterances.values(), ErrorCounts()), low=low, high=high, utterances=utterances, speakers=by_speaker,
        missing=tuple(utterance for utterance in refs if utterance not in hyps), pairs=pairs)


def _split(transcripts: Transcripts) -> dict[str, tuple[str, ...]]:
    return {key: tuple(words.split() if isinstance(words, str) else words) for key, words in transcripts.items()}


def _check(refs: Mapping, hyps: Mapping, speakers: Mapping | None) -> None:
    if not any(refs.values()):
        raise DataError("word error rate: there is no reference word to compare with")
    if strangers := [key for key in hyps if key not in refs]:
        raise DataError(f"word error rate: {len(strangers)} hypotheses have no reference, among them {strangers[:3]}; "
                        "score against the references of the same set")
    if speakers is not None and (nobodys := [key for key in refs if key not in speakers]):
        raise DataError(f"word error rate: {len(nobodys)} utterances have no speaker, among them {nobodys[:3]}; "
                        "name one for each, or leave `speakers` out")


def _align(reference: Sequence[str], hypothesis: Sequence[str]) -> tuple[tuple[str, str], ...]:
    return tuple(require("kaldialign").align(reference, hypothesis, _GAP))


def _kind(ref: str, hyp: str) -> str:
    """I, D, S or nothing for a pair of an alignment."""
    return "" if ref == hyp else "I" if ref == _GAP else "D" if hyp == _GAP else "S"


def _count(pairs: Sequence[tuple[str, str]]) -> ErrorCounts:
    kinds = Counter(_kind(*pair) for pair in pairs)
    return ErrorCounts(words=sum(ref != _GAP for ref, _ in pairs), insertions=kinds["I"], deletions=kinds["D"],
                       substitutions=kinds["S"])


def _interval(units: Sequence[ErrorCounts], replications: int, seed: int, chunk: int = 100) -> tuple[float, float]:
    """The 2.5 and 97.5 % quantiles of the rate over resampled units."""
    errors, words = np.array([unit.errors for unit in units]), np.array([unit.words for unit in units])
    rng, rates = np.random.default_rng(seed), []
    for begin in range(0, replications, chunk):
        drawn = rng.integers(0, len(units), (min(chunk, replications - begin), len(units)))
        rates.append(errors[drawn].sum(axis=1) / np.maximum(words[drawn].sum(axis=1), 1))
    low, high = np.quantile(np.concatenate(rates), [0.025, 0.975])
    return float(low), float(high)
