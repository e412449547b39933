import hashlib
import importlib.util
import json
import logging
import lzma
import tarfile

import numpy as np
import pytest
import soundfile

from hemstitch.errors import ConfigError, DataError
from hemstitch.speech import (
    IMPORTERS,
    Corpus,
    FeatureOptions,
    LanguageModel,
    Lexicon,
    compute_features,
    import_an4,
    import_corpus,
    import_fsdd_strings,
    import_synthetic_digits,
)
from hemstitch.speech._importers import _espeak, _espeak_worker

needs_espeak = pytest.mark.skipif(
    importlib.util.find_spec("espeakng_loader") is None, reason="needs espeakng-loader (hemstitch[demo])")
DIGITS = "zero one two three four five six seven eight nine".split()
ABOUT = '{"version": "1", "sampling_rate": 22050}'
SMALL = {"num_train": 8, "num_test": 4, "train_speakers": 4, "test_speakers": 2}


def digest(folder):
    """Of every file with its path."""
    total = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        total.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return total.hexdigest()


def unknown_to_model(corpus):
    """The lexicon knows each word; returns those that the language model does not know."""
    lexicon, model = Lexicon.read(corpus.lexicon), LanguageModel.read(corpus.language_model())
    words = {word for u in corpus for word in u.words}
    assert not lexicon.missing(words)
    return {word for word in words if (word,) not in model.ngrams[0]}


# AN4

def test_an4_keeps_its_features_words_and_licence(shared_data, tmp_path):
    seen = []
    corpus = import_an4(shared_data / "an4", tmp_path / "an4", progress=lambda *done: seen.append(done))
    assert seen == [(1, 2), (2, 2)]
    train, test = corpus.select("train"), corpus.select("test")
    assert (len(train), len(train.speakers), len(test), len(test.speakers)) == (844, 66, 130, 10)
    assert (corpus.folder / "LICENSE").read_bytes() == (shared_data / "an4" / "LICENSE").read_bytes()
    lexicon = (corpus.lexicon).read_text().splitlines()
    assert lexicon[:2] == ["A AH", "A EY"]
    assert not any("(" in line for line in lexicon)
    assert unknown_to_model(corpus) == {"THIRTEEN", "NOVEMBER"}
    with np.load(shared_data / "an4" / "test.npz") as stored:
        last = stored["feats"][stored["offsets"][-2] :].astype(np.float32)
    features = compute_features(test, FeatureOptions(kind="given", normalisation="none"))
    np.testing.assert_array_equal(features[-1], last)
    assert (features.dim, features.frame_shift, len(features)) == (13, 0.01, 130)


def made_up_an4(folder, lines, num_frames=10):
    folder.mkdir()
    for split in ("train", "test"):
        np.savez(folder / f"{split}.npz", feats=np.zeros((num_frames, 13), np.float16), offsets=np.array([0, 4, 10]))
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "an4.dic").write_text("YES  Y EH S\nYES(2)  Y AE S\n")
    for name in ("an4.ug.lm", "LICENSE"):
        (folder / name).write_text("x")
    return folder


@pytest.mark.parametrize(("breakage", "message"), [
    (lambda f: (f / "an4.dic").unlink(), r"not AN4 as expected: an4\.dic missing; needed are train\.npz"),
    (lambda f: (f / "an4.dic").write_text("YES Y EH S\nNO\n"), r"an4\.dic:2: expected WORD PHONE PHONE"),
    (lambda f: (f / "test.jsonl").write_text("{}\n"), r"test\.jsonl has 1 utterances, .* has 2 .*do not belong"),
    (lambda f: (f / "train.npz").write_text("?"), r"train\.npz: expected arrays 'feats' and 'offsets'"),
    (lambda f: (f / "train.jsonl").write_text("{}\n{}\n"), r"train\.jsonl:1: key 'utt' is missing"),
    (lambda f: (f / "train.jsonl").write_text("{\n{}\n"), r"train\.jsonl:1: not valid JSON: .*Copy the file anew"),
])
def test_an4_that_is_not_as_expected_is_named(tmp_path, breakage, message):
    lines = [{"utt": f"u{i}", "speaker": "s", "text": "YES", "num_frames": n} for i, n in enumerate((4, 6))]
    source = made_up_an4(tmp_path / "source", lines)
    breakage(source)
    with pytest.raises(DataError, match=message):
        import_an4(source, tmp_path / "target")
    assert [p.name for p in tmp_path.iterdir()] == ["source"]


