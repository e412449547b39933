import itertools
import re

import numpy as np
import pytest

from hemstitch.errors import DataError
from hemstitch.graphs import NoPathError
from hemstitch.speech import (
    Interval,
    Lexicon,
    Segment,
    Topology,
    alignment_from_phones,
    equal_alignment,
    in_frames,
    in_seconds,
    read_ctm,
    read_kaldi_alignment,
    read_kaldi_phones,
    write_ctm,
    write_kaldi_alignment,
    write_textgrid,
)
from hemstitch.speech._lexicon import Pronunciation

LEXICON = Lexicon({"one": (Pronunciation(("W", "AH", "N")),), "two": (Pronunciation(("T", "UW")),)})
TOPOLOGY = Topology.left_to_right(LEXICON.phones, 3)
SHIFT = 0.01


@pytest.fixture
def alignment():
    """Silence, "one two", silence in 41 frames."""
    return equal_alignment(["one", "two"], 41, LEXICON, TOPOLOGY)


def test_words_phones_and_silences_come_back_from_ctm(alignment, tmp_path):
    for name, segments in (("words", alignment.words), ("phones", alignment.phones)):
        write_ctm(tmp_path / name, {"utt-1": in_seconds(segments, SHIFT), "utt-2": in_seconds(segments[:1], SHIFT)})
        back = read_ctm(tmp_path / name)
        assert list(back) == ["utt-1", "utt-2"]
        assert in_frames(back["utt-1"], SHIFT) == segments
    phones = in_frames(read_ctm(tmp_path / "phones")["utt-1"], SHIFT)
    assert [p.label for p in phones] == ["SIL", "W", "AH", "N", "T", "UW", "SIL"]
    again = alignment_from_phones(phones, 41, TOPOLOGY, in_frames(read_ctm(tmp_path / "words")["utt-1"], SHIFT))
    assert (again.phones, again.words) == (alignment.phones, alignment.words)


def test_ctm_as_other_programs_write_it(tmp_path):
    path = tmp_path / "x.ctm"
    path.write_text(";; comment\nu A 0.50 0.25 two 0.9312\nu A 0.10 0.4 one\n\n")
    assert read_ctm(path) == {"u": (Interval("one", 0.1, 0.5), Interval("two", 0.5, 0.75, 0.9312))}
    write_ctm(path, read_ctm(path), channel="A")
    assert path.read_text() == "u A 0.10 0.40 one\nu A 0.50 0.25 two 0.9312\n"
    odd = Interval("one", 0.0125, 1 / 3)
    write_ctm(path, {"u": [odd]})
    assert path.read_text() == "u 1 0.0125 0.320833 one\n"


@pytest.mark.parametrize(("line", "message"), [
    ("u 1 0.1 one", r"x\.ctm:2: expected UTTERANCE CHANNEL BEGIN DURATION WORD"),
    ("u 1 0.1 0.1 one 0.5 0.5", r"x\.ctm:2: expected UTTERANCE"),
    ("u 1 x 0.1 one", r"x\.ctm:2: expected UTTERANCE"),
    ("u 1 -0.1 0.1 one", r"x\.ctm:2: expected 0 <= begin"),
    ("u 1 0.1 nan one", r"x\.ctm:2: expected 0 <= begin"),
])
def test_ctm_that_is_not_one(tmp_path, line, message):
    (tmp_path / "x.ctm").write_text(f"u 1 0 0.1 one\n{line}\n")
    with pytest.raises(DataError, match=message):
        read_ctm(tmp_path / "x.ctm")


def test_what_cannot_stand_in_a_line_is_not_written(tmp_path):
    with pytest.raises(DataError, match="'two words' cannot stand in a file"):
        write_ctm(tmp_path / "x.ctm", {"u": [Interval("two words", 0, 1)]})
    assert not any(tmp_path.iterdir())


def test_pdfs_come_back_from_kaldi_text(alignment, tmp_path):
    write_kaldi_alignment(tmp_path / "ali", {"u": alignment.pdfs, "v": alignment.pdfs[:2]})
    back = read_kaldi_alignment(tmp_path / "ali")
    np.testing.assert_array_equal(back["u"], alignment.pdfs)
    assert back["v"].dtype == np.int64 and (tmp_path / "ali").read_text().splitlines()[1] == "v 0 0"


def test_phones_with_lengths_come_back_from_kaldi_text(alignment, tmp_path):
    (tmp_path / "phones.txt").write_text("<eps> 0\n" + "".join(
        f"{phone} {number}\n" for phone, number in TOPOLOGY.phone_ids.items()))
    runs = " ; ".join(f"{TOPOLOGY.phone_ids[p.label]} {p.end - p.start}" for p in alignment.phones)
    (tmp_path / "ali").write_text(f"u {runs}\nv 1 7\n")
    back = read_kaldi_phones(tmp_path / "ali", tmp_path / "phones.txt")
    assert back == {"u": alignment.phones, "v": (Segment("SIL", 0, 7),)}


