"""How sure the difference between two methods is, from errors on the same data.

Methods are compared on the same units (speakers, with all their utterances), so that what is hard for both cancels.
Two kinds of chance remain. Another test set: each replicate draws as many units as there are, with replacement.
Other networks: the errors of a unit come from networks that had their luck. Luck that differs from unit to unit is in
the bootstrap already; luck that a network spreads over all units of its fold is not, and is added as noise. Its
variance is that of the fold's errors d over seeds, beyond what the interaction of unit and seed explains:

    luck = sum over folds of  [ Var_s(sum_u d_su) - n MS ] / S,      MS = mean square of the interaction, n units,

the component of variance of a two-way layout. The noise follows Student's t with folds (S - 1) degrees of freedom, as
the variance is known no better. (To draw units and seeds both would count the first kind of luck twice: with two seeds
one false alarm in a hundred, instead of five, and the power to match.) With one seed there is no telling, and the
interval says nothing on how other seeds would do.

Reference: M. Bisani, H. Ney, "Bootstrap estimates for confidence intervals in ASR performance evaluation", ICASSP 2004
(units, and the probability of improvement).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hemstitch.errors import MisuseError

LEVEL = 0.95
_CHUNK = 1000


@dataclass(frozen=True, kw_only=True)
class Gain:
    """By how much one method has fewer errors than another, and how sure that is.

    Attributes:
        absolute: difference of the error rates, positive where the first method is better; 0.01 is a point.
        low, high: its 95 % interval.
        relative: the difference as a share of the second method's error rate; nan where that is 0.
        relative_low, relative_high: its 95 % interval.
        probability: that the first method is better: share of the replicates where it is, ties by half.
        luck: standard deviation of the difference that is due to luck of whole networks; nan with one seed.
        by_seed: the relative gain with each seed alone.
    """

    absolute: float
    low: float
    high: float
    relative: float
    relative_low: float
    relative_high: float
    probability: float
    luck: float
    by_seed: tuple[float, ...]

    @property
    def verdict(self) -> str:
        """Better or worse where the interval leaves 0 out, else unclear."""
        return "better" if self.low > 0 else "worse" if self.high < 0 else "unclear"


class PairedErrors:
    """Errors of several methods on the same units.

    Args:
        errors: (method, seed, unit) counts.
        words: (unit,) reference words.
        folds: (unit,) which networks tested the unit: those of one fold share their luck.
        replications: bootstrap samples.
        seed: of the bootstrap: the same seed gives the same intervals.

    Raises:
        MisuseError: shapes do not fit, fewer than two units, or a unit without words.

    Cost: replications x units x methods multiplications.
    """

    def __init__(
        self, errors: np.ndarray, words: np.ndarray, folds: Sequence[int] | np.ndarray,
        *, replications: int = 10_000, seed: int = 0,
    ) -> None:  # fmt: skip
        self.errors, self.words = np.asarray(errors, dtype=np.float64), np.asarray(words, dtype=np.float64)
        self.folds = np.asarray(folds)
        units = self.words.shape
        if self.errors.ndim != 3 or units != self.errors.shape[2:] or units != self.folds.shape or units[0] < 2:
            raise MisuseError(
                "need errors (method, seed, unit), words (unit,) and folds (unit,) of two or more units, got shapes "
                f"{self.errors.shape}, {units} and {self.folds.shape}"
            )
        if (self.words < 1).any():
            raise MisuseError("every unit needs at least one reference word: leave units without any out")
        self.rates = self.errors.sum(axis=2) / self.words.sum()
        random = np.random.default_rng(seed)
        self.replicates = self._replicates(replications, random)
        freedom = len(np.unique(self.folds)) * (self.errors.shape[1] - 1)
        self._noise = random.standard_t(freedom, replications) if freedom else np.zeros(replications)

    def _replicates(self, count: int, random: np.random.Generator) -> np.ndarray:
        """(replicate, method) error rates; sums of whole numbers up to the one division, so that ties are ties."""
        seeds, units = self.errors.shape[1:]
        errors, rates = self.errors.sum(axis=1).T, []
        for begin in range(0, count, _CHUNK):
            times = random.multinomial(units, np.full(units, 1 / units), min(_CHUNK, count - begin)).astype(np.float64)
            rates.append(times @ errors / (times @ self.words * seeds)[:, None])
        return np.concatenate(rates)

    def _luck(self, errors: np.ndarray) -> float:
        """Standard deviation of the pooled rate that is due to luck of whole networks; errors are (seed, unit)."""
        seeds = len(errors)
        if seeds == 1:
            return math.nan
        variance = 0.0
        for fold in np.unique(self.folds):
            cell = errors[:, self.folds == fold]
            units = cell.shape[1]
            rest = cell - cell.mean(axis=0) - cell.mean(axis=1, keepdims=True) + cell.mean()
            interaction = (rest**2).sum() / ((seeds - 1) * max(units - 1, 1))
            variance += (cell.sum(axis=1).var(ddof=1) - units * interaction) / seeds
        return math.sqrt(max(variance, 0.0)) / float(self.words.sum())

    def interval(self, method: int) -> tuple[float, float]:
        """95 % interval of a method's own error rate."""
        luck = self._luck(self.errors[method])
        return _interval(np.maximum(self.replicates[:, method] + np.nan_to_num(luck) * self._noise, 0))

    def gain(self, a: int, b: int) -> Gain:
        """By how much method ``a`` is better than method ``b``."""
        luck = self._luck(self.errors[b] - self.errors[a])
        other = self.replicates[:, b]
        difference = other - self.replicates[:, a] + np.nan_to_num(luck) * self._noise
        difference = np.minimum(difference, other)  # luck takes no rate below 0
        low, high = _interval(difference)
        relative_low, relative_high = _interval(_share(difference, other))
        mean = self.rates.mean(axis=1)
        return Gain(
            absolute=float(mean[b] - mean[a]),
            low=low,
            high=high,
            relative=float(_share(mean[b] - mean[a], mean[b])),
            relative_low=relative_low,
            relative_high=relative_high,
            probability=float((difference > 0).mean() + (difference == 0).mean() / 2),
            luck=luck,
            by_seed=tuple(_share(self.rates[b] - self.rates[a], self.rates[b]).tolist()),
        )


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole, nan where the whole is 0."""
    return np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=np.asarray(whole) > 0)


def _interval(values: np.ndarray) -> tuple[float, float]:
    """The middle 95 % of what is known."""
    known = values[np.isfinite(values)]
    if not len(known):
        return math.nan, math.nan
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
