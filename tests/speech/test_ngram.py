import json
import lzma
import math

import numpy as np
import pytest

from hemstitch.errors import DataError, MisuseError
from hemstitch.speech import LanguageModel, estimate_ngrams, perplexity

METHODS = pytest.mark.parametrize("method", ["kneser-ney", "witten-bell"])


def text(seed, num_sentences, words="abcdef"):
    """Sentences of a random Markov chain."""
    rng = np.random.default_rng(seed)
    likes = rng.dirichlet(np.full(len(words), 0.3), len(words))
    for _ in range(num_sentences):
        word, sentence = int(rng.integers(len(words))), []
        for _ in range(rng.integers(0, 9)):
            word = int(rng.choice(len(words), p=likes[word]))
            sentence.append(words[word])
        yield sentence


class SlowModel:
    """The recursions as they are written, on lists of n-grams that are searched anew for every question."""

    def __init__(self, sentences, order, method, words):
        self.texts = [["<s>", *sentence, "</s>"] for sentence in sentences]
        self.order, self.method = order, method
        self.vocabulary = {word for text in self.texts for word in text[1:]} | set(words)

    def occurrences(self, ngram):
        n = len(ngram)
        return sum(tuple(text[i:i + n]) == ngram for text in self.texts for i in range(len(text) - n + 1))

    def counts(self, n):
        """n-gram -> a(n-gram)."""
        ngrams = {tuple(text[i - n + 1:i + 1]) for text in self.texts for i in range(max(1, n - 1), len(text))}
        if self.method == "witten-bell" or n == self.order:
            return {g: self.occurrences(g) for g in ngrams}
        before = self.vocabulary | {"<s>"}
        return {g: self.occurrences(g) if g[0] == "<s>" else sum(self.occurrences((v, *g)) > 0 for v in before)
                for g in ngrams}

    def discounts(self, n):
        n1, n2, n3, n4 = (list(self.counts(n).values()).count(i) for i in (1, 2, 3, 4))
        if not (n1 and n2 and n3):
            return 0.5, 1.0, 1.5
        y = n1 / (n1 + 2 * n2)
        found = 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3
        return found if 0 < found[0] <= 1 and 0 < found[1] <= 2 and 0 < found[2] <= 3 else (0.5, 1.0, 1.5)

    def probability(self, word, history):
        """p(word | the last words of the history)."""
        h = tuple(history)[max(0, len(history) - self.order + 1):]
        lower = 1 / len(self.vocabulary)
        for n in range(1, len(h) + 2):
            counts = self.counts(n)
            own = h[len(h) - n + 1:]
            follow = {g[-1]: c for g, c in counts.items() if g[:-1] == own}
            if follow:
                total, seen = sum(follow.values()), follow.get(word, 0)
                if self.method == "witten-bell":
                    lower = (seen + len(follow) * lower) / (total + len(follow))
                else:
                    d = self.discounts(n)
                    free = sum(d[min(c, 3) - 1] for c in follow.values())
                    lower = (seen - (d[min(seen, 3) - 1] if seen else 0) + free * lower) / total
        return lower


@METHODS
@pytest.mark.parametrize(("order", "seed", "size"), [(1, 0, 4), (2, 1, 3), (2, 2, 30), (3, 3, 12), (3, 4, 1),
                                                       (4, 5, 12)])
def test_equals_the_slow_twin_and_sums_to_one(method, order, seed, size, tmp_path):
    sentences = [*text(seed, size), ["a", "b"]]
    model = estimate_ngrams(sentences, order, method=method, words=["g"])
    slow = SlowModel(sentences, order, method, ["g"])
    assert model.order == order and set(model.vocabulary) == slow.vocabulary - {"</s>"}
    model.write(tmp_path / "lm.arpa")
    again = LanguageModel.read(tmp_path / "lm.arpa")
    histories = [(), ("<s>",), ("g",), ("g", "a"), *(h for h in model.contexts() if h)]
    for history in [*histories[:4], *histories[4::7]]:
        found = {word: math.exp(model.log_probability(word, history)) for word in slow.vocabulary}
        assert found == pytest.approx({word: slow.probability(word, history) for word in slow.vocabulary}, rel=1e-9)
    for history in histories:
        for read, digits in ((model, 1e-12), (again, 1e-5)):
            total = sum(math.exp(read.log_probability(word, history)) for word in slow.vocabulary)
            assert total == pytest.approx(1, abs=digits)