def test_an4_frames_that_do_not_add_up(tmp_path):
    lines = [{"utt": f"u{i}", "speaker": "s", "text": "YES", "num_frames": n} for i, n in enumerate((4, 5))]
    with pytest.raises(DataError, match=r"train\.jsonl:2: 5 frames announced, 6 stored"):
        import_an4(made_up_an4(tmp_path / "source", lines), tmp_path / "target")


# FSDD

def made_up_fsdd(folder, speakers=("ann", "bob"), takes=12):
    """Tones of a level and length of their own, one digit a file; every digit in every take."""
    (folder / "recordings").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for speaker in speakers:
        for digit in range(10):
            for take in range(takes):
                samples = rng.uniform(0.01, 0.3) * np.sin(np.arange(rng.integers(1200, 4000)) * (digit + 1) / 10)
                soundfile.write(folder / "recordings" / f"{digit}_{speaker}_{take}.wav", samples, 8000)
    return folder


def clips(corpus, *splits):
    return [clip for u in corpus.select(*splits) for clip in u.info["clips"]]


def test_strings_use_each_clip_once_a_pass_and_only_in_its_split(tmp_path):
    corpus = import_fsdd_strings(made_up_fsdd(tmp_path / "source"), tmp_path / "strings", train_passes=2, test_passes=1)
    assert corpus.splits == ("dev", "test", "train")
    expected = {"test": range(5), "dev": range(5, 9), "train": range(9, 12)}
    for split, takes in expected.items():
        once = [f"{digit}_{speaker}_{take}" for digit in range(10) for speaker in ("ann", "bob") for take in takes]
        assert sorted(clips(corpus, split)) == sorted(once * (2 if split == "train" else 1))
    for utterance in corpus:
        assert 3 <= len(utterance.words) <= 7
        assert {clip.split("_")[1] for clip in utterance.info["clips"]} == {utterance.speaker}
    assert not unknown_to_model(corpus)


def test_word_times_enclose_clips_of_equal_level(tmp_path):
    corpus = import_fsdd_strings(made_up_fsdd(tmp_path / "source"), tmp_path / "strings")
    for utterance in corpus.utterances[::7]:
        samples, rate = soundfile.read(corpus.folder / utterance.audio)
        outside = np.ones(len(samples), bool)
        for (word, start, end), clip in zip(utterance.word_times, utterance.info["clips"], strict=True):
            span = slice(round(start * rate), round(end * rate))
            length = soundfile.info(tmp_path / "source" / "recordings" / f"{clip}.wav").frames
            assert (span.stop - span.start, word) == (length, DIGITS[int(clip[0])])
            assert samples[span].std() == pytest.approx(0.06, rel=0.1)
            outside[span] = False
        assert samples[outside].std() == pytest.approx(10 ** (-50 / 20), rel=0.1)
        gaps = np.diff([0, *np.ravel([t[1:] for t in utterance.word_times]), len(samples) / rate])[::2]
        assert all(0.09 < gap < 0.21 for gap in gaps[[0, -1]])
        assert all(0 <= gap < 0.21 for gap in gaps)


def test_a_speaker_left_out_is_nowhere_else(tmp_path):
    corpus = import_fsdd_strings(made_up_fsdd(tmp_path / "source"), tmp_path / "s", leave_out="bob", dev_takes=0)
    assert corpus.splits == ("test", "train", "unseen-speaker")
    assert corpus.select("unseen-speaker").speakers == ("bob",)
    assert corpus.select("test", "train").speakers == ("ann",)


