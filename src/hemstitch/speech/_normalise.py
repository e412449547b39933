"""Deltas and normalisation of the frames of many utterances.

Deltas are the regression slope over two frames on either side, d_t = sum_k k (c_{t+k} - c_{t-k}) / (2 sum_k k^2), with
the first and last frame repeated beyond the ends; the second order is the slope of the first.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from hemstitch.speech._feature_options import FeatureOptions
from hemstitch.speech._feature_set import Statistics
from hemstitch.speech._manifest import Utterance

DELTA_WINDOW = 2
SMALLEST_STD = 1e-5


def with_deltas(pieces: list[np.ndarray], order: int) -> np.ndarray:
    """All pieces one below the other, slopes to the right; empties ``pieces`` on the way."""
    dim = pieces[0].shape[1]
    frames = np.empty((sum(map(len, pieces)), dim * (order + 1)), np.float32)
    first = 0
    for index, piece in enumerate(pieces):
        rows = frames[first : first + len(piece)]
        rows[:, :dim] = piece
        for k in range(order):
            rows[:, (k + 1) * dim : (k + 2) * dim] = _slope(rows[:, k * dim : (k + 1) * dim])
        first += len(piece)
        pieces[index] = piece[:0]
    return frames


def _slope(frames: np.ndarray) -> np.ndarray:
    """Regression slope over ``DELTA_WINDOW`` frames on either side: (time, dim) -> (time, dim)."""
    time = len(frames)
    padded = np.concatenate([frames[:1]] * DELTA_WINDOW + [frames] + [frames[-1:]] * DELTA_WINDOW)
    ahead = [padded[DELTA_WINDOW + k : DELTA_WINDOW + k + time] for k in range(DELTA_WINDOW + 1)]
    behind = [padded[DELTA_WINDOW - k : DELTA_WINDOW - k + time] for k in range(DELTA_WINDOW + 1)]
    total = np.zeros_like(frames)
    for k in range(1, DELTA_WINDOW + 1):
        total += k * (ahead[k] - behind[k])
    return total / (2 * sum(k * k for k in range(1, DELTA_WINDOW + 1)))


def normalise(frames: np.ndarray, offsets: np.ndarray, utterances: list[Utterance], options: FeatureOptions,
               statistics: Statistics | None) -> Statistics | None:
    """Normalise in place; returns what the global normalisation used."""
    spans = [slice(int(a), int(b)) for a, b in itertools.pairwise(offsets)]
    if options.normalisation == "global":
        if statistics is None:
            train = [span for span, u in zip(spans, utterances) if u.split == "train"]
            statistics = _statistics(frames, train, options.normalise_variance)
        _apply(frames, spans, statistics)
        return statistics
    for group in _groups(spans, utterances, options.normalisation):
        _apply(frames, group, _statistics(frames, group, options.normalise_variance))
    return None


def _groups(spans: list[slice], utterances: list[Utterance], kind: str) -> Iterator[list[slice]]:
    """The spans that are normalised together."""
    if kind == "utterance":
        yield from ([span] for span in spans)
    elif kind == "speaker":
        groups: dict[tuple[str, str], list[slice]] = {}
        for span, utterance in zip(spans, utterances):
            groups.setdefault((utterance.split, utterance.speaker), []).append(span)
        yield from groups.values()


def _statistics(frames: np.ndarray, spans: list[slice], with_variance: bool) -> Statistics:
    """Mean and standard deviation over ``spans``, summed in float64, in two passes."""
    count = sum(span.stop - span.start for span in spans)
    mean = np.sum([frames[span].sum(axis=0, dtype=np.float64) for span in spans], axis=0) / count
    std = np.ones_like(mean)
    if with_variance:
        squares = np.sum([np.square(frames[span] - mean).sum(axis=0) for span in spans], axis=0)
        std = np.maximum(np.sqrt(squares / count), SMALLEST_STD)
    return Statistics(mean=mean.astype(np.float32), std=std.astype(np.float32))


def _apply(frames: np.ndarray, spans: list[slice], statistics: Statistics) -> None:
    for span in spans:
        frames[span] -= statistics.mean
        if (statistics.std != 1).any():
            frames[span] /= statistics.std
