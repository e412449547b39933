r"""Back-off n-gram language models and their file format, ARPA.

With h = w_1 ... w_{n-1} the words before w,

    log P(w | h) = log p(h w)                           if the n-gram h w is listed,
                 = backoff(h) + log P(w | w_2 ... w_{n-1})    otherwise; backoff(h) = 0 where h is not listed.

A file has free text up to a line ``\data\``, the counts of n-grams, and one section per order with lines
``log10(p) w_1 ... w_n [log10(backoff)]``. -99 stands for a probability of zero.

Reference: F. Jelinek, "Statistical Methods for Speech Recognition" (1997), chapter 4.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from hemstitch.errors import DataError
from hemstitch.speech._files import new_file

BEGIN, END = "<s>", "</s>"
LOG_ZERO = -99.0
"""log10 of a probability that counts as zero."""


class NGram(NamedTuple):
    """log10 of the probability of an n-gram's last word after the others, and of its back-off weight."""

    log10_probability: float
    log10_backoff: float = 0.0


@dataclass(frozen=True)
class LanguageModel:
    """A back-off n-gram model.

    Attributes:
        ngrams: one dictionary per order, unigrams first: from the words of an n-gram to its weights.
    """

    ngrams: tuple[dict[tuple[str, ...], NGram], ...]

    @classmethod
    def read(cls, path: str | Path) -> LanguageModel:
        r"""Read an ARPA file of any order.

        Raises:
            DataError: names file and line: no ``\data\`` or ``\end\``, a line that is no n-gram, a probability above 1,
                other counts than announced, or no sentence end ``</s>`` among the unigrams.
        """
        return cls(_Reader(path).read())

    @classmethod
    def unigram(
        cls, sentences: Iterable[Sequence[str]], words: Iterable[str] = (), smoothing: float = 1.0
    ) -> LanguageModel:
        """Estimate word frequencies: p(w) = (count(w) + s) / sum_v (count(v) + s), the sentence end being one of the v.

        Args:
            sentences: the words of each sentence.
            words: further words that shall be possible, for instance the lexicon's.
            smoothing: s >= 0, added to every count.

        Raises:
            DataError: there is nothing to count.
        """
        counts: Counter[str] = Counter(dict.fromkeys((*words, END), 0))
        for sentence in sentences:
            counts.update((*sentence, END))
        total = sum(counts.values()) + smoothing * len(counts)
        if total <= 0:
            raise DataError("language model: no sentences to count words in; give some, or words and smoothing > 0")
        listed = {(word,): NGram(log10((n + smoothing) / total)) for word, n in counts.items()}
        return cls(({(BEGIN,): NGram(LOG_ZERO)} | listed,))

    def write(self, path: str | Path) -> None:
        """Write an ARPA file; reading it gives the same model, to 7 digits after the point."""
        with new_file(Path(path)) as partial, open(partial, "w", encoding="utf-8") as file:
            file.write("\\data\\\n")
            file.writelines(f"ngram {n}={len(listed)}\n" for n, listed in enumerate(self.ngrams, start=1))
            for n, listed in enumerate(self.ngrams, start=1):
                file.write(f"\n\\{n}-grams:\n")
                for words, (probability, backoff) in listed.items():
                    weight = f"\t{backoff:.7f}" if backoff and n < self.order else ""
                    file.write(f"{probability:.7f}\t{' '.join(words)}{weight}\n")
            file.write("\n\\end\\\n")

    @property
    def order(self) -> int:
        """The longest n-gram's number of words."""
        return len(self.ngrams)

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """The words that can be spoken: all unigrams but ``<s>`` and ``</s>``."""
        return tuple(word for (word,) in self.ngrams[0] if word not in (BEGIN, END))

    def find(self, words: tuple[str, ...]) -> NGram | None:
        """The weights of an n-gram, ``None`` where it is not listed."""
        return self.ngrams[len(words) - 1].get(words) if 0 < len(words) <= self.order else None

    def log_probability(self, word: str, history: Sequence[str] = ()) -> float:
        """log P(word | history) in nats, -inf for a word that is not listed or has probability zero."""
        backoff = 0.0
        context = tuple(history)[max(0, len(history) - self.order + 1):]
        for begin in range(len(context) + 1):
            h = context[begin:]
            if found := self.find((*h, word)):
                return nats(found.log10_probability) + backoff
            backoff += nats(listed.log10_backoff) if (listed := self.find(h)) else 0.0
        return -math.inf

    def sentence_log_probability(self, words: Sequence[str]) -> float:
        """log P of a whole sentence with its end, in nats."""
        sentence = (BEGIN, *words, END)
        return sum(self.log_probability(sentence[i], sentence[:i]) for i in range(1, len(sentence)))

    def contexts(self) -> dict[tuple[str, ...], float]:
        """The histories that are told from all shorter ones, with their back-off in nats; the empty one comes first.

        They are the states of the model as an automaton.
        """
        extended = dict.fromkeys(words[:-1] for listed in self.ngrams[1:] for words in listed)
        weighted = (words for listed in self.ngrams[:-1] for words, weights in listed.items() if weights.log10_backoff)
        found = {words: self.find(words) for words in ((), *extended, *weighted)}
        return {words: nats(weights.log10_backoff) if weights else 0.0 for words, weights in found.items()}