def test_archive_and_folder_give_the_same_bits(tmp_path):
    source = made_up_fsdd(tmp_path / "source", takes=10)
    (tmp_path / "packed").mkdir()
    with tarfile.open(tmp_path / "packed" / "recordings.tar.xz", "w:xz", preset=0) as tar:
        tar.add(source / "recordings", "recordings")
    first = import_fsdd_strings(source, tmp_path / "a", seed=3)
    second = import_fsdd_strings(tmp_path / "packed", tmp_path / "b", seed=3)
    other = import_fsdd_strings(source, tmp_path / "c", seed=4)
    assert digest(first.folder) == digest(second.folder) != digest(other.folder)


def test_fsdd_itself(shared_data, tmp_path):
    corpus = import_fsdd_strings(shared_data / "fsdd", tmp_path / "fsdd", train_passes=1, test_passes=1)
    assert len(clips(corpus, "train")) == 10 * 5 * 41
    assert len(clips(corpus, "test")) == 10 * 5 * 5
    assert len(corpus.speakers) == 5


@pytest.mark.parametrize(("options", "message"), [
    ({"leave_out": "zoe"}, r"leave_out = 'zoe': the speakers of .* are ann, bob"),
    ({"dev_takes": 50}, r"nothing is left to train on: .* has takes up to 5, dev_takes = 50"),
])
def test_impossible_fsdd_options_are_refused(tmp_path, options, message):
    source = made_up_fsdd(tmp_path / "source", takes=6)
    with pytest.raises(ConfigError, match=message):
        import_fsdd_strings(source, tmp_path / "target", **options)


