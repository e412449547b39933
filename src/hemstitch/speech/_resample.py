"""Change of sampling rate by a windowed sinc.

Sample n of the output lies at input position n f/g with f the input and g the output rate. It is the sum over input
samples k of x_k c sinc(c (k - n f/g)) w(k - n f/g): an ideal low-pass at c = 0.95 min(1, g/f) times the Nyquist
frequency of the input, under a Kaiser window w. As f/g = down/up in lowest terms, only ``up`` different filters occur
(polyphase).
"""

from __future__ import annotations

import functools
import math

import numpy as np

ROLL_OFF = 0.95
"""Pass-band edge as a share of the lower Nyquist frequency."""
ZERO_CROSSINGS = 32
"""Half width of the filter in periods of its cut-off."""
KAISER_BETA = 9.0
"""About 90 dB of attenuation in the stop band."""


def resample(samples: np.ndarray, from_rate: int, to_rate: int) -> np.ndarray:
    """Band-limited resampling.

    Args:
        samples: (sample,) floats.
        from_rate, to_rate: sampling rates in Hz.

    Returns:
        (ceil(samples * to_rate / from_rate),) float32; the first sample stays at time zero.

    Cost: about 64 max(1, from_rate / to_rate) multiplications per output sample.
    """
    samples = np.asarray(samples, dtype=np.float32)
    if from_rate == to_rate:
        return samples
    common = math.gcd(from_rate, to_rate)
    up, down = to_rate // common, from_rate // common
    filters = _filters(up, down)
    half = filters.shape[1] // 2
    count = -(-len(samples) * up // down)
    padded = np.concatenate([np.zeros(half - 1, np.float32), samples, np.zeros(half + down, np.float32)])
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * half)
    output = np.empty(count, np.float32)
    for phase in range(min(up, count)):
        rows = windows[phase * down // up :: down][: len(output[phase::up])]
        output[phase::up] = np.einsum("nk,k->n", rows, filters[phase])
    return output


@functools.cache
def _filters(up: int, down: int) -> np.ndarray:
    """(up, taps): filter of each phase, taps at input samples -half+1 .. half around floor(n down/up)."""
    cutoff = ROLL_OFF * min(1.0, up / down)
    half = math.ceil(ZERO_CROSSINGS / cutoff)
    fractions = (np.arange(up) * down % up) / up
    distance = np.arange(-half + 1, half + 1)[None, :] - fractions[:, None]
    window = np.i0(KAISER_BETA * np.sqrt(np.maximum(0.0, 1 - (distance / half) ** 2))) / np.i0(KAISER_BETA)
    filters = cutoff * np.sinc(cutoff * distance) * window
    return (filters / filters.sum(axis=1, keepdims=True)).astype(np.float32)