def test_discounts_are_the_estimated_ones_where_there_are_enough_data():
    counts = {"a": 1, "b": 1, "c": 1, "d": 1, "e": 2, "f": 2, "g": 3, "h": 4, "i": 9}
    sentences = [[word] * count for word, count in counts.items()]
    model = estimate_ngrams(sentences, 1)  # </s> occurs 9 times
    y, total = 4 / 8, 33  # n_1 ... n_4 = 4, 2, 1, 1
    d1, d2, d3 = 1 - 2 * y * 2 / 4, 2 - 3 * y * 1 / 2, 3 - 4 * y * 1 / 1
    free = (4 * d1 + 2 * d2 + 4 * d3) / total / 10
    assert math.exp(model.log_probability("a")) == pytest.approx((1 - d1) / total + free)
    assert math.exp(model.log_probability("i")) == pytest.approx((9 - d3) / total + free)


def test_perplexity_is_the_inverse_geometric_mean():
    model = estimate_ngrams([["a", "b"], ["a"]], 2, method="witten-bell")
    sentences = [["a", "b"], ["b", "x", "a"], []]
    chances = [("a", "<s>"), ("b", "a"), ("</s>", "b"), ("b", "<s>"), ("a", "x"), ("</s>", "a"), ("</s>", "<s>")]
    product = math.prod(math.exp(model.log_probability(word, [history])) for word, history in chances)
    assert perplexity(model, sentences) == pytest.approx((product ** (-1 / 7), 7, 1))
    impossible = LanguageModel.unigram([["a"]], words=["b"], smoothing=0.0)
    assert perplexity(impossible, [["b"]]).value == math.inf


def test_refuses_what_cannot_be():
    with pytest.raises(MisuseError, match="order >= 1"):
        estimate_ngrams([["a"]], 0)
    with pytest.raises(MisuseError, match="'good-turing'"):
        estimate_ngrams([["a"]], 2, method="good-turing")
    with pytest.raises(DataError, match="no sentences"):
        estimate_ngrams([])
    with pytest.raises(DataError, match="leave the marks out"):
        estimate_ngrams([["<s>", "a"]])
    with pytest.raises(DataError, match="no sentences"):
        perplexity(estimate_ngrams([["a"]]), [])


def test_longer_histories_help_on_an4(shared_data):
    train, test = ([json.loads(line)["text"].split() for line in (shared_data / f"an4/{part}.jsonl").read_text()
                    .splitlines()] for part in ("train", "test"))
    values = {(method, n): perplexity(estimate_ngrams(train, n, method=method), test).value
              for method in ("kneser-ney", "witten-bell") for n in (1, 2, 3)}
    for method in ("kneser-ney", "witten-bell"):
        assert values[method, 1] > 1.8 * values[method, 2] and values[method, 2] > values[method, 3]


def test_kneser_ney_is_best_on_running_text(shared_data):
    train, test = ([line.split() for line in lzma.open(shared_data / f"text/novels.{part}.txt.xz", "rt")]
                   for part in ("valid", "test"))
    words = (shared_data / "text/novels.vocab.txt").read_text().split()
    values = {method: perplexity(estimate_ngrams(train, 3, method=method, words=words), test[:500])
              for method in ("kneser-ney", "witten-bell")}
    assert values["kneser-ney"].unknown == values["witten-bell"].unknown == 0
    assert values["kneser-ney"].value < 0.9 * values["witten-bell"].value
