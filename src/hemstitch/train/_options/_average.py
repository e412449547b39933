"""Averages of the parameters along a run: [average]."""

from __future__ import annotations

from dataclasses import dataclass

from hemstitch.train._options._checks import require


@dataclass(frozen=True, kw_only=True)
class NoAverage:
    """The network is looked at as it is."""


@dataclass(frozen=True, kw_only=True)
class MovingAverage:
    """An exponential moving average (EMA) of the parameters is looked at and kept; training does not notice.

    Attributes:
        horizon: steps over which an old value fades to 1/e.
        statistics_batches: training batches from which batch-norm statistics are estimated for a look.
    """

    horizon: float = 100.0
    statistics_batches: int = 50

    def __post_init__(self) -> None:
        require(self.horizon >= 1, f"horizon must be at least 1, got {self.horizon}")
        require(self.statistics_batches >= 1, f"statistics_batches must be >= 1, got {self.statistics_batches}")


@dataclass(frozen=True, kw_only=True)
class WeightAverage:
    """The plain mean of the parameters from some point on (SWA, Izmailov et al. 2018) is looked at and kept.

    Attributes:
        start: share of the epochs after which the mean begins; until then the network is looked at as it is.
        interval: steps between two members of the mean.
        statistics_batches: training batches from which batch-norm statistics are estimated for a look.
    """

    start: float = 0.5
    interval: int = 1
    statistics_batches: int = 50

    def __post_init__(self) -> None:
        require(0 <= self.start < 1, f"start must be in [0, 1), got {self.start}")
        require(self.interval >= 1, f"interval must be at least 1, got {self.interval}")
        require(self.statistics_batches >= 1, f"statistics_batches must be >= 1, got {self.statistics_batches}")
