import math

import pytest

from hemstitch.errors import DataError
from hemstitch.speech import LanguageModel

TRIGRAM = r"""free text, and a line that only mentions \data\
\data\
ngram 1=5
ngram 2=3
ngram 3=1

\1-grams:
-99 <s> -0.3
-1.0 </s>
-0.5 a -0.2
-0.7 b -99
-0.9 c

\2-grams:
-0.1 <s> a -0.4
-0.2 a b
-0.3 b </s>

\3-grams:

-0.05 <s> a b

\end\
"""


def read(tmp_path, text):
    (tmp_path / "lm.arpa").write_text(text)
    return LanguageModel.read(tmp_path / "lm.arpa")


@pytest.mark.parametrize(("word", "history", "log10"), [
    ("b", ["<s>", "a"], -0.05),                # the trigram
    ("b", ["c", "a"], -0.2),                   # the context is not listed: bigram at no cost
    ("c", ["<s>", "a"], -0.4 - 0.2 - 0.9),     # backs off twice
    ("c", ["x", "y", "<s>", "a"], -1.5),       # only the last two words count
    ("a", [], -0.5),
    ("c", ["a", "c"], -0.9),                   # no back-off weight after c
    ("a", ["b"], -math.inf),                   # backing off from b is impossible
    ("</s>", ["b"], -0.3),
    ("x", [], -math.inf),
    ("<s>", [], -math.inf),
])
def test_backs_off_as_the_recursion_says(tmp_path, word, history, log10):
    assert read(tmp_path, TRIGRAM).log_probability(word, history) == pytest.approx(log10 * math.log(10))


def test_a_sentence_begins_and_ends(tmp_path):
    model = read(tmp_path, TRIGRAM)
    assert model.sentence_log_probability(["a", "b"]) == pytest.approx((-0.1 - 0.05 - 0.3) * math.log(10))
    assert model.order == 3 and model.vocabulary == ("a", "b", "c")


def test_writes_what_it_reads(tmp_path):
    model = read(tmp_path, TRIGRAM)
    model.write(tmp_path / "again.arpa")
    assert LanguageModel.read(tmp_path / "again.arpa") == model


def test_unigram_is_the_smoothed_frequency():
    model = LanguageModel.unigram([["a", "b"], ["a"]], words=["c"], smoothing=0.5)
    share = {word: math.exp(model.log_probability(word)) for word in ("a", "b", "c", "</s>")}
    assert share == pytest.approx({"a": 2.5 / 7, "b": 1.5 / 7, "c": 0.5 / 7, "</s>": 2.5 / 7})
    with pytest.raises(DataError, match="no sentences"):
        LanguageModel.unigram([], smoothing=0.0)


@pytest.mark.parametrize(("old", "new", "message"), [
    ("\\data\\\nngram", "data\nngram", r"no line '\\data\\'"),
    ("\\end\\", "", "cut off"),
    ("-0.5 a -0.2", "-0.5 a b -0.2 1", "lm.arpa:10: expected log10"),
    ("-0.5 a", "minus a", "lm.arpa:10: expected log10"),
    ("-0.5 a", "0.5 a", "lm.arpa:10: .* at most 0"),
    ("-0.9 c\n", "", "4 1-grams, but 'ngram 1=5'"),
    ("</s>", "end", "no '</s>'"),
    ("ngram 3=1", "ngram 4=1", "0 4-grams, but"),
    ("\n\\3-grams:\n\n-0.05 <s> a b", "", "0 3-grams, but"),
    ("ngram 3=1\n", "", r"orders \[1, 2, 3\], but 2"),
    ("ngram 3=1", "three: 1", "expected 'ngram N=COUNT'"),
])
def test_a_bad_file_is_refused_by_line(tmp_path, old, new, message):
    assert old in TRIGRAM
    with pytest.raises(DataError, match=message):
        read(tmp_path, TRIGRAM.replace(old, new))


def test_a_missing_or_strange_file_is_named(tmp_path):
    with pytest.raises(DataError, match="cannot read"):
        LanguageModel.read(tmp_path / "nowhere")
    (tmp_path / "lm.arpa").write_bytes(b"\\data\\\n\xff")
    with pytest.raises(DataError, match="UTF-8"):
        LanguageModel.read(tmp_path / "lm.arpa")


def test_reads_an4s_model(shared_data):
    model = LanguageModel.read(shared_data / "an4/an4.ug.lm")
    assert model.order == 2 and len(model.ngrams[0]) == 107
    assert model.log_probability("APRIL", ["<s>", "A"]) == pytest.approx(-2.0253 * math.log(10))
    assert model.log_probability("A", ["</s>"]) == -math.inf
