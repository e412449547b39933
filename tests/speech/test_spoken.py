import numpy as np
import pytest
from speech_oracle import lexicon

from hemstitch.errors import DataError, MisuseError
from hemstitch.speech import (
    Alignment,
    Pronunciation,
    Segment,
    Topology,
    align,
    estimate_pronunciations,
    estimate_silence_probability,
    resolve_unknown,
    with_garbage,
)

LEXICON = lexicon(A="a | b | a b", B="b", C="c | b c")


def said(*words):
    """An alignment of (word, "its phones") pairs, "" standing for silence; two frames a phone."""
    phones, segments = [], []
    for word, spoken in words:
        begin = 2 * len(phones)
        phones += spoken.split()
        if word:
            segments.append(Segment(word, begin, 2 * len(phones)))
    marks = tuple(Segment(phone, 2 * i, 2 * i + 2) for i, phone in enumerate(phones))
    return Alignment(pdfs=np.zeros(2 * len(phones), int), phones=marks, words=tuple(segments))


ALIGNMENTS = [said(("", "SIL"), ("A", "a"), ("A", "a b"), ("", "SIL"), ("B", "b")), said(("A", "a"), ("B", "b")),
              said()]


def test_pronunciations_are_counted():
    shares = {"a": 2.5, "b": 0.5, "a b": 1.5}
    for relative, whole in ((True, 2.5), (False, 4.5)):
        learned = estimate_pronunciations(LEXICON, ALIGNMENTS, smoothing=0.5, relative_to_best=relative)
        found = {" ".join(p.phones): p.probability for p in learned.entries["A"]}
        assert found == pytest.approx({phones: count / whole for phones, count in shares.items()})
        assert learned.entries["B"] == LEXICON.entries["B"] and learned.entries["C"] == LEXICON.entries["C"]
        assert learned.words == LEXICON.words
    with pytest.raises(DataError, match="'A' was aligned as 'c'"):
        estimate_pronunciations(LEXICON, [said(("A", "c"))])
    with pytest.raises(MisuseError, match="smoothing > 0"):
        estimate_pronunciations(LEXICON, [], smoothing=0.0)


def test_silences_are_counted_in_every_gap():
    assert estimate_silence_probability(ALIGNMENTS, smoothing=0.0) == pytest.approx(2 / (4 + 3 + 1))
    assert estimate_silence_probability(ALIGNMENTS, smoothing=1.0) == pytest.approx(3 / 10)
    with pytest.raises(DataError, match="no alignments"):
        estimate_silence_probability([], smoothing=0.0)


def test_what_an_alignment_says_can_be_counted():
    topology = Topology.left_to_right(LEXICON.phones, 1)
    rng = np.random.default_rng(0)
    alignments = [align(rng.normal(size=(20, topology.num_pdfs)), ["A", "C", "A"], LEXICON, topology) for _ in range(9)]
    learned = estimate_pronunciations(LEXICON, alignments, relative_to_best=False)
    assert sum(p.probability for p in learned.entries["A"]) == pytest.approx(1)
    assert learned.entries != LEXICON.entries
    silent = sum(phone.label == "SIL" for alignment in alignments for phone in alignment.phones)
    assert estimate_silence_probability(alignments, smoothing=0.0) == pytest.approx(silent / 36) and silent > 0


def test_unknown_words_are_refused_left_out_or_garbage():
    noisy = with_garbage(LEXICON)
    assert noisy.entries["<unk>"] == (Pronunciation(("SPN",)),) and noisy.words == (*LEXICON.words, "<unk>")
    assert with_garbage(noisy) == noisy
    for policy in ("error", "skip", "garbage"):
        assert resolve_unknown(["A", "B"], LEXICON, policy) == ["A", "B"]
    assert resolve_unknown(["A", "X"], noisy, "skip") is None
    assert resolve_unknown(["A", "X"], noisy, "garbage") == ["A", "<unk>"]
    with pytest.raises(DataError, match="not in the lexicon: 'X'"):
        resolve_unknown(["A", "X"], noisy, "error")
    with pytest.raises(DataError, match="with_garbage"):
        resolve_unknown(["A", "X"], LEXICON, "garbage")
    with pytest.raises(MisuseError, match="got 'guess'"):
        resolve_unknown(["A"], LEXICON, "guess")
    with pytest.raises(MisuseError, match="the phone 'a'"):
        with_garbage(LEXICON, phone="a")
