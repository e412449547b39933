"""Long recordings in pieces: cut where it is quiet, recognised with some overlap, put together again.

A piece is recognised with a margin of its neighbours on both sides, so that no word at a cut lacks its context. Where
two pieces overlap, both have recognised something; they are joined at a moment at which neither is inside a word, the
nearest such to the cut.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hemstitch.errors import MisuseError
from hemstitch.speech._align import Segment

SMOOTHING = 0.3
"""Seconds over which the level is averaged: a pause, not the closure of a stop consonant."""
QUIETEST = -100.0
"""Decibel of full scale below which all is equally silent."""


def level(samples: np.ndarray, sampling_rate: int, frame_shift: float, num_frames: int) -> np.ndarray:
    """(frame,) root mean square around each frame in decibel of full scale, averaged over 0.3 s.

    Args:
        samples: (sample,) in [-1, 1].
        sampling_rate: in Hz.
        frame_shift: seconds from one frame to the next.
        num_frames: how many there are.
    """
    shift = frame_shift * sampling_rate
    edges = np.round(np.arange(num_frames + 1) * shift).astype(int).clip(0, len(samples))
    power = np.concatenate([[0.0], np.cumsum(np.square(samples, dtype=np.float64))])
    width = max(1, round(SMOOTHING / frame_shift / 2))
    first = edges[np.maximum(0, np.arange(num_frames) - width)]
    last = edges[np.minimum(num_frames, np.arange(num_frames) + width + 1)]
    mean = (power[last] - power[first]) / np.maximum(1, last - first)
    return 10 * np.log10(np.maximum(mean, 10 ** (QUIETEST / 10)))


def cut_frames(levels: np.ndarray, longest: int) -> list[int]:
    """Edges of pieces, from 0 to the end: each cut is at the quietest frame in the second half of what is allowed.

    Args:
        levels: (frame,) from :func:`level`.
        longest: most frames of a piece, > 1.
    """
    if longest < 2:
        raise MisuseError(f"cut_frames: expected pieces of 2 frames or more, got {longest}")
    edges = [0]
    while len(levels) - edges[-1] > longest:
        first = edges[-1] + longest // 2
        edges.append(first + int(np.argmin(levels[first : edges[-1] + longest])))
    return [*edges, len(levels)]


def join_pieces(pieces: Sequence[Sequence[Segment]], cuts: Sequence[int], margin: int) -> tuple[Segment, ...]:
    """The words of overlapping pieces, each once.

    Args:
        pieces: words of each piece in frames of the recording, one piece more than cuts.
        cuts: frames at which the recording was cut.
        margin: frames by which pieces reach beyond their cuts.
    """
    words = list(pieces[0])
    for piece, cut in zip(pieces[1:], cuts, strict=True):
        at = _join_frame(words, piece, cut, margin)
        words = [w for w in words if _middle(w) < at] + [w for w in piece if _middle(w) >= at]
    return tuple(words)


def _join_frame(before: Sequence[Segment], after: Sequence[Segment], cut: int, margin: int) -> int:
    """The frame within the margin that splits the fewest words, of these the nearest to the cut."""
    near = [w for w in (*before, *after) if w.end > cut - margin and w.start < cut + margin]
    borders = {frame for w in near for frame in (w.start, w.end) if abs(frame - cut) <= margin}
    return min({cut, *borders}, key=lambda at: (sum(w.start < at < w.end for w in near), abs(at - cut), at))


def _middle(word: Segment) -> float:
    return (word.start + word.end) / 2