def test_fsdd_that_is_not_as_expected_is_named(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    with pytest.raises(DataError, match=r"neither recordings\.tar\.xz nor a folder recordings"):
        import_fsdd_strings(source, tmp_path / "t")
    (source / "recordings.tar.xz").write_bytes(b"no archive")
    with pytest.raises(DataError, match=r"recordings\.tar\.xz cannot be unpacked: .*Copy it anew"):
        import_fsdd_strings(source, tmp_path / "t")
    (source / "recordings.tar.xz").write_bytes(lzma.compress(bytes(range(256)) * 999)[:-60])
    with pytest.raises(DataError, match=r"recordings\.tar\.xz cannot be unpacked: .*Copy it anew"):
        import_fsdd_strings(source, tmp_path / "t")
    (source / "recordings").mkdir()
    with pytest.raises(DataError, match=r"no file named DIGIT_SPEAKER_TAKE\.wav found"):
        import_fsdd_strings(source, tmp_path / "t")
    soundfile.write(source / "recordings" / "1_ann_0.wav", np.zeros(100), 16000)
    with pytest.raises(DataError, match=r"1_ann_0\.wav: expected 8000 Hz, 1 channel, 2 bytes, got \(16000, 1, 2\)"):
        import_fsdd_strings(source, tmp_path / "t")
    (source / "recordings" / "1_ann_0.wav").write_bytes(b"RIFF")
    with pytest.raises(DataError, match=r"1_ann_0\.wav is not a WAV file: .*Copy it anew"):
        import_fsdd_strings(source, tmp_path / "t")


# Synthetic digits

@pytest.mark.parametrize("voices", ["plain", pytest.param("espeak", marks=needs_espeak)])
def test_two_syntheses_are_equal_to_the_bit(tmp_path, voices):
    first, second, other = (
        import_synthetic_digits(tmp_path / name, voices=voices, seed=seed, **SMALL)
        for name, seed in (("a", 1), ("b", 1), ("c", 2)))
    assert digest(first.folder) == digest(second.folder) != digest(other.folder)


@pytest.mark.parametrize("voices", ["plain", pytest.param("espeak", marks=needs_espeak)])
@pytest.mark.parametrize("rate", [8000, 16000])
def test_a_synthetic_corpus(tmp_path, voices, rate):
    seen = []
    corpus = import_synthetic_digits(tmp_path / "c", voices=voices, sampling_rate=rate, **SMALL,
                                     progress=lambda *done: seen.append(done))
    assert seen == [(12, 12)]
    train, test = corpus.select("train"), corpus.select("test")
    assert (len(train), len(test), len(train.speakers), len(test.speakers)) == (8, 4, 4, 2)
    assert not set(train.speakers) & set(test.speakers)
    assert ("plain voice" if voices == "plain" else "espeak-ng 1.") in corpus.description
    assert not unknown_to_model(corpus)
    for utterance in corpus:
        samples, found = soundfile.read(corpus.folder / utterance.audio)
        assert found == rate
        assert [word for word, _, _ in utterance.word_times] == list(utterance.words)
        starts, ends = np.array([t[1:] for t in utterance.word_times]).T
        assert 0.1 <= starts[0] < 0.25
        assert all(0.1 < length < 1.2 for length in ends - starts)
        spoken = samples[int(starts[0] * rate) : int(ends[-1] * rate)]
        assert spoken.std() > 5 * samples[: int(0.09 * rate)].std() > 0


def test_words_and_voices_do_not_depend_on_how_many_there_are(tmp_path):
    few = import_synthetic_digits(tmp_path / "few", voices="plain", **SMALL)
    more = import_synthetic_digits(tmp_path / "more", voices="plain", **{**SMALL, "num_train": 9})
    for one, other in zip(few.select("train"), more.select("train")):
        assert one == other
        assert (few.folder / one.audio).read_bytes() == (more.folder / other.audio).read_bytes()


@needs_espeak
def test_no_voice_variant_is_in_train_and_test():
    from hemstitch.speech._importers._synthetic import _espeak_job, _Line

    lines = {split: [_Line("x", split, speaker, ("one",)) for speaker in range(200)] for split in ("train", "test")}
    variants = {split: {_espeak_job(line, 0).voice.split("+")[1] for line in lines[split]} for split in lines}
    assert not variants["train"] & variants["test"]
    assert len(variants["train"]) + len(variants["test"]) == len(_espeak.VARIANTS)


@needs_espeak
def test_every_voice_speaks_wherever_its_job_stands():
    jobs = [_espeak.EspeakJob(text="two", voice=f"{_espeak.ACCENTS[i % 7]}+{name}", rate=170, pitch=50, seed=1)
            for i, name in enumerate(_espeak.VARIANTS)]
    with _espeak.Espeak(jobs) as forward, _espeak.Espeak(jobs[::-1]) as backward:
        answers = list(forward)
        for one, other in zip(answers, reversed(list(backward)), strict=True):
            assert one.samples.tobytes() == other.samples.tobytes()
    assert all(len(spoken.starts) == 1 and spoken.samples.std() > 0.01 for spoken in answers)


@needs_espeak
@pytest.mark.parametrize(("worker", "reason"), [
    ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "its process ended early"),
    (f"print({ABOUT!r}); print('{{\"failed\": \"no voice\"}}')", "it failed at"),
    (f"print({ABOUT!r}); print('{{\"samples\": 9, \"starts\": []}}')", "its process ended early"),
])
def test_a_failing_library_gives_the_plain_voice_and_says_so(tmp_path, monkeypatch, caplog, worker, reason):
    (tmp_path / "worker.py").write_text(worker)
    monkeypatch.setattr(_espeak, "WORKER", tmp_path / "worker.py")
    with caplog.at_level(logging.WARNING, "hemstitch.speech"):
        corpus = import_synthetic_digits(tmp_path / "c", **SMALL)
    assert len(caplog.messages) == 1
    assert reason in caplog.messages[0]
    assert "plain voice instead" in caplog.messages[0]
    assert digest(corpus.folder) == digest(import_synthetic_digits(tmp_path / "plain", voices="plain", **SMALL).folder)
    with pytest.raises(DataError, match=rf"espeak-ng cannot be had: .*{reason}.*Set voices to auto or plain"):
        import_synthetic_digits(tmp_path / "espeak", voices="espeak", **SMALL)
    assert not (tmp_path / "espeak").exists()


