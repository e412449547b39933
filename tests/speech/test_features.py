import dataclasses

import kaldi_native_fbank as knf
import numpy as np
import pytest
import soundfile
from corpus_folder import LINES, RATE, write_corpus

from hemstitch.errors import ConfigError, DataError
from hemstitch.speech import Corpus, FeatureOptions, FeatureSet, Statistics, compute_features

PLAIN = FeatureOptions(normalisation="none")


@pytest.fixture
def corpus(tmp_path):
    return Corpus.load(write_corpus(tmp_path / "corpus"))


def slow_slope(frames):
    """The regression formula, term by term."""
    out = np.zeros_like(frames)
    last = len(frames) - 1
    for t in range(len(frames)):
        for k in (1, 2):
            out[t] += k * (frames[min(t + k, last)] - frames[max(t - k, 0)]) / 10
    return out


@pytest.mark.parametrize("kind", ["fbank", "mfcc"])
def test_features_are_those_of_the_library(corpus, kind):
    settings = {"fbank": knf.FbankOptions, "mfcc": knf.MfccOptions}[kind]()
    settings.frame_opts.samp_freq, settings.frame_opts.dither, settings.mel_opts.num_bins = RATE, 0, 30
    if kind == "mfcc":
        settings.use_energy = False
    features = compute_features(corpus, dataclasses.replace(PLAIN, kind=kind, num_mel_bins=30))
    assert features.dim == {"fbank": 30, "mfcc": 13}[kind]
    for utterance in corpus:
        online = {"fbank": knf.OnlineFbank, "mfcc": knf.OnlineMfcc}[kind](settings)
        online.accept_waveform(RATE, soundfile.read(corpus.folder / utterance.audio, dtype="float32")[0].tolist())
        online.input_finished()
        expected = np.stack([online.get_frame(i) for i in range(online.num_frames_ready)])
        np.testing.assert_array_equal(features[utterance.id], expected)


