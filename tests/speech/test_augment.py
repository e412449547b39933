import numpy as np
import pytest
import torch
from corpus_folder import LINES, RATE, write_corpus
from recordings import digest

from hemstitch.errors import ConfigError, DataError
from hemstitch.speech import (
    AugmentOptions,
    Corpus,
    FeatureOptions,
    FeatureSet,
    add_noise,
    augmented_corpus,
    change_speed,
    change_volume,
    compute_features,
    mask_windows,
    speed_perturbed,
    warp_time,
)
from hemstitch.speech._augment import _keys, _uniform, draw_masks
from hemstitch.speech._media import read_audio
from hemstitch.speech._normalise import with_deltas


def rng(seed=0):
    return np.random.default_rng(seed)


def power(samples):
    return float(np.mean(np.square(samples, dtype=np.float64)))


# Audio

@pytest.mark.parametrize("factor", [0.9, 1.0, 1.1])
def test_speed_moves_length_and_pitch(factor):
    tone = np.sin(2 * np.pi * 1000 * np.arange(RATE) / RATE).astype(np.float32)
    fast = change_speed(tone, RATE, factor)
    assert len(fast) == -(-RATE // factor)
    expected = np.sin(2 * np.pi * 1000 * factor * np.arange(len(fast)) / RATE)
    np.testing.assert_allclose(fast[200:-200], expected[200:-200], atol=2e-3)


@pytest.mark.parametrize("noise", [None, rng(1).uniform(-1, 1, 300), rng(1).uniform(-1, 1, 9000)])
@pytest.mark.parametrize("decibel", [0.0, 20.0])
def test_noise_has_the_power_asked_for(noise, decibel):
    samples = rng().standard_normal(4000).astype(np.float32)
    noisy = add_noise(samples, decibel, rng(2), noise)
    assert 10 * np.log10(power(samples) / power(noisy - samples)) == pytest.approx(decibel, abs=0.01)
    np.testing.assert_array_equal(noisy, add_noise(samples, decibel, rng(2), noise))
    np.testing.assert_array_equal(add_noise(np.zeros(10, np.float32), decibel, rng(2), noise), np.zeros(10))


def test_noise_is_a_stretch_of_the_recording():
    recording = np.arange(1.0, 8.0)
    drawn = add_noise(np.ones(10, np.float32), 0.0, rng(), recording) - 1
    steps = np.diff(np.round(drawn / drawn.min()).astype(int))
    assert set(steps % 7) == {1} and set(steps) == {1, -6}  # goes on, and begins again at its end


def test_volume_in_decibel():
    assert change_volume(np.ones(1, np.float32), 20.0) == pytest.approx(10.0)


# Stored features

def slowly_warped(frames, factor):
    """Frame by frame, as the formula says."""
    rows = []
    for t in range(max(1, round(len(frames) / factor))):
        at = min(t * factor, len(frames) - 1)
        k = min(int(at), max(0, len(frames) - 2))
        last = frames[min(k + 1, len(frames) - 1)]
        rows.append((1 - (at - k)) * frames[k] + (at - k) * last)
    return np.array(rows)


@pytest.mark.parametrize("time", [1, 2, 50])
@pytest.mark.parametrize("factor", [0.9, 1.0, 1.1])
def test_warping_is_interpolation(time, factor):
    frames = rng().standard_normal((time, 3)).astype(np.float32)
    warped = warp_time(frames, factor)
    assert warped.dtype == np.float32
    np.testing.assert_allclose(warped, slowly_warped(frames, factor), atol=1e-6)


def test_slopes_grow_with_the_speed():
    frames = np.cumsum(rng().standard_normal((80, 2)), axis=0).astype(np.float32)
    smooth = np.stack([np.convolve(column, np.hanning(21) / 10, "valid") for column in frames.T], 1).astype(np.float32)
    warped = warp_time(with_deltas([smooth.copy()], 2), 1.1, deltas=2)
    expected = with_deltas([warp_time(smooth, 1.1)], 2)
    inside = slice(5, -5)
    for columns, tolerance in ((slice(0, 2), 1e-6), (slice(2, 4), 0.03), (slice(4, 6), 0.05)):
        scale = np.abs(expected[inside, columns]).max()
        np.testing.assert_allclose(warped[inside, columns], expected[inside, columns], atol=tolerance * scale)


def test_copies_of_features_stand_behind_the_originals():
    frames = rng().standard_normal((30, 2)).astype(np.float32)
    features = FeatureSet(frames=frames, offsets=np.array([0, 10, 30]), ids=("a", "b"), frame_shift=0.01)
    more = speed_perturbed(features, [0.9, 1.1], ids=["b"])
    assert more.ids == ("a", "b", "b@0.9", "b@1.1") and len(more.frames) == more.offsets[-1]
    for name in ("a", "b"):
        np.testing.assert_array_equal(more[name], features[name])
    for factor in (0.9, 1.1):
        np.testing.assert_array_equal(more[f"b@{factor}"], warp_time(features["b"], factor))
    assert len(speed_perturbed(features, [1.1])) == 4


# Corpora

TIMES = [["one", 0.1, 0.2], ["two", 0.2, 0.45]]
SPEED = AugmentOptions(speed=(0.9, 1.1))


@pytest.fixture
def corpus(tmp_path):
    lines = [dict(line) for line in LINES]
    lines[0]["word_times"] = TIMES
    return Corpus.load(write_corpus(tmp_path / "corpus", lines))


def test_copies_of_audio_join_the_training_part_alone(corpus, tmp_path):
    more = augmented_corpus(corpus, tmp_path / "more", SPEED)
    train = [u.id for u in corpus.select("train")]
    assert [u.id for u in more.select("train")] == [*train, *(f"{name}@{f}" for f in (0.9, 1.1) for name in train)]
    assert len(more.select("test")) == 1 and more.speakers == corpus.speakers
    copy = more.keep(["ann-1@0.9"]).utterances[0]
    assert (copy.speaker, copy.text, copy.info) == ("ann", "one two", {"copy_of": "ann-1", "speed": 0.9})
    assert copy.word_times == (("one", 0.111111, 0.222222), ("two", 0.222222, 0.5))
    original, slow = (read_audio(more.folder / u.audio, RATE) for u in (more.utterances[0], copy))
    np.testing.assert_array_equal(original, read_audio(corpus.folder / "audio" / "ann-1.wav", RATE))
    np.testing.assert_allclose(slow, change_speed(original, RATE, 0.9), atol=1e-4)
    assert more.lexicon.read_bytes() == corpus.lexicon.read_bytes()


def test_copies_depend_on_seed_and_name_alone(corpus, tmp_path):
    noisy = AugmentOptions(speed=(1.0,), volume=6.0, noise=(10.0, 20.0))
    first = augmented_corpus(corpus, tmp_path / "first", noisy)
    assert digest(first.folder) == digest(augmented_corpus(corpus, tmp_path / "second", noisy).folder)
    other = augmented_corpus(corpus, tmp_path / "other", noisy, seed=1)
    fewer = augmented_corpus(corpus.keep(["ann-2", "bob-1"]), tmp_path / "fewer", noisy)

    def sound(found, name):
        return read_audio(found.folder / found.keep([name]).utterances[0].audio, RATE)

    np.testing.assert_array_equal(sound(first, "bob-1@1"), sound(fewer, "bob-1@1"))
    assert not np.array_equal(sound(first, "bob-1@1"), sound(other, "bob-1@1"))
    change = 10 * np.log10(power(sound(first, "bob-1@1")) / power(sound(first, "bob-1")))
    assert -6 < change < 6 + 10 * np.log10(1.1) + 0.1


def test_stored_features_are_warped(tmp_path):
    lines = [{"id": f"u{i}", "speaker": "s", "text": "one", "split": s, "features": ["f.npz", 10 * i, 10 * i + 10]}
             for i, s in enumerate(("train", "train", "test"))]
    folder = write_corpus(tmp_path / "corpus", lines)
    (folder / "corpus.json").write_text('{"name": "stored", "frame_shift": 0.01}')
    np.savez(folder / "f.npz", feats=rng().standard_normal((30, 4)).astype(np.float16))
    corpus = Corpus.load(folder)
    more = augmented_corpus(corpus, tmp_path / "more", SPEED)
    options = FeatureOptions(kind="given", normalisation="none", deltas=1)
    before, after = (compute_features(c, options) for c in (corpus, more))
    assert after.ids == ("u0", "u1", "u2", "u0@0.9", "u1@0.9", "u0@1.1", "u1@1.1")
    np.testing.assert_array_equal(after["u2"], before["u2"])
    np.testing.assert_array_equal(after["u1@1.1"][:, :4], warp_time(before["u1"][:, :4], 1.1))
    np.testing.assert_array_equal(after["u1@1.1"], with_deltas([warp_time(before["u1"][:, :4], 1.1)], 1))
    with pytest.raises(ConfigError, match="corpus stored has stored features: volume and noise need audio"):
        augmented_corpus(corpus, tmp_path / "noisy", AugmentOptions(speed=(1.0,), noise=(10.0,)))
    (folder / "f.npz").unlink()
    with pytest.raises(DataError, match=r"utterances\.jsonl:1: feature file .*f\.npz is missing"):
        augmented_corpus(corpus, tmp_path / "gone", SPEED)
    assert not (tmp_path / "gone").exists()


# Masks

MASKED = AugmentOptions(time_masks=2, time_mask_frames=5, frequency_masks=1, frequency_mask_bins=4)


def test_masks_are_as_wide_and_as_many_as_allowed():
    hidden_time, hidden_bins = draw_masks(_keys(np.arange(4000), 0, 0), 30, 12, MASKED)
    assert hidden_time.shape == (4000, 30) and hidden_bins.shape == (4000, 12)
    assert set(hidden_bins.sum(1)) == {0, 1, 2, 3, 4}
    starts = np.diff(hidden_bins.astype(int), prepend=0, axis=1) == 1
    assert starts.sum(1).max() == 1  # a band has no gaps
    assert hidden_time.sum(1).max() == 10
    np.testing.assert_allclose(np.bincount(hidden_bins.sum(1)) / 4000, 0.2, atol=0.03)
    assert hidden_bins.any(0).all() and hidden_time.any(0).all()
    shares = AugmentOptions(time_masks=1, time_mask_frames=50, time_mask_share=0.1)
    assert draw_masks(_keys(np.arange(1000), 0, 0), 30, 12, shares)[0].sum(1).max() == 3


def test_masked_windows_are_zero_in_all_slopes_and_the_same_batch_is_masked_alike():
    windows, frames = torch.ones(64, 30, 24), torch.arange(64)
    masked = mask_windows(windows, frames, MASKED, seed=3, deltas=1)
    assert torch.equal(masked, mask_windows(windows, frames, MASKED, seed=3, deltas=1)) and windows.all()
    assert torch.equal(masked[:, :, :12], masked[:, :, 12:])
    hidden_bins, hidden_time = (masked == 0).all(1), (masked == 0).all(2)
    assert hidden_bins.any() and hidden_time.any()
    assert torch.equal(masked == 0, hidden_bins[:, None] | hidden_time[:, :, None])
    for other in (mask_windows(windows, frames + 1, MASKED, seed=3), mask_windows(windows, frames, MASKED, seed=4)):
        assert not torch.equal(masked, other)
    assert mask_windows(windows, frames, AugmentOptions(), seed=3) is windows


def test_masks_of_an_utterance_depend_on_seed_epoch_and_utterance_alone():
    def masked(items, epoch):
        return mask_windows(torch.ones(len(items), 40, 8), torch.tensor(items), MASKED, seed=1, epoch=epoch)

    together = masked([3, 7, 5], epoch=2)
    for i, item in enumerate((3, 7, 5)):
        assert torch.equal(together[i], masked([item], epoch=2)[0])
        assert not torch.equal(together[i], masked([item], epoch=3)[0])


def test_drawn_numbers_are_uniform_and_unrelated():
    keys = np.concatenate([_keys(np.arange(500), seed, epoch) for seed in (0, 1) for epoch in range(4)])
    assert len(set(keys.tolist())) == 4000
    drawn = _uniform(keys, 4)
    counts = np.histogram(drawn, bins=20, range=(0, 1))[0]
    assert ((counts - 800) ** 2 / 800).sum() < 45.3  # chi squared, 19 degrees of freedom, p = 0.0006
    assert np.abs(np.corrcoef(drawn.T) - np.eye(4)).max() < 0.07
    assert abs(np.corrcoef(drawn[:-1, 0], drawn[1:, 0])[0, 1]) < 0.07
    first = [(bits >> 11) * 2.0**-53 for bits in (0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4)]
    assert _uniform(np.zeros(1, np.uint64), 2).tolist() == [first]  # published values of SplitMix64 from seed 0


# Options

@pytest.mark.parametrize(("options", "message"), [
    ({"speed": (0.1,)}, "between 0.5 and 2"),
    ({"speed": (0.9, 0.9)}, "may occur once"),
    ({"volume": 3.0}, r"set speed = \[1.0\] for one copy"),
    ({"speed": (1.0,), "volume": -1.0}, "0 to 60 decibel"),
    ({"time_masks": -1}, "time_masks must not be negative"),
    ({"time_mask_share": 1.5}, r"in \[0, 1\]"),
])
def test_options_out_of_range(options, message):
    with pytest.raises(ConfigError, match=message):
        AugmentOptions(**options)


def test_options_that_do_not_fit_the_features():
    AugmentOptions(speed=(0.9,)).check(FeatureOptions(kind="given"))
    with pytest.raises(ConfigError, match="volume and noise need audio"):
        AugmentOptions(speed=(0.9,), noise=(10.0,)).check(FeatureOptions(kind="given"))
    with pytest.raises(ConfigError, match="has cepstra"):
        AugmentOptions(frequency_masks=1).check(FeatureOptions(kind="mfcc"))
