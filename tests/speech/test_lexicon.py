import pytest

from hemstitch.errors import DataError
from hemstitch.speech import Lexicon, Pronunciation

TEXT = """;;; a comment
# another
TWO  T UW      # and a third
A    AH
A(2) EY

A    EY
HUM  0.7 HH AH M
HUM  0.3 M
"""


@pytest.fixture
def lexicon(tmp_path):
    path = tmp_path / "lexicon.txt"
    path.write_text(TEXT)
    return Lexicon.read(path)


def test_reads_variants_comments_probabilities_and_ignores_repeats(lexicon):
    assert lexicon.words == ("TWO", "A", "HUM") and lexicon.word_ids == {"TWO": 1, "A": 2, "HUM": 3}
    assert lexicon.phones == ("SIL", "AH", "EY", "HH", "M", "T", "UW")
    assert [p.phones for p in lexicon.entries["A"]] == [("AH",), ("EY",)]
    assert lexicon.entries["HUM"] == (Pronunciation(("HH", "AH", "M"), 0.7), Pronunciation(("M",), 0.3))


def test_writes_what_it_reads(lexicon, tmp_path):
    lexicon.write(tmp_path / "again.txt")
    assert Lexicon.read(tmp_path / "again.txt") == lexicon


def test_unknown_words_are_all_listed_with_the_nearest(lexicon):
    with pytest.raises(DataError, match=r"'two' \(nearest: 'TWO'\), 'XYZZY'\. Add a pronunciation"):
        lexicon.pronunciations(["A", "two", "XYZZY", "two"])
    assert lexicon.missing(["A", "two", "two"]) == ("two",) and "A" in lexicon and len(lexicon) == 3


def test_restrict_keeps_the_words_asked_for(lexicon):
    small = lexicon.restrict(["A", "TWO", "A"])
    assert small.words == ("A", "TWO") and "HH" not in small.phones
    with pytest.raises(DataError, match="ONE"):
        lexicon.restrict(["ONE"])


@pytest.mark.parametrize(("content", "message"), [
    (b"A AH\nFOO\n", r"lexicon.txt:2: the word 'FOO' has no phones; write 'FOO PHONE"),
    (b"A AH\nFOO 0.5 # only a number\n", "lexicon.txt:2: the word 'FOO' has no phones"),
    (b"A 1.5 AH\n", "lexicon.txt:1: the probability of 'A' is 1.5"),
    (b"# nothing\n", "no pronunciation in this lexicon"),
    (b"\xe9t\xe9 E T E\n", "not UTF-8"),
])
def test_a_bad_file_is_refused_by_line(tmp_path, content, message):
    path = tmp_path / "lexicon.txt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        Lexicon.read(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match="nowhere.txt: cannot read"):
        Lexicon.read(tmp_path / "nowhere.txt")


def test_reads_an4s_dictionary(shared_data):
    lexicon = Lexicon.read(shared_data / "an4/an4.dic")
    assert len(lexicon) == 101 and len(lexicon.phones) == 34 and len(lexicon.entries["FEBRUARY"]) == 5
