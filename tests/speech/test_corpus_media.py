import dataclasses

import numpy as np
import pytest
import soundfile
from corpus_folder import LINES, RATE, write_corpus, write_manifest

from hemstitch.errors import DataError
from hemstitch.speech import Corpus, FeatureOptions, compute_features

NOISE = 0.1 * np.random.default_rng(1).standard_normal(RATE)


def cut(path, share):
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


BREAKAGES = {
    "16k": (lambda p: soundfile.write(p, NOISE, 16000), r"16000 Hz, expected 8000 Hz .*`sox .* -r 8000 .*resample"),
    "stereo": (lambda p: soundfile.write(p, np.stack([NOISE, NOISE], 1), RATE), r"2 channels, expected 1: .*remix 1"),
    "empty": (lambda p: soundfile.write(p, NOISE[:0], RATE), r"holds no samples: replace it or remove the line"),
    "zero bytes": (lambda p: p.write_bytes(b""), r"not readable as audio: .*: replace it"),
    "text": (lambda p: p.write_text("hello, I am no audio"), r"not readable as audio: .*: replace it"),
    "cut short": (lambda p: cut(p, 0.5), r"cut short: \d+ of the bytes .* missing: replace it"),
}


@pytest.mark.parametrize("name", BREAKAGES)
def test_bad_audio_is_named_with_its_line(tmp_path, name):
    folder = write_corpus(tmp_path / "c")
    breakage, message = BREAKAGES[name]
    breakage(folder / LINES[1]["audio"])
    with pytest.raises(DataError, match=rf"utterances\.jsonl:2: utterance 'ann-2': .*ann-2\.wav .*{message}"):
        Corpus.load(folder)
    unchecked = Corpus.load(folder, check_media=False)
    with pytest.raises(DataError, match=rf"utterances\.jsonl:2: utterance 'ann-2': .*{message}"):
        compute_features(unchecked)
    features = compute_features(unchecked, tolerance=0.25)
    assert features.ids == ("ann-1", "bob-1", "cid-1")
    assert features.broken == Corpus.load(folder, tolerance=0.25).broken


@pytest.mark.parametrize("line", [2, 3])
def test_damage_behind_a_good_header_is_found_when_it_is_read(tmp_path, line):
    folder = write_corpus(tmp_path / "c")
    path = folder / LINES[line]["audio"]  # flac, ogg
    content = bytearray(path.read_bytes())
    content[len(content) // 2 :] = bytes(len(content) - len(content) // 2)
    path.write_bytes(content)
    corpus = Corpus.load(folder, check_media=False)
    with pytest.raises(DataError, match=rf"jsonl:{line + 1}: .*{path.name} is .*: replace it"):
        compute_features(corpus)


def test_audio_shorter_than_a_frame_is_broken(tmp_path):
    folder = write_corpus(tmp_path / "c")
    soundfile.write(folder / LINES[0]["audio"], NOISE[:150], RATE)
    with pytest.raises(DataError, match=r"jsonl:1: .*0\.019 s of audio are too short for one frame of 0\.025 s"):
        compute_features(Corpus.load(folder))


def test_not_a_number_in_the_audio_is_broken(tmp_path):
    folder = write_corpus(tmp_path / "c")
    samples = NOISE.copy()
    samples[4000] = np.nan
    soundfile.write(folder / LINES[0]["audio"], samples, RATE, subtype="FLOAT")
    with pytest.raises(DataError, match=r"jsonl:1: .*NaN or infinite"):
        compute_features(Corpus.load(folder))


def stored_lines(*ranges):
    return [{"id": f"u{i}", "speaker": "s", "text": "one", "split": "train", "features": list(r)}
            for i, r in enumerate(ranges)]


def stored_corpus(folder, *ranges, **arrays):
    """A corpus without audio; arrays: file stem -> content."""
    write_corpus(folder, lines=[])
    (folder / "corpus.json").write_text('{"name": "stored", "frame_shift": 0.01}')
    write_manifest(folder, stored_lines(*ranges))
    for stem, array in arrays.items():
        np.save(folder / f"{stem}.npy", array)
    return folder


def test_stored_features_are_taken_from_npy_and_npz(tmp_path):
    frames = np.arange(60).reshape(20, 3).astype(np.float16)
    folder = stored_corpus(tmp_path / "c", ["a.npy", 2, 5], ["b.npz", 0, 20], a=frames)
    np.savez(folder / "b.npz", feats=2 * frames)
    features = compute_features(Corpus.load(folder), FeatureOptions(kind="given", normalisation="none"))
    assert features.frames.dtype == np.float32
    assert features.frame_shift == 0.01
    np.testing.assert_array_equal(features[0], frames[2:5])
    np.testing.assert_array_equal(features["u1"], 2 * frames)


@pytest.mark.parametrize(("place", "message"), [
    (["a.npy", 15, 21], r"go beyond the 20 rows of .*a\.npy: correct the range"),
    (["b.npy", 0, 5], r"feature file .*b\.npy is missing: put it there"),
    (["flat.npy", 0, 5], r"flat\.npy holds float32 \(20,\), expected floats of shape \(frame, dim\)"),
    (["objects.npy", 0, 5], r"objects\.npy is not a readable \.npy or \.npz file"),
    (["text.npy", 0, 5], r"text\.npy is not a readable \.npy or \.npz file"),
    (["other.npz", 0, 5], r"other\.npz holds no array named 'feats'"),
])
def test_bad_stored_features_are_named(tmp_path, place, message):
    frames = np.zeros((20, 3), np.float32)
    folder = stored_corpus(tmp_path / "c", ["a.npy", 0, 5], place, a=frames, flat=frames[:, 0],
                           objects=np.array([{}], dtype=object))
    np.savez(folder / "other.npz", x=frames)
    (folder / "text.npy").write_text("no numbers here")
    with pytest.raises(DataError, match=rf"jsonl:2: utterance 'u1': .*{message}"):
        Corpus.load(folder)
    assert len(Corpus.load(folder, tolerance=0.5)) == 1


def test_stored_features_of_another_width_or_not_finite_are_broken(tmp_path):
    good, wide, nan = np.zeros((9, 3), np.float32), np.zeros((9, 4), np.float32), np.full((9, 3), np.nan, np.float32)
    folder = stored_corpus(tmp_path / "c", ["g.npy", 0, 9], ["w.npy", 0, 9], ["n.npy", 0, 9], g=good, w=wide, n=nan)
    options = FeatureOptions(kind="given")
    with pytest.raises(DataError, match=r"jsonl:2: .*4 values per frame, those before have 3(?s:.)*jsonl:3: .*NaN"):
        compute_features(Corpus.load(folder), options)
    assert compute_features(Corpus.load(folder), options, tolerance=0.67).ids == ("u0",)


def test_a_line_of_audio_in_a_corpus_of_features(tmp_path):
    folder = stored_corpus(tmp_path / "c", ["a.npy", 0, 5], a=np.zeros((5, 2), np.float32))
    write_manifest(folder, [*stored_lines(["a.npy", 0, 5]), LINES[0]])
    with pytest.raises(DataError, match=r"jsonl:2: .*needs the key 'features', as corpus\.json has 'frame_shift'"):
        Corpus.load(folder)


def test_a_replaced_utterance_keeps_its_line(tmp_path):
    corpus = Corpus.load(write_corpus(tmp_path / "c"))
    assert dataclasses.replace(corpus.utterances[3], split="dev").line == 4
