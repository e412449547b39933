"""Putting audio together: levels, joins, background noise, WAV files."""

from __future__ import annotations

import wave
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

SPEECH_LEVEL = 0.06
"""Root mean square of a word or utterance, of full scale (-24 dB): loud, but hardly ever clipped."""


def generator(seed: int, *names: str) -> np.random.Generator:
    """Random numbers that depend on the seed and these names alone."""
    return np.random.default_rng([seed, zlib.crc32("/".join(names).encode())])


def levelled(samples: np.ndarray) -> np.ndarray:
    """``samples`` at the root mean square ``SPEECH_LEVEL``; silence stays silence."""
    power = float(np.mean(np.square(samples, dtype=np.float64)))
    return samples * np.float32(SPEECH_LEVEL / np.sqrt(power)) if power > 0 else samples


def faded(samples: np.ndarray, count: int) -> np.ndarray:
    """``samples`` with a linear rise and fall of ``count`` samples (half of them if there are fewer)."""
    count = min(count, len(samples) // 2)
    ramp = np.arange(1, count + 1, dtype=np.float32) / np.float32(count + 1)
    out = samples.astype(np.float32)
    out[:count] *= ramp
    out[len(out) - count :] *= ramp[::-1]
    return out


def join(clips: Sequence[np.ndarray], gaps: Sequence[int]) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Clips with zeros between: ``gaps[0]`` of them before the first, ``gaps[-1]`` after the last.

    Returns:
        The samples, and (start, end) of each clip in samples.
    """
    spans, position = [], gaps[0]
    for clip, gap in zip(clips, gaps[1:]):
        spans.append((position, position + len(clip)))
        position += len(clip) + gap
    samples = np.zeros(position, np.float32)
    for clip, (start, end) in zip(clips, spans):
        samples[start:end] = clip
    return samples, spans


def noisy(samples: np.ndarray, decibel: float, rng: np.random.Generator) -> np.ndarray:
    """``samples`` plus white noise at ``decibel`` of full scale."""
    noise = rng.standard_normal(len(samples), dtype=np.float32)
    return samples + noise * np.float32(10 ** (decibel / 20))


def write_wav(path: Path, samples: np.ndarray, sampling_rate: int) -> None:
    """A mono WAV file of 16 bits; scaled down as a whole where it would clip."""
    peak = float(np.abs(samples).max())
    samples = samples / max(1.0, peak / 0.99)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(sampling_rate)
        file.writeframes(np.round(samples * 32767).astype("<i2").tobytes())


def seconds(spans: Sequence[tuple[int, int]], words: Sequence[str],
            sampling_rate: int) -> tuple[tuple[str, float, float], ...]:
    """Spans in samples as the word times of the manifest."""
    return tuple((word, round(start / sampling_rate, 6), round(end / sampling_rate, 6))
                 for word, (start, end) in zip(words, spans))
