import dataclasses
import json
from pathlib import Path

import pytest
from corpus_folder import LINES, write_corpus, write_manifest
from hypothesis import given
from hypothesis import strategies as st

from hemstitch.errors import DataError
from hemstitch.speech import Corpus, Utterance


def made_up(speakers):
    """A corpus of (speaker, utterances) without files."""
    utterances = tuple(Utterance(id=f"{name}-{i}", speaker=name, text="a", split="train", audio="x.wav")
                       for name, count in speakers.items() for i in range(count))
    return Corpus(folder=Path("nowhere"), name="made up", sampling_rate=8000, utterances=utterances)


def test_a_folder_is_read(tmp_path):
    corpus = Corpus.load(write_corpus(tmp_path / "c", licence="CC0-1.0"))
    assert [u.id for u in corpus] == ["ann-1", "ann-2", "bob-1", "cid-1"]
    assert corpus.utterances[0].words == ("one", "two")
    assert (corpus.splits, corpus.speakers, corpus.licence) == (("test", "train"), ("ann", "bob", "cid"), "CC0-1.0")
    assert corpus.where(corpus.utterances[2]) == f"{tmp_path / 'c' / 'utterances.jsonl'}:3"


def test_saving_and_loading_gives_the_same_corpus(tmp_path):
    first = Corpus.load(write_corpus(tmp_path / "c", attribution="me"))
    extended = dataclasses.replace(first, utterances=tuple(
        dataclasses.replace(u, word_times=(("one", 0.1, 0.25),), info={"gender": "f"}) for u in first))
    extended.save()
    assert Corpus.load(first.folder) == extended


def test_parts(tmp_path):
    corpus = Corpus.load(write_corpus(tmp_path / "c"))
    assert [u.id for u in corpus.select("test")] == ["cid-1"]
    assert [u.id for u in corpus.keep(["cid-1", "ann-2"])] == ["ann-2", "cid-1"]
    with pytest.raises(DataError, match=r"no split 'dev': it has test, train"):
        corpus.select("dev")


def test_language_models_are_found_by_file_name(tmp_path):
    corpus = Corpus.load(write_corpus(tmp_path / "c"))
    (corpus.folder / "bigram.arpa").touch()
    assert corpus.language_model("bigram.arpa") == corpus.folder / "bigram.arpa"
    with pytest.raises(DataError, match=r"lm\.arpa is missing.*: bigram\.arpa"):
        corpus.language_model()


@given(st.dictionaries(st.text("abcdef", min_size=1), st.integers(1, 5), min_size=2, max_size=12),
       st.integers(0, 9), st.floats(0.01, 0.99))
def test_held_out_speakers_are_whole_and_only_the_seed_chooses_them(speakers, seed, share):
    corpus = made_up(speakers)
    split = corpus.split_by_speaker(share, seed=seed)
    train, dev = split.select("train"), split.select("dev")
    assert len(train) + len(dev) == len(corpus)
    assert not set(train.speakers) & set(dev.speakers)
    assert len(dev.speakers) == max(1, min(len(speakers) - 1, round(share * len(speakers))))
    again = made_up(dict(reversed(speakers.items()))).split_by_speaker(share, seed=seed)
    assert again.select("dev").speakers == dev.speakers


@pytest.mark.parametrize("amount", [0, 3, -1, 1.5, 0.0])
def test_impossible_amounts_of_speakers_are_refused(amount):
    with pytest.raises(DataError, match=r"cannot hold out .* of the 3 speakers"):
        made_up({"a": 1, "b": 1, "c": 1}).split_by_speaker(amount)


@given(st.lists(st.integers(1, 9), min_size=3, max_size=15), st.integers(0, 9))
def test_each_speaker_is_tested_in_exactly_one_fold(sizes, seed):
    corpus = made_up({f"s{i}": size for i, size in enumerate(sizes)})
    folds = corpus.speaker_folds(3, seed=seed)
    tested = [fold.select("test") for fold in folds]
    assert sorted(s for part in tested for s in part.speakers) == list(corpus.speakers)
    assert max(map(len, tested)) - min(map(len, tested)) <= max(sizes)
    assert all(len(fold) == len(corpus) for fold in folds)


def test_more_folds_than_speakers_are_refused():
    with pytest.raises(DataError, match=r"cannot make 3 folds of the 2 speakers.*choose 2 to 2"):
        made_up({"a": 1, "b": 1}).speaker_folds(3)


def changed(**values):
    return {**LINES[1], **values}


def without(key):
    return {k: v for k, v in LINES[1].items() if k != key}