def test_a_job_that_kills_its_process_fails_alone(monkeypatch):
    import os
    import signal

    def answer(lib, job):
        if job == "crash":
            os.kill(os.getpid(), signal.SIGKILL)
        return b"fine"

    monkeypatch.setattr(_espeak_worker, "answer", answer)
    assert _espeak_worker.in_fork(None, "speak") == b"fine"
    assert json.loads(_espeak_worker.in_fork(None, "crash")) == {"failed": "ended with status -9"}


@pytest.mark.parametrize(("options", "message"), [
    ({"sampling_rate": 44100}, r"sampling_rate must be 8000 or 16000, got 44100"),
    ({"num_test": 0}, r"must be at least 1"),
    ({"shortest": 4, "longest": 3}, r"longest \(3\) at least shortest \(4\)"),
    ({"voices": "robot"}, r"voices must be auto, espeak or plain, got 'robot'"),
])
def test_impossible_synthetic_options_are_refused(tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        import_synthetic_digits(tmp_path / "c", **options)


# By name

def test_importers_are_called_by_name_with_settings_as_text(tmp_path):
    settings = [f"{name}={value}" for name, value in SMALL.items()] + ["voices=plain", "longest=2", "overwrite=true"]
    corpus = import_corpus("synthetic-digits", tmp_path / "c", settings=settings)
    assert corpus == import_corpus("synthetic-digits", tmp_path / "c", settings=settings)
    assert len(corpus) == 12
    assert all(len(u.words) == 2 for u in corpus)
    assert all(text for _, text in IMPORTERS.values())


@pytest.mark.parametrize(("name", "arguments", "message"), [
    ("an5", {}, r"importer: unknown key 'an5': did you mean 'an4'\?"),
    ("an4", {}, r"importer an4 needs a source: --source FOLDER"),
    ("synthetic-digits", {"source": "here"}, r"reads nothing: leave out the source here"),
    ("synthetic-digits", {"settings": ["num_tests=3"]}, r"unknown key 'num_tests': did you mean 'num_test'\?"),
    ("synthetic-digits", {"settings": ["num_test=many"]}, r"num_test needs int, got 'many'"),
    ("synthetic-digits", {"settings": ["overwrite=1"]}, r"overwrite needs bool, got '1'"),
    ("synthetic-digits", {"settings": ["voices=robot"]}, r"voices must be one of auto, espeak, plain, got 'robot'"),
    ("synthetic-digits", {"settings": ["progress=1"]}, r"unknown key 'progress'"),
])
def test_mistakes_in_calling_an_importer_are_named(tmp_path, name, arguments, message):
    with pytest.raises(ConfigError, match=message):
        import_corpus(name, tmp_path / "c", **arguments)


def test_what_is_there_is_not_overwritten_unasked(tmp_path):
    target = tmp_path / "c"
    target.mkdir()
    (target / "mine.txt").write_text("precious")
    with pytest.raises(DataError, match=r"c exists already\. Remove it, choose another folder, or overwrite"):
        import_synthetic_digits(target, voices="plain", **SMALL)
    assert (target / "mine.txt").read_text() == "precious"
    corpus = import_synthetic_digits(target, voices="plain", overwrite=True, **SMALL)
    assert not (target / "mine.txt").exists()
    assert Corpus.load(target) == corpus


def test_a_failure_on_the_way_leaves_nothing(tmp_path):
    def full(done, total):
        raise OSError(28, "No space left on device")

    with pytest.raises(DataError, match=r"cannot write .*c: No space left on device.*choose another folder"):
        import_synthetic_digits(tmp_path / "c", voices="plain", **SMALL, progress=full)
    assert not list(tmp_path.iterdir())