@pytest.mark.parametrize(("content", "message"), [
    (b"u 1 2\nu 3\n", r"ali:2: utterance u appears twice"),
    (b"u 1 two\n", r"ali:1: expected an utterance and a number for each frame, got 'u 1 two'"),
    (b"u\n", r"ali:1: utterance u has no frames"),
    (b"u \0BI\x04", r"ali: not a text file: .*ark,t:FILE"),
    (b"\xff\xfe", r"ali: not a text file"),
])
def test_kaldi_alignments_that_are_not_as_expected(tmp_path, content, message):
    (tmp_path / "ali").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_kaldi_alignment(tmp_path / "ali")


@pytest.mark.parametrize(("content", "message"), [
    ("u 1 2 ; 9 3\n", r"ali:1: phone 9 is not in .*phones\.txt"),
    ("u 1 2 ; 1 0\n", r"ali:1: utterance u has no frames, or a phone of length 0"),
    ("u 1 2 3\n", r"ali:1: expected an utterance and PHONE LENGTH ; PHONE LENGTH"),
])
def test_kaldi_phones_that_are_not_as_expected(tmp_path, content, message):
    (tmp_path / "phones.txt").write_text("SIL 1\n")
    (tmp_path / "ali").write_text(content)
    with pytest.raises(DataError, match=message):
        read_kaldi_phones(tmp_path / "ali", tmp_path / "phones.txt")
    with pytest.raises(DataError, match="nowhere: cannot be read"):
        read_kaldi_phones(tmp_path / "ali", tmp_path / "nowhere")


def read_textgrid(path):
    """Tier -> (label, start, end) of each interval, and the duration."""
    text = path.read_text(encoding="utf-8")
    tiers = {}
    for block in re.split(r"item \[\d+\]:", text)[1:]:
        name = re.search(r'name = "(.*)"', block)[1]
        found = re.findall(r'intervals \[\d+\]:\s+xmin = (\S+)\s+xmax = (\S+)\s+text = "(.*)"', block)
        assert int(re.search(r"intervals: size = (\d+)", block)[1]) == len(found)
        tiers[name] = [(label.replace('""', '"'), float(start), float(end)) for start, end, label in found]
    return tiers, float(re.search(r"xmax = (\S+)", text)[1])


def test_textgrid_has_tiers_without_gaps(alignment, tmp_path):
    path, words = tmp_path / "x.TextGrid", in_seconds(alignment.words, SHIFT)
    write_textgrid(path, {"words": words, 'the "phones"': in_seconds(alignment.phones, SHIFT), "empty": []}, 0.41)
    tiers, duration = read_textgrid(path)
    assert duration == 0.41 and tiers["empty"] == [("", 0.0, 0.41)]
    assert [entry for entry in tiers["words"] if entry[0]] == [word[:3] for word in words]
    assert [label for label, _, _ in tiers["words"]] == ["", "one", "two", ""]
    for entries in tiers.values():
        assert entries[0][1] == 0 and entries[-1][2] == duration
        assert all(a[2] == b[1] for a, b in itertools.pairwise(entries))


def test_textgrid_refuses_overlap(tmp_path):
    for entries in ([Interval("a", 0, 0.2), Interval("b", 0.1, 0.3)], [Interval("a", 0.3, 0.5)]):
        with pytest.raises(DataError, match="tier 'words': '.' from .* begins before|ends after"):
            write_textgrid(tmp_path / "x", {"words": entries}, 0.4)


def test_frames_of_a_phone_are_shared_out_over_its_states():
    phones = [Segment("T", 2, 6), Segment("UW", 6, 12), Segment("SIL", 12, 17)]  # the last ends late by rounding
    found = alignment_from_phones(phones, 16, Topology.left_to_right(LEXICON.phones, 2), [Segment("two", 2, 12)])
    assert [p.label for p in found.phones] == ["SIL", "T", "UW", "SIL"] and found.words == (Segment("two", 2, 12),)
    first = {phone: 2 * i for i, phone in enumerate(LEXICON.phones)}
    expected = [first[p] + state for p, counts in (("SIL", (1, 1)), ("T", (2, 2)), ("UW", (3, 3)), ("SIL", (2, 2)))
                for state, count in enumerate(counts) for _ in range(count)]
    assert found.pdfs.tolist() == expected


@pytest.mark.parametrize(("phones", "error", "message"), [
    ([Segment("T", 0, 2)], NoPathError, "phone T has 2 frames from 0 on, its HMM 3 states"),
    ([Segment("T", 0, 5), Segment("UW", 4, 9)], DataError, "UW begins in frame 4, before .* ends"),
    ([Segment("Q", 0, 9)], DataError, "no HMM for the phones"),
])
def test_phones_that_cannot_be_an_alignment(phones, error, message):
    with pytest.raises(error, match=message):
        alignment_from_phones(phones, 9, TOPOLOGY)
