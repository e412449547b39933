r"""Aligned features as decision trees want them: summed up by state and neighbours.

A set of frames is scored by their log-likelihood under one diagonal Gaussian of their own,

    L = -1/2 sum_d n [log(2 pi v_d) + s_d / v_d],    v_d = max(s_d, floor_d),    s_d: their variance in dimension d.

That needs their number n, sum and sum of squares, and no frames: the sums of two sets add up to those of both.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np

from hemstitch.errors import DataError, NonFiniteError
from hemstitch.speech._align import Alignment
from hemstitch.speech._topology import Topology, phone_numbers, with_neighbours

_FLOOR = 0.01
"""Smallest variance of a Gaussian, as a share of the variance of all frames."""
_POOLED = 256
"""Utterances whose statistics are kept apart before they are added up: bounds memory."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TreeStatistics:
    """Frames of every (phone, position) between every pair of neighbours, summed up.

    Attributes:
        topology: what the alignments were made with; it numbers phones and positions.
        keys: (row, 4) int64: phone, position, left, right; sorted, each once.
        sums: (row, 1 + 2 dim) float64: number of frames, their sum, the sum of their squares.
    """

    topology: Topology
    keys: np.ndarray
    sums: np.ndarray

    @classmethod
    def collect(
        cls, features: Iterable[np.ndarray], alignments: Iterable[Alignment], topology: Topology
    ) -> TreeStatistics:
        """Sum up the frames of utterances.

        Args:
            features: (frame, dim) of each utterance, best those that the network will see, of one frame.
            alignments: of the same utterances, in the same order.
            topology: what the alignments were made with.

        Raises:
            DataError: an alignment is missing or has another length than its features, or there are no frames.
            NonFiniteError: a feature is NaN or infinite.

        Cost: one pass over the frames.
        """
        pieces: list[tuple[np.ndarray, np.ndarray]] = []
        for number, (frames, alignment) in enumerate(zip_longest(features, alignments)):
            if frames is None or alignment is None:
                raise DataError(f"tree statistics: only {number} utterances have features and an alignment, others "
                                "have one of them; give both in the same order")
            if len(frames) != len(alignment.pdfs):
                raise DataError(f"tree statistics: an utterance has {len(frames)} frames of features, but "
                                f"{len(alignment.pdfs)} in its alignment; both must be at the same frame rate")
            pieces.append(_pooled(_codes(alignment, topology), _sums(np.asarray(frames, dtype=np.float64))))
            if len(pieces) > _POOLED:
                pieces = [_pool(pieces)]
        if not sum(len(codes) for codes, _ in pieces):
            raise DataError("tree statistics: no frames; align some utterances first")
        codes, sums = _pool(pieces)
        if not np.isfinite(sums).all():
            raise NonFiniteError("tree statistics: a feature is NaN or infinite; look at the features")
        return cls(topology=topology, keys=np.stack(np.unravel_index(codes, _shape(topology)), axis=1), sums=sums)

    @property
    def floor(self) -> np.ndarray:
        """(dim,) smallest variance that a Gaussian may have."""
        return np.maximum(_FLOOR * _variance(self.sums.sum(0)), np.finfo(float).tiny)

    def log_likelihood(self, topology: Topology | None = None) -> float:
        """Average over frames of their log-likelihood, in nats, under one Gaussian for each pdf of a topology.

        Args:
            topology: other ways to tie the same phones and positions; ``None``: that of the statistics.
        """
        tied = topology or self.topology
        pdfs = np.array([tied.pdf(phone, position, context) for phone, position, *context in self.keys.tolist()])
        return float(gaussian_score(_pooled(pdfs, self.sums)[1], self.floor).sum() / self.sums[:, 0].sum())


def _shape(topology: Topology) -> tuple[int, ...]:
    """Sizes of the columns of keys."""
    size = len(topology.phones) + 1
    return size, max(topology.num_positions), size, size


def _codes(alignment: Alignment, topology: Topology) -> np.ndarray:
    """(frame,) the key of each frame as one number."""
    units = with_neighbours(phone_numbers(topology, (phone.label for phone in alignment.phones)))
    columns = np.array([(phone, left, right) for phone, (left, right) in units]).reshape(-1, 3)
    phone, left, right = np.repeat(columns, [phone.end - phone.start for phone in alignment.phones], axis=0).T
    return np.ravel_multi_index((phone, topology.pdf_positions[alignment.pdfs], left, right), _shape(topology))


def _sums(frames: np.ndarray) -> np.ndarray:
    """(frame, 1 + 2 dim): 1, x and x^2 of each frame."""
    return np.concatenate([np.ones((len(frames), 1)), frames, frames**2], axis=1)


def _pooled(codes: np.ndarray, sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every code once, sorted, with the sum of its rows."""
    order = np.argsort(codes, kind="stable")
    found, first = np.unique(codes[order], return_index=True)
    return found, np.add.reduceat(sums[order], first, axis=0) if len(first) else sums


def _pool(pieces: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    return _pooled(*map(np.concatenate, zip(*pieces)))


def _variance(sums: np.ndarray) -> np.ndarray:
    """(..., dim) variances of sets of frames; 0 for an empty one."""
    number, total, squares = np.split(sums, [1, 1 + sums.shape[-1] // 2], axis=-1)
    number = np.maximum(number, 1.0)
    return np.maximum(squares / number - (total / number) ** 2, 0.0)


def gaussian_score(sums: np.ndarray, floor: np.ndarray) -> np.ndarray:
    """(...,) the L of sets of frames, from their sums (..., 1 + 2 dim) and the smallest variances (dim,)."""
    variance = _variance(sums)
    bounded = np.maximum(variance, floor)
    return -0.5 * sums[..., 0] * (np.log(2 * np.pi * bounded) + variance / bounded).sum(-1)