@pytest.mark.parametrize(("line", "message"), [
    (b'{"id": "ann-2", "speaker"', r"not valid JSON: .*must be one complete JSON object"),
    (b'{"id": "\xff"}', r"not UTF-8 at byte 8: save the manifest as UTF-8"),
    ([1, 2], r"expected a JSON object"),
    (without("text"), r"'ann-2': key 'text' is missing: add it"),
    (changed(text=" "), r"'ann-2': 'text' is empty: write the transcript or remove the line"),
    (changed(text=5), r"key 'text' needs a string, got 5"),
    (b'{"id": ' + b"9" * 5000 + b"}", r"not valid JSON: .*5000 digits"),
    (b"[" * 100_000, r"not valid JSON: .*recursion"),
    (changed(text="half of \ud83d"), r"key 'text' has the control character '\\ud83d' in it: remove it"),
    (changed(speaker="a\0b"), r"key 'speaker' has the control character '\\x00' in it: remove it"),
    (changed(split="../train"), r"split '../train' has a '/' in it: .*use '-' or '_'"),
    (changed(id="ann 2"), r"white space.*use '-' or '_'"),
    (changed(id="ann-1"), r"'ann-1': the id is already used in line 1: give each utterance its own"),
    (changed(speeker="ann"), r"unknown key 'speeker': did you mean 'speaker'\?.*under 'info'"),
    (without("audio"), r"exactly one of the keys 'audio' and 'features'"),
    (changed(features=["f.npy", 0, 5]), r"exactly one of the keys 'audio' and 'features'"),
    ({**without("audio"), "features": ["f.npy", 0, 5]}, r"needs the key 'audio', as corpus.json has 'sampling_rate'"),
    ({**without("audio"), "features": ["f.npy", 5, 5]}, r"0 <= first < last, got \['f.npy', 5, 5\]"),
    (changed(audio=3), r"key 'audio' needs a path relative to the corpus folder, got 3"),
    (changed(word_times=[["two", 0.5, 0.1]]), r"'word_times': each word needs 0 <= start <= end"),
    (changed(word_times=[["two", 0.5]]), r"'word_times' needs a list of \[word, start, end\] in seconds"),
    (changed(info=[]), r"key 'info' needs an object"),
    (changed(audio="audio/nothing.wav"), r"nothing\.wav is missing: put it there or correct 'audio'"),
])
def test_a_bad_line_is_named_and_may_be_tolerated(tmp_path, line, message):
    folder = write_corpus(tmp_path / "c")
    write_manifest(folder, [LINES[0], line, *LINES[2:]])
    with pytest.raises(DataError, match=rf"1 of 4 utterances(?s:.)*jsonl:2: .*{message}") as caught:
        Corpus.load(folder)
    assert "set tolerance = 0.25" in str(caught.value)
    corpus = Corpus.load(folder, tolerance=0.25)
    assert [u.id for u in corpus] == ["ann-1", "bob-1", "cid-1"]
    assert [(b.where.rsplit(":")[-1], b.where.endswith("utterances.jsonl:2")) for b in corpus.broken] == [("2", True)]


def test_many_broken_utterances_give_one_short_error(tmp_path):
    folder = write_corpus(tmp_path / "c")
    write_manifest(folder, [*LINES, *(b"{" for _ in range(96))])
    with pytest.raises(DataError, match=r"96 of 100 .*96\.0%, accepted are 10\.0%(?s:.)*and 91 more") as caught:
        Corpus.load(folder, tolerance=0.1)
    assert len(str(caught.value).splitlines()) == 8
    assert len(Corpus.load(folder, tolerance=0.96).broken) == 96


@pytest.mark.parametrize(("about", "message"), [
    ("{", r"not valid JSON"),
    ("[]", r"expected a JSON object"),
    ('{"sampling_rate": 8000}', r"key 'name' is missing"),
    ('{"name": "x"}', r"exactly one of 'sampling_rate' .* and 'frame_shift'"),
    ('{"name": "x", "sampling_rate": "8k"}', r"key 'sampling_rate' needs a int, got '8k'"),
    ('{"name": "x", "sampling_rate": 0}', r"must be positive and finite, got 0"),
    ('{"name": "x", "frame_shift": NaN}', r"'frame_shift' must be positive and finite, got nan"),
    ('{"name": "x", "sampling_rate": 8000, "silence": "a pause"}', r"'silence' needs the name of one phone"),
    ("[" * 100_000, r"not valid JSON"),
    ('{"name": "x", "sampling_rate": 8000, "license": "MIT"}', r"unknown key 'license': did you mean 'licence'"),
])
def test_a_bad_corpus_json_is_named(tmp_path, about, message):
    folder = write_corpus(tmp_path / "c")
    (folder / "corpus.json").write_text(about)
    with pytest.raises(DataError, match=rf"corpus\.json: .*{message}"):
        Corpus.load(folder)


@pytest.mark.parametrize("name", ["corpus.json", "utterances.jsonl", "lexicon.txt"])
def test_a_missing_file_is_named(tmp_path, name):
    folder = write_corpus(tmp_path / "c")
    (folder / name).unlink()
    with pytest.raises(DataError, match=rf"{name} is missing: a corpus folder needs"):
        Corpus.load(folder, tolerance=1.0)


def test_no_folder_and_an_empty_manifest(tmp_path):
    with pytest.raises(DataError, match=r"no corpus folder .*: correct the path, or make one with `hemstitch data`"):
        Corpus.load(tmp_path / "nowhere")
    folder = write_corpus(tmp_path / "c", lines=[])
    with pytest.raises(DataError, match=r"holds no usable utterance"):
        Corpus.load(folder)


def test_the_manifest_is_written_whole_or_not_at_all(tmp_path):
    corpus = Corpus.load(write_corpus(tmp_path / "c"))
    before = (corpus.folder / "utterances.jsonl").read_bytes()
    no_json = dataclasses.replace(corpus.utterances[0], info={"x": object()})
    unwritable = dataclasses.replace(corpus, utterances=(no_json,))
    with pytest.raises(TypeError):
        unwritable.save()
    assert (corpus.folder / "utterances.jsonl").read_bytes() == before
    assert not list(corpus.folder.glob(".*"))
    assert json.loads((corpus.folder / "corpus.json").read_text())["name"] == "small"
