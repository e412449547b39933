"""One Gaussian per hidden Markov state: the humble model that turns an equal alignment into a sensible one.

    log p(x | s) = -1/2 sum_d [ (x_d - mu_sd)^2 / v_sd + log(2 pi v_sd) ]

A network with a wide context can learn even a wrong alignment by heart, so that realigning with it changes little. A
Gaussian cannot: it sees one frame. A few rounds of estimation and Viterbi realignment with it make the flat start that
a network then builds on.

Reference: L. R. Rabiner, "A tutorial on hidden Markov models", Proc. IEEE 77 (1989), section VI.D (segmental k-means).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

VARIANCE_FLOOR = 0.01
"""Smallest variance of a state, as a share of the variance of all frames."""


@dataclass(frozen=True, eq=False)
class Gaussians:
    """A diagonal Gaussian per pdf.

    Attributes:
        mean, variance: (pdf, dim) float64.
    """

    mean: np.ndarray
    variance: np.ndarray

    @classmethod
    def estimate(cls, frames: np.ndarray, pdfs: np.ndarray, num_pdfs: int) -> Gaussians:
        """Mean and variance of the frames of each pdf; a pdf with fewer than two frames takes those of all.

        Args:
            frames: (frame, dim).
            pdfs: (frame,) integers below ``num_pdfs``.
            num_pdfs: number of pdfs.
        """
        frames = frames.astype(np.float64)
        centre, overall = frames.mean(0), frames.var(0)
        counts, centred = np.bincount(pdfs, minlength=num_pdfs)[:, None], frames - centre
        mean = _sums(centred, pdfs, num_pdfs) / np.maximum(counts, 1)
        variance = _sums(centred**2, pdfs, num_pdfs) / np.maximum(counts, 1) - mean**2
        enough = counts > 1
        mean, variance = np.where(enough, mean, 0.0), np.where(enough, variance, overall)
        return cls(mean + centre, np.maximum(variance, VARIANCE_FLOOR * np.maximum(overall, 1e-12)))

    def loglikelihoods(self, frames: np.ndarray) -> np.ndarray:
        """(frame, dim) -> (frame, pdf) float32, in nats. Cost: two matrix products of (frame, dim) by (dim, pdf)."""
        centre = self.mean.mean(0)
        mean, frames = self.mean - centre, frames.astype(np.float64) - centre
        constant = (mean**2 / self.variance + np.log(2 * math.pi * self.variance)).sum(1)
        square = frames**2 @ (1 / self.variance).T
        return (frames @ (mean / self.variance).T - 0.5 * (square + constant)).astype(np.float32)


def _sums(frames: np.ndarray, pdfs: np.ndarray, num_pdfs: int) -> np.ndarray:
    """(pdf, dim) sums of the frames of each pdf."""
    columns = [np.bincount(pdfs, weights=column, minlength=num_pdfs) for column in frames.T]
    return np.stack(columns, axis=1)
