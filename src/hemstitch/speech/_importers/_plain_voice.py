"""A plain voice in numpy: digits as sums of harmonics and bands of noise.

Each phone has three resonances (formants) that may move, a share of voice and a share of noise around a frequency, and
a length. A voice scales all frequencies (length of the vocal tract), has a pitch and a speed. It is no good voice, but
each phone has its own spectrum, words run into each other, and speakers differ: enough to train on where no real
synthesiser is at hand. Everything follows from the arguments, bit for bit on one machine.

Formant frequencies of the vowels: G. Peterson and H. Barney, "Control methods used in a study of the vowels" (1952),
table II, men.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

HOP = 0.005
"""Seconds between two control points."""
SMOOTHING = 9
"""Control points over which all controls are averaged: phones run into each other."""
BANDWIDTHS = (80.0, 110.0, 160.0)
NUM_BANDS = 12

PHONES: dict[str, tuple[float, float, float, float, tuple[float, ...]]] = {
    # seconds, voice, noise, centre of the noise in Hz, formants at the start (and at the end, where they move)
    "AH": (0.08, 1.0, 0.0, 0, (640, 1190, 2390)),
    "AO": (0.12, 1.0, 0.0, 0, (570, 840, 2410)),
    "AY": (0.18, 1.0, 0.0, 0, (730, 1090, 2440, 330, 2100, 2800)),
    "EH": (0.10, 1.0, 0.0, 0, (530, 1840, 2480)),
    "EY": (0.16, 1.0, 0.0, 0, (500, 1900, 2500, 320, 2250, 2900)),
    "F": (0.09, 0.0, 0.12, 3000, (400, 1100, 2300)),
    "IH": (0.08, 1.0, 0.0, 0, (390, 1990, 2550)),
    "IY": (0.14, 1.0, 0.0, 0, (270, 2290, 3010)),
    "K": (0.07, 0.0, 0.35, 1800, (300, 1900, 2400)),
    "N": (0.07, 0.5, 0.0, 0, (250, 1250, 2200)),
    "OW": (0.16, 1.0, 0.0, 0, (520, 950, 2400, 340, 800, 2250)),
    "R": (0.07, 0.8, 0.0, 0, (320, 1100, 1600)),
    "S": (0.11, 0.0, 0.45, 3700, (300, 1700, 2600)),
    "T": (0.06, 0.0, 0.45, 3200, (300, 1800, 2600)),
    "TH": (0.09, 0.0, 0.10, 2200, (350, 1300, 2500)),
    "UW": (0.14, 1.0, 0.0, 0, (300, 870, 2240)),
    "V": (0.07, 0.5, 0.08, 2600, (300, 1100, 2300)),
    "W": (0.07, 0.8, 0.0, 0, (290, 610, 2150)),
    "Z": (0.09, 0.4, 0.30, 3700, (280, 1700, 2600)),
}
STOPS = ("K", "T")


@dataclass(frozen=True, kw_only=True)
class PlainVoice:
    """A speaker.

    Attributes:
        pitch: fundamental frequency in Hz.
        scale: factor on all formants; above 1: a shorter vocal tract.
        speed: factor on the speed of speech.
    """

    pitch: float
    scale: float
    speed: float


def say(words: Sequence[str], voice: PlainVoice, sampling_rate: int,
        rng: np.random.Generator) -> tuple[np.ndarray, list[int]]:
    """Speak.

    Args:
        words: the phones of each word, parted by white space.
        voice: who speaks.
        sampling_rate: in Hz.
        rng: source of the noise and of small variations.

    Returns:
        (sample,) float32, and the first sample of each word.
    """
    controls, first_points = _controls(words, voice, rng)
    hop = round(HOP * sampling_rate)
    formants, voicing, noise, centre = controls[:, :3], controls[:, 3], controls[:, 4], controls[:, 5]
    samples = _harmonics(formants, voicing, voice.pitch, hop, sampling_rate, rng)
    samples += _noise(noise, centre, hop, sampling_rate, rng)
    return samples.astype(np.float32), [point * hop for point in first_points]


def _controls(words: Sequence[str], voice: PlainVoice, rng: np.random.Generator) -> tuple[np.ndarray, list[int]]:
    """(point, 6): formants, voice, noise and its centre; and the first point of each word."""
    rows: list[np.ndarray] = []
    starts = []
    for word in words:
        starts.append(sum(map(len, rows)))
        for phone in word.split():
            duration, voicing, noise, centre, formants = PHONES[phone]
            count = max(4, round(duration * rng.uniform(0.85, 1.2) / voice.speed / HOP))
            row = np.empty((count, 6))
            row[:, :3] = np.linspace(formants[:3], formants[-3:], count) * voice.scale
            row[:, 3:] = voicing, noise, (centre or 2500) * voice.scale
            if phone in STOPS:
                row[: count // 2, 3:5] = 0.0  # the closure before the burst
            rows.append(row)
    controls = np.concatenate(rows)
    padded = np.pad(controls, ((SMOOTHING // 2, SMOOTHING // 2), (0, 0)), mode="edge")
    return np.lib.stride_tricks.sliding_window_view(padded, SMOOTHING, axis=0).mean(-1), starts


def _harmonics(formants: np.ndarray, voicing: np.ndarray, pitch: float, hop: int, sampling_rate: int,
               rng: np.random.Generator) -> np.ndarray:
    points = len(formants)
    swing = 1 + 0.03 * np.sin(np.linspace(0, 3 * rng.uniform(1, 2), points))
    contour = np.repeat(pitch * np.linspace(1.08, 0.9, points) * swing, hop)
    phase = 2 * np.pi * np.cumsum(contour) / sampling_rate
    total = np.zeros(points * hop)
    for number in range(1, int(0.48 * sampling_rate / (1.1 * pitch)) + 1):
        gain = _gain(number * pitch, formants) * voicing / number**0.5
        total += _to_samples(gain, hop) * np.sin(number * phase)
    return 0.3 * total


def _gain(frequency: float, formants: np.ndarray) -> np.ndarray:
    """Sum of the resonances at one frequency: (point,)."""
    distance = (frequency - formants) / np.array(BANDWIDTHS)
    return (np.array([1.0, 0.6, 0.35]) / (1 + distance**2)).sum(axis=1) + 0.01


def _noise(level: np.ndarray, centre: np.ndarray, hop: int, sampling_rate: int, rng: np.random.Generator) -> np.ndarray:
    """White noise cut into bands, each following the level of the points near its frequency."""
    count = len(level) * hop
    spectrum = np.fft.rfft(rng.standard_normal(count))
    edges = np.linspace(0, len(spectrum), NUM_BANDS + 1).astype(int)
    total = np.zeros(count)
    for low, high in itertools.pairwise(edges):
        band = np.zeros_like(spectrum)
        band[low:high] = spectrum[low:high]
        frequency = (low + high) / 2 / len(spectrum) * sampling_rate / 2
        gain = level * np.exp(-0.5 * ((frequency - centre) / (0.25 * centre)) ** 2)
        total += _to_samples(gain, hop) * np.fft.irfft(band, count)
    return total


def _to_samples(points: np.ndarray, hop: int) -> np.ndarray:
    """Linear interpolation from control points to samples."""
    return np.interp(np.arange(len(points) * hop) / hop, np.arange(len(points)), points)
