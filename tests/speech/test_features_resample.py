import numpy as np
import pytest

from hemstitch.speech import resample


def tone(frequency, rate, seconds=0.5):
    return np.sin(2 * np.pi * frequency * np.arange(int(rate * seconds)) / rate)


@pytest.mark.parametrize(("from_rate", "to_rate"), [(22050, 8000), (22050, 16000), (16000, 8000), (8000, 16000)])
@pytest.mark.parametrize("frequency", [100, 1000, 3300])
def test_a_tone_stays_the_tone(from_rate, to_rate, frequency):
    inside = slice(to_rate // 50, -to_rate // 50)  # without the edges, where the tone begins and ends
    out = resample(tone(frequency, from_rate), from_rate, to_rate)
    assert len(out) == -(-from_rate // 2 * to_rate // from_rate)
    np.testing.assert_allclose(out[inside], tone(frequency, to_rate)[: len(out)][inside], atol=1e-3)


def test_what_the_new_rate_cannot_carry_is_removed():
    out = resample(tone(6000, 16000), 16000, 8000)
    assert np.abs(out[200:-200]).max() < 1e-3


@pytest.mark.parametrize("length", [0, 1, 2, 440, 441, 442])
def test_any_length(length):
    out = resample(np.ones(length), 22050, 8000)
    assert out.dtype == np.float32
    assert len(out) == -(-length * 160 // 441)


def test_the_same_rate_changes_nothing():
    samples = tone(50, 8000).astype(np.float32)
    assert resample(samples, 8000, 8000) is samples
