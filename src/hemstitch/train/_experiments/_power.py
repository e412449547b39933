"""How often the comparison sees a gain that is there, and one that is not: a simulation without training.

Every word of a corpus has a chance that a network gets it wrong. Few words are wrong by chance: most are easy for
every network and some are hard for every network, so two networks repeat many of each other's errors. How many, the
*agreement*, decides what a paired comparison can see, because only errors that are not repeated are noise:

    variance of the difference of two networks ~ 2 x words x error rate x (1 - agreement).

A planted method A multiplies all chances by 1 - gain. Besides, each network (method, fold, seed) has luck of its
own, a factor exp(deviation z - deviation^2 / 2) on its chances, z standard normal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hemstitch.errors import ConfigError, RunError
from hemstitch.report import align_words
from hemstitch.train._experiments._paired_bootstrap import PairedErrors
from hemstitch.train._experiments._pooling import Counts, read_answers

Words = tuple[np.ndarray, np.ndarray]
"""(word,) chance that a network gets it wrong, and (word,) speaker, counted from 0 and rising."""
Sampler = Callable[[np.random.Generator], Words]
"""Draws another set of speakers with their words."""


@dataclass(frozen=True, kw_only=True)
class Detection:
    """How often the comparison of A with B gave which verdict.

    Attributes:
        trials: simulated comparisons.
        better, worse: share in which A was found better, or worse: the 95 % interval of the gain leaves 0 out.
        covered: share in which the interval of the relative gain held the planted one.
        gain: mean relative gain that was found.
        error_rate: mean pooled error rate of B.
    """

    trials: int
    better: float
    worse: float
    covered: float
    gain: float
    error_rate: float


def detection_power(
    sample: Sampler,
    *,
    gain: float = 0.1,
    seeds: int = 2,
    folds: int = 5,
    network_deviation: float = 0.03,
    trials: int = 1000,
    replications: int = 1000,
    seed: int = 0,
) -> Detection:
    """Plant a relative gain and count how often the comparison finds it; a gain of 0 gives the false alarms.

    Args:
        sample: draws speakers and words, see :func:`model_words` and :func:`words_like`.
        gain: planted, as a share of the error rate.
        seeds, folds: of the cross-validation.
        network_deviation: luck of a network, as a share of its errors (relative standard deviation).
        trials: simulated comparisons.
        replications: bootstrap samples in each.
        seed: of everything.

    Cost: about 20 ms a trial at 76 speakers, 2 seeds and 1000 replications.
    """
    random, found = np.random.default_rng(seed), []
    for trial in range(trials):
        chances, speakers = sample(random)
        words = np.bincount(speakers)
        fold_of = random.permutation(len(words)) % folds
        luck = np.exp(network_deviation * random.standard_normal((2, seeds, folds)) - network_deviation**2 / 2)
        luck[0] *= 1 - gain
        wrong = random.random((2, seeds, len(chances))) < chances * luck[:, :, fold_of[speakers]]
        errors = np.add.reduceat(wrong, np.cumsum(words) - words, axis=2, dtype=np.int64)
        pair = PairedErrors(errors, words, fold_of, replications=replications, seed=trial)
        found.append((pair.gain(0, 1), pair.rates[1].mean()))
    gains = [g for g, _ in found]
    return Detection(
        trials=trials,
        better=float(np.mean([g.verdict == "better" for g in gains])),
        worse=float(np.mean([g.verdict == "worse" for g in gains])),
        covered=float(np.mean([g.relative_low <= gain <= g.relative_high for g in gains])),
        gain=float(np.mean([g.relative for g in gains])),
        error_rate=float(np.mean([rate for _, rate in found])),
    )


def model_words(
    words_per_speaker: Sequence[int],
    *,
    error_rate: float = 0.15,
    speaker_deviation: float = 0.06,
    agreement: float = 0.7,
) -> Sampler:
    """Speakers and words from two beta distributions: a speaker's error rate, and around it the chances of the words.

    Args:
        words_per_speaker: how much each says.
        error_rate: mean over speakers.
        speaker_deviation: standard deviation over speakers.
        agreement: chance that a network repeats an error of another.

    Raises:
        ConfigError: there are no such distributions.
    """
    if not (0 < error_rate < agreement < 1 and 0 < speaker_deviation**2 < error_rate * (1 - error_rate)):
        raise ConfigError(
            "need 0 < error_rate < agreement < 1 and speaker_deviation below the square root of "
            f"error_rate (1 - error_rate), got {error_rate}, {agreement}, {speaker_deviation}"
        )
    between = error_rate * (1 - error_rate) / speaker_deviation**2 - 1
    # E[p^2] / E[p] = agreement, where p has mean r given the speaker and variance r (1 - r) / (1 + within)
    mean, square = error_rate, error_rate**2 + speaker_deviation**2
    within = (mean - square) / (agreement * mean - square) - 1
    speakers = np.repeat(np.arange(len(words_per_speaker)), words_per_speaker)

    def sample(random: np.random.Generator) -> Words:
        rates = random.beta(error_rate * between, (1 - error_rate) * between, len(words_per_speaker))
        rates = np.clip(rates, 1e-6, 1 - 1e-6)[speakers]
        return random.beta(rates * within, (1 - rates) * within), speakers

    return sample


def words_like(counts: Counts, agreement: float, num_speakers: int) -> Sampler:
    """Speakers drawn with replacement from those of a real test: their utterances, with as many errors as it found.

    A word that was wrong is wrong again with chance h, another word of the speaker with chance o (1 - h), where o is
    the speaker's ratio of wrong to right words: this keeps each speaker's error rate, and h gives the agreement. Of
    an utterance with more errors than words, as many count as it has words.

    Args:
        counts: utterance -> speaker, words, errors, as :func:`read_counts` gives them.
        agreement: chance that a network repeats an error of another.
        num_speakers: how many to draw.

    Raises:
        ConfigError: there is no error, or less agreement than by chance.
    """
    by_speaker: dict[str, list[tuple[int, int]]] = {}
    for speaker, words, errors in counts.values():
        by_speaker.setdefault(speaker, []).append((words, min(words, errors)))
    totals = np.array([np.sum(utterances, axis=0) for utterances in by_speaker.values()])
    words, wrong = totals.sum(axis=0)
    if not 0 < wrong / words < agreement < 1:
        raise ConfigError(f"need 0 < error rate < agreement < 1, got {wrong / words:.4g} and {agreement}")
    odds = wrong / (words - wrong)
    again = (odds + np.sqrt(odds**2 - (1 + odds) * (odds - agreement))) / (1 + odds)
    chances = [np.repeat([again, min(e / max(n - e, 1) * (1 - again), again)], [e, n - e]) for n, e in totals.tolist()]

    def sample(random: np.random.Generator) -> Words:
        drawn = random.integers(0, len(chances), num_speakers)
        lengths = [len(chances[k]) for k in drawn]
        return np.concatenate([chances[k] for k in drawn]), np.repeat(np.arange(num_speakers), lengths)

    return sample


def measured_agreement(one: Path, other: Path) -> float:
    """The share of wrong words of one run that are wrong in another, mean of both directions.

    Args:
        one, other: run folders, or decode/PART.jsonl files, with utterances in common; insertions are left out.

    Raises:
        RunError: nothing in common, or one of them has no wrong word.
    """
    a, b = _wrong_words(one), _wrong_words(other)
    common = {utterance for utterance, _ in a} & {utterance for utterance, _ in b}
    wrong_a, wrong_b = ({key for key, wrong in x.items() if wrong and key[0] in common} for x in (a, b))
    if not wrong_a or not wrong_b:
        raise RunError(f"{one} and {other}: no utterance in common, or no wrong word: there is no agreement to measure")
    both = len(wrong_a & wrong_b)
    return (both / len(wrong_a) + both / len(wrong_b)) / 2


def _wrong_words(run: Path) -> dict[tuple[str, int], bool]:
    """(utterance, position) of each reference word -> whether it was recognised as something else."""
    wrong = {}
    for row in read_answers(run):
        pairs = align_words(row["reference"].split(), row["hypothesis"].split())
        spoken = ((word, heard) for word, heard in pairs if word is not None)
        wrong |= {(row["id"], k): word != heard for k, (word, heard) in enumerate(spoken)}
    return wrong
