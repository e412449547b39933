import functools
import hashlib
import io
import json
import tarfile

import numpy as np
import pytest
import soundfile
from recordings import digest

from hemstitch.errors import DataError
from hemstitch.speech import LanguageModel, Lexicon, import_speechocean762, import_yesno


@functools.cache
def opus(seconds=0.4):
    file = io.BytesIO()
    samples = 0.1 * np.random.default_rng(0).standard_normal(round(16000 * seconds))
    soundfile.write(file, samples, 16000, format="OGG", subtype="OPUS")
    return file.getvalue()


def write_tar(path, files):
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


@pytest.fixture
def learners(tmp_path):
    """The repacked form of speechocean762 with two sentences and two digit strings."""
    folder, sound = tmp_path / "source", opus()
    folder.mkdir()
    (folder / "lexicon.txt").write_text("ONE\tW AH1 N\nTWO\tT UW1\nTHE\tDH AH0\nTHE\tDH IY0\n")
    for name, text in (("train", "THE ONE"), ("test", "THE TWO"), ("digits_train", "ONE TWO"), ("digits_test", "TWO")):
        write_tar(folder / f"{name}.tar", {f"{name}.ogg": sound})
        entry = {"path": f"{name}.ogg", "speaker": name[-2:], "text": text, "age": 6, "phones": ["W AH0 N"],
                 "sha256": hashlib.sha256(sound).hexdigest()}
        (folder / f"{name}.jsonl").write_text(json.dumps(entry) + "\n")
    return folder


def test_speechocean762_keeps_opus_or_converts_it(learners, tmp_path):
    corpus = import_speechocean762(learners, tmp_path / "sentences")
    assert [(u.id, u.text, u.split, u.info["age"]) for u in corpus] == [
        ("train", "THE ONE", "train", 6), ("test", "THE TWO", "test", 6)]
    assert corpus.sampling_rate == 16000 and (corpus.folder / "audio" / "train.ogg").read_bytes() == opus()
    assert [p.phones for p in Lexicon.read(corpus.lexicon).entries["THE"]] == [("DH", "AH"), ("DH", "IY")]
    assert LanguageModel.read(corpus.language_model()).vocabulary == ("THE", "ONE")
    digits = import_speechocean762(learners, tmp_path / "digits", material="digits", sampling_rate=8000)
    assert digits.sampling_rate == 8000 and len(LanguageModel.read(digits.language_model()).vocabulary) == 10
    samples, rate = soundfile.read(digits.folder / digits.utterances[0].audio)
    assert (len(samples), rate) == (3200, 8000)


@pytest.mark.parametrize(("breakage", "message"), [
    (lambda f: (f / "lexicon.txt").unlink(), r"lexicon\.txt is missing"),
    (lambda f: (f / "test.tar").unlink(), r"none of .*test\.tar, .*test is there"),
    (lambda f: (f / "test.jsonl").unlink(), r"test\.jsonl: No such file"),
    (lambda f: (f / "test.tar").write_bytes(b"?" * 600), r"test\.tar cannot be unpacked"),
    (lambda f: (f / "train.jsonl").write_text('{"path": "train.ogg"}\n'), r"train\.jsonl:1: key 'speaker' is missing"),
    (lambda f: (f / "train.jsonl").write_text("{\n"), r"train\.jsonl:1: not valid JSON"),
    (lambda f: write_tar(f / "train.tar", {"x.ogg": b""}), r"train\.jsonl:1: train\.ogg is not in the archive"),
    (lambda f: write_tar(f / "train.tar", {"train.ogg": b"?"}), r"train\.jsonl:1: train\.ogg has SHA-256 .* expected"),
])
def test_speechocean762_that_is_not_as_expected(learners, tmp_path, breakage, message):
    breakage(learners)
    with pytest.raises(DataError, match=message):
        import_speechocean762(learners, tmp_path / "corpus")
    assert not (tmp_path / "corpus").exists()


def test_real_digit_strings_of_children(shared_data, tmp_path):
    corpus = import_speechocean762(shared_data / "speechocean762", tmp_path / "corpus", material="digits")
    train, test = corpus.select("train"), corpus.select("test")
    assert (len(train), len(train.speakers), len(test), len(test.speakers)) == (77, 26, 36, 15)
    assert sum(len(u.words) for u in test) == 137


def test_yesno_has_its_words_in_its_names(shared_data, tmp_path):
    corpus = import_yesno(shared_data / "yesno", tmp_path / "first")
    assert {split: len(corpus.select(split)) for split in corpus.splits} == {"train": 30, "dev": 6, "test": 24}
    listed = map(json.loads, (shared_data / "yesno" / "manifest.jsonl").read_text().splitlines())
    assert {u.id: u.text for u in corpus} == {e["path"][12:-4]: e["text"] for e in listed}
    assert Lexicon.read(corpus.lexicon).phones == ("SIL", "EH", "K", "L", "N", "OW")
    assert digest(corpus.folder) == digest(import_yesno(shared_data / "yesno", tmp_path / "second").folder)


def test_yesno_that_is_not_as_expected(tmp_path):
    with pytest.raises(DataError, match=r"none of .*waves_yesno, .*waves_yesno\.tar\.gz, .*is there"):
        import_yesno(tmp_path, tmp_path / "corpus")
    (tmp_path / "waves_yesno").mkdir()
    (tmp_path / "waves_yesno" / "0_1.wav").write_bytes(b"")
    with pytest.raises(DataError, match=r"1 files named like 0_1_0_0_1_1_0_1\.wav, expected 60"):
        import_yesno(tmp_path / "waves_yesno", tmp_path / "corpus")
