r"""Estimating back-off n-gram models from text.

With a(h w) the count of an n-gram, some of it is set free, f, and given to what never followed h; h' is h without its
first word, and below the unigrams lies the uniform distribution:

    p(w | h) = k(h w) / n(h) + [F(h) / n(h)] p(w | h'),    F(h) = sum_w f(h w),    n(h) = sum_w [k(h w) + f(h w)].

    Witten-Bell         k = a,  f = 1                        every word that may follow h counts once more
    modified Kneser-Ney k = a - f,  f = D_1, D_2 or D_3 for a = 1, 2, more

Witten-Bell counts occurrences at every order. Kneser-Ney does so at the highest order, and where an n-gram begins the
sentence; elsewhere a(g) is the number of different words that precede g. Its discounts come from n_i, the number of
n-grams of the order with a = i:

    Y = n_1 / (n_1 + 2 n_2),    D_i = i - (i + 1) Y n_{i+1} / n_i,

or are 1/2, 1, 3/2 where the data are too few for that. F(h) / n(h) is the back-off weight of an ARPA file, exactly.

References: S. F. Chen, J. Goodman, "An empirical study of smoothing techniques for language modeling", Computer Speech
& Language 13 (1999): all three methods, and Y and D_i; R. Kneser, H. Ney, "Improved backing-off for m-gram language
modeling", ICASSP 1995.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

from hemstitch.errors import DataError, MisuseError
from hemstitch.speech._language_model import BEGIN, END, LanguageModel, NGram, log10

Words = tuple[str, ...]
Freed = Callable[[int], float]

_FEW_DATA = (0.5, 1.0, 1.5)


class Perplexity(NamedTuple):
    """How surprised a model is: ``value`` = exp(-average log P), over ``words`` (sentence ends among them).

    ``unknown`` words, which the model does not list, are not predicted, only counted.
    """

    value: float
    words: int
    unknown: int


def estimate_ngrams(
    sentences: Iterable[Sequence[str]],
    order: int = 3,
    *,
    method: Literal["kneser-ney", "witten-bell"] = "kneser-ney",
    words: Iterable[str] = (),
) -> LanguageModel:
    """Estimate an interpolated n-gram model; every n-gram of the text is listed, nothing is pruned.

    Args:
        sentences: the words of each sentence.
        order: length of the longest n-grams, >= 1.
        method: how probability is set free for what was never seen, see the module. Kneser-Ney is the better one for
            running text; Witten-Bell is safe where counts are few or artificial (commands, digits).
        words: further words that shall be possible, for instance the lexicon's.

    Raises:
        DataError: there are no sentences, or one has a mark of beginning or end as a word.
        MisuseError: ``order`` or ``method`` is out of range.

    Cost: order x words dictionary look-ups; about 0.5 kB a listed n-gram.
    """
    if order < 1 or method not in ("kneser-ney", "witten-bell"):
        raise MisuseError(f"estimate_ngrams: expected order >= 1 and method 'kneser-ney' or 'witten-bell', got {order} "
                          f"and '{method}'")
    counts = _count(sentences, order)
    kneser_ney = method == "kneser-ney"
    if kneser_ney:
        counts = [*(_preceded(lower, higher) for lower, higher in pairwise(counts)), counts[-1]]
    vocabulary = dict.fromkeys([*(word for (word,) in counts[0]), *words, END])
    below: Mapping[Words, float] = {(): 1 / len(vocabulary)}
    estimated: list[Mapping[Words, float]] = []
    backoff: dict[Words, float] = {}
    for listed in counts:
        freed = _discounts(listed.values()) if kneser_ney else _one
        share, weights = _shares(listed, freed, discounted=kneser_ney)
        below = {ngram: p + weights[ngram[:-1]] * below[ngram[1:]] for ngram, p in share.items()}
        if not estimated:
            below |= {(word,): weights[()] / len(vocabulary) for word in vocabulary if (word,) not in below}
        estimated.append(below)
        backoff |= weights
    estimated[0] = {(BEGIN,): 0.0} | dict(estimated[0])
    return LanguageModel(tuple(
        {ngram: NGram(log10(p), log10(backoff.get(ngram, 1.0))) for ngram, p in listed.items()}
        for listed in estimated))


def perplexity(model: LanguageModel, sentences: Iterable[Sequence[str]]) -> Perplexity:
    """The perplexity of a model on sentences; infinite if it thinks one impossible.

    Args:
        model: of any order.
        sentences: the words of each sentence.

    Raises:
        DataError: there is nothing to predict.
    """
    total, predicted, unknown = 0.0, 0, 0
    for sentence in sentences:
        text = (BEGIN, *sentence, END)
        for i in range(1, len(text)):
            if model.find(text[i:i + 1]) is None:
                unknown += 1
            else:
                total += model.log_probability(text[i], text[max(0, i - model.order + 1):i])
                predicted += 1
    if not predicted:
        raise DataError("perplexity: there are no sentences")
    return Perplexity(math.exp(-total / predicted), predicted, unknown)


def _count(sentences: Iterable[Sequence[str]], order: int) -> list[Counter[Words]]:
    """How often each n-gram occurs, by order; its last word is never the beginning of the sentence."""
    counts: list[Counter[Words]] = [Counter() for _ in range(order)]
    for sentence in sentences:
        text = (BEGIN, *sentence, END)
        if BEGIN in text[1:] or END in text[:-1]:
            raise DataError(f"estimate_ngrams: '{' '.join(sentence)}' holds {BEGIN} or {END} as a word; leave the "
                            "marks out, they are added")
        for n, counter in enumerate(counts, start=1):
            counter.update(text[i - n + 1:i + 1] for i in range(max(1, n - 1), len(text)))
    if not counts[0]:
        raise DataError("estimate_ngrams: no sentences to count words in")
    return counts


def _preceded(lower: Counter[Words], higher: Counter[Words]) -> Counter[Words]:
    """The number of words that precede each n-gram, or its count where it begins the sentence."""
    found = Counter(ngram[1:] for ngram in higher)
    return Counter({ngram: count if ngram[0] == BEGIN else found[ngram] for ngram, count in lower.items()})


def _discounts(counts: Iterable[int]) -> Freed:
    """Modified Kneser-Ney's f, see the module."""
    of_count = Counter(counts)
    n = [of_count[i] for i in range(1, 5)]
    found = _FEW_DATA
    if all(n[:3]):
        y = n[0] / (n[0] + 2 * n[1])
        found = tuple(i - (i + 1) * y * n[i] / n[i - 1] for i in (1, 2, 3))
    if not all(0 < discount <= i for i, discount in enumerate(found, start=1)):
        found = _FEW_DATA
    return lambda count: found[min(count, 3) - 1]


def _one(count: int) -> float:
    """Witten-Bell's f."""
    return 1.0


def _shares(listed: Mapping[Words, int], freed: Freed, discounted: bool) -> tuple[dict, dict[Words, float]]:
    """k(h w) / n(h) of every n-gram, and F(h) / n(h) of every history."""
    whole: defaultdict[Words, float] = defaultdict(float)
    free: defaultdict[Words, float] = defaultdict(float)
    for ngram, count in listed.items():
        f = freed(count)
        free[ngram[:-1]] += f
        whole[ngram[:-1]] += count if discounted else count + f
    share = {ngram: (count - freed(count) * discounted) / whole[ngram[:-1]] for ngram, count in listed.items()}
    return share, {history: f / whole[history] for history, f in free.items()}