def nats(log10: float) -> float:
    """log10 as in an ARPA file to natural log: -99 and below become -inf."""
    return -math.inf if log10 <= LOG_ZERO else log10 * math.log(10.0)


def log10(probability: float) -> float:
    """As in an ARPA file: -99 for a probability of zero."""
    return math.log10(probability) if probability > 0 else LOG_ZERO


class _Reader:
    """Reads one ARPA file line by line, remembering where it is for error messages."""

    def __init__(self, path: str | Path):
        self.path, self.number = path, 0

    def read(self) -> tuple[dict[tuple[str, ...], NGram], ...]:
        lines = self._lines()
        for line in lines:
            if line == "\\data\\":
                break
        else:
            raise self._error(r"no line '\data\': this is not an ARPA language model")
        announced, sections = self._body(lines)
        for n, count in announced.items():
            if len(sections.get(n, ())) != count:
                raise self._error(f"{len(sections.get(n, ()))} {n}-grams, but 'ngram {n}={count}' was announced; "
                                  "the file is damaged or was edited by hand")
        if sorted(sections) != list(range(1, len(announced) + 1)):
            raise self._error(f"sections for orders {sorted(sections)}, but {len(announced)} orders were announced")
        if (END,) not in sections.get(1, {}):
            raise self._error(f"no '{END}' among the unigrams; sentences could never end: add it")
        return tuple(sections[n] for n in sorted(sections))

    def _body(self, lines: Iterator[str]) -> tuple[dict[int, int], dict[int, dict[tuple[str, ...], NGram]]]:
        announced: dict[int, int] = {}
        sections: dict[int, dict[tuple[str, ...], NGram]] = {}
        order = 0
        for line in lines:
            if line == "\\end\\":
                return announced, sections
            if section := re.fullmatch(r"\\(\d+)-grams:", line):
                order = int(section[1])
                sections[order] = {}
            elif order:
                words, weights = self._ngram(line, order)
                sections[order][words] = weights
            elif count := re.fullmatch(r"ngram\s+(\d+)\s*=\s*(\d+)", line):
                announced[int(count[1])] = int(count[2])
            else:
                raise self._error(f"expected 'ngram N=COUNT' or '\\1-grams:', got '{line}'")
        raise self._error(r"the file ends without '\end\': it was cut off")

    def _ngram(self, line: str, order: int) -> tuple[tuple[str, ...], NGram]:
        fields = line.split()
        try:
            if len(fields) not in (order + 1, order + 2):
                raise ValueError
            weights = NGram(float(fields[0]), *map(float, fields[order + 1:]))
        except ValueError:
            raise self._error(f"expected log10(p), {order} word(s) and maybe a back-off weight, got '{line}'") from None
        if not weights.log10_probability <= 1e-6 or math.isnan(weights.log10_backoff):
            raise self._error(f"log10 of a probability is at most 0, got '{line}'")
        return tuple(fields[1:order + 1]), weights

    def _lines(self) -> Iterator[str]:
        try:
            with open(self.path, encoding="utf-8") as file:
                for self.number, line in enumerate(file, start=1):
                    if line := line.strip():
                        yield line
        except UnicodeDecodeError:
            raise self._error("not UTF-8 text; convert it with iconv") from None
        except OSError as error:
            raise DataError(f"{self.path}: cannot read the language model: {error.strerror}") from None

    def _error(self, text: str) -> DataError:
        return DataError(f"{self.path}:{self.number}: {text}")