def test_a_set_is_one_array_with_offsets(corpus):
    seen = []
    features = compute_features(corpus, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(4, 4)]
    assert features.frames.flags.c_contiguous
    assert features.frames.dtype == np.float32
    assert features.offsets[-1] == len(features.frames) == 4 * (1 + (RATE // 2 - 200) // 80)
    assert features.ids == tuple(u.id for u in corpus)
    assert features.frame_shift == 0.01
    assert np.shares_memory(features[3], features.frames)
    np.testing.assert_array_equal(features[-1], features["cid-1"])
    with pytest.raises(IndexError):
        features[4]


def test_the_same_audio_gives_the_same_bits(corpus):
    assert compute_features(corpus).frames.tobytes() == compute_features(corpus).frames.tobytes()


@pytest.mark.parametrize("order", [1, 2])
def test_deltas_agree_with_the_formula(corpus, order):
    static = compute_features(corpus, PLAIN)
    features = compute_features(corpus, dataclasses.replace(PLAIN, deltas=order))
    for utterance in corpus:
        expected = [static[utterance.id]]
        for _ in range(order):
            expected.append(slow_slope(expected[-1]))
        np.testing.assert_allclose(features[utterance.id], np.concatenate(expected, axis=1), atol=2e-5)


@pytest.mark.parametrize("time", [1, 2, 3])
def test_deltas_of_very_short_utterances(corpus, time):
    soundfile.write(corpus.folder / LINES[0]["audio"], np.random.default_rng(0).normal(size=120 + 80 * time), RATE)
    static, features = (compute_features(corpus, dataclasses.replace(PLAIN, deltas=d))[0] for d in (0, 1))
    assert len(static) == time
    np.testing.assert_allclose(features[:, 40:], slow_slope(static), atol=2e-5)


@pytest.mark.parametrize(("kind", "groups"), [
    ("utterance", [["ann-1"], ["ann-2"], ["bob-1"], ["cid-1"]]),
    ("speaker", [["ann-1", "ann-2"], ["bob-1"], ["cid-1"]]),
    ("global", [["ann-1", "ann-2", "bob-1"]]),
])
@pytest.mark.parametrize("variance", [False, True])
def test_normalised_groups_have_mean_zero_and_variance_one(corpus, kind, groups, variance):
    options = FeatureOptions(normalisation=kind, normalise_variance=variance, deltas=1)
    raw = compute_features(corpus, dataclasses.replace(PLAIN, deltas=1))
    features = compute_features(corpus, options)
    for group in groups:
        together = np.concatenate([features[name] for name in group]).astype(np.float64)
        before = np.concatenate([raw[name] for name in group])
        np.testing.assert_allclose(together.mean(0), 0, atol=2e-6)
        np.testing.assert_allclose(together.std(0), 1 if variance else before.std(0), rtol=1e-4)


def test_a_speaker_is_normalised_within_each_split(corpus):
    moved = dataclasses.replace(corpus, utterances=tuple(
        dataclasses.replace(u, split="dev" if u.id == "ann-2" else u.split) for u in corpus))
    features = compute_features(moved, FeatureOptions(normalisation="speaker"))
    np.testing.assert_allclose(features["ann-2"].mean(0), 0, atol=2e-6)


def test_global_statistics_come_from_train_and_are_passed_on(corpus):
    options = FeatureOptions(normalisation="global", normalise_variance=True)
    together = compute_features(corpus, options)
    train = compute_features(corpus.select("train"), options)
    test = compute_features(corpus.select("test"), options, statistics=train.statistics)
    np.testing.assert_array_equal(together["cid-1"], test["cid-1"])
    with pytest.raises(ConfigError, match=r"the split 'train', which this corpus lacks \(it has test\): pass the stat"):
        compute_features(corpus.select("test"), options)


def test_constant_features_survive_the_division(corpus):
    soundfile.write(corpus.folder / LINES[0]["audio"], np.zeros(4000), RATE)
    features = compute_features(corpus, FeatureOptions(normalise_variance=True))
    assert np.isfinite(features.frames).all()


@pytest.mark.parametrize("with_statistics", [False, True])
def test_a_set_survives_its_file(corpus, tmp_path, with_statistics):
    (corpus.folder / LINES[2]["audio"]).unlink()
    options = FeatureOptions(normalisation="global" if with_statistics else "utterance")
    features = compute_features(corpus, options, tolerance=0.3)
    features.save(tmp_path / "deep" / "f.safetensors")
    again = FeatureSet.load(tmp_path / "deep" / "f.safetensors")
    assert (again.ids, again.broken, again.frame_shift) == (features.ids, features.broken, features.frame_shift)
    assert [b.id for b in again.broken] == ["bob-1"]
    assert again.frames.tobytes() == features.frames.tobytes()
    assert (again.statistics is not None) == with_statistics
    if with_statistics:
        np.testing.assert_array_equal(again.statistics.mean, features.statistics.mean)


def test_a_foreign_file_is_refused(tmp_path):
    path = tmp_path / "f.safetensors"
    path.write_bytes(b"not safe at all")
    with pytest.raises(DataError, match=r"f\.safetensors is not a readable feature file .*delete it and compute"):
        FeatureSet.load(path)


def test_the_cache_is_used_until_something_changes(corpus, tmp_path, monkeypatch):
    from hemstitch.speech import _features

    computed = []
    compute = _features._compute
    monkeypatch.setattr(_features, "_compute", lambda *args: computed.append(1) or compute(*args))

    def features(options=PLAIN, part=corpus):
        before = len(computed)
        result = compute_features(part, options, cache=tmp_path / "cache")
        return result, len(computed) > before

    first, was_computed = features()
    again, was_computed_again = features()
    assert (was_computed, was_computed_again) == (True, False)
    assert first.frames.tobytes() == again.frames.tobytes()
    assert features(FeatureOptions())[1]
    assert features(part=corpus.select("train"))[1]
    soundfile.write(corpus.folder / LINES[0]["audio"], np.ones(3000), RATE)
    assert features()[1]
    for path in (tmp_path / "cache").iterdir():
        path.write_bytes(b"damaged")
    assert features()[1]


def test_the_cache_remembers_what_was_broken(corpus, tmp_path):
    (corpus.folder / LINES[0]["audio"]).write_text("no audio")
    assert len(compute_features(corpus, tolerance=0.25, cache=tmp_path).broken) == 1
    assert len(compute_features(corpus, tolerance=0.25, cache=tmp_path).broken) == 1
    with pytest.raises(DataError, match=r"1 of 4 utterances cannot be used"):
        compute_features(corpus, cache=tmp_path)


def test_a_cache_that_cannot_be_written_is_named(corpus, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=r"cannot write .*file.*choose another folder"):
        compute_features(corpus, cache=tmp_path / "file")


@pytest.mark.parametrize(("values", "message"), [
    ({"kind": "plp"}, r"kind must be one of .*got 'plp'"),
    ({"deltas": 3}, r"deltas must be one of"),
    ({"normalisation": "batch"}, r"normalisation must be one of"),
    ({"frame_shift_ms": 0.0}, r"frame_shift_ms must be positive, got 0"),
    ({"num_mel_bins": 2}, r"num_mel_bins must be at least 3, got 2"),
    ({"num_cepstra": 41}, r"num_cepstra must be 1 to num_mel_bins = 40, got 41"),
    ({"normalisation": "none", "normalise_variance": True}, r"normalise_variance needs a normalisation"),
])
def test_impossible_options_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        FeatureOptions(**values)


@pytest.mark.parametrize(("values", "message"), [
    ({"kind": "given"}, r"features\.kind = 'given', but corpus small has audio: set kind to 'fbank' or 'mfcc'"),
    ({"high_freq": 5000.0}, r"low_freq = 20 and high_freq = 5000 leave no band below 4000 Hz"),
    ({"high_freq": -3990.0}, r"leave no band below 4000 Hz"),
])
def test_options_that_do_not_fit_the_corpus_are_refused(corpus, values, message):
    with pytest.raises(ConfigError, match=message):
        compute_features(corpus, FeatureOptions(**values))


def test_an_empty_corpus_is_refused(corpus):
    with pytest.raises(DataError, match=r"no utterances to compute features of"):
        compute_features(corpus.keep([]))


def test_given_statistics_need_not_be_of_this_corpus(corpus):
    ours = Statistics(mean=np.full(40, 2.0, np.float32), std=np.full(40, 4.0, np.float32))
    raw, features = compute_features(corpus, PLAIN), compute_features(
        corpus, FeatureOptions(normalisation="global"), statistics=ours)
    np.testing.assert_allclose(features.frames, (raw.frames - 2) / 4, atol=1e-6)
