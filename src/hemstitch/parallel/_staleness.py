"""How old parameters were when a gradient computed from them was applied: exact counts, nothing estimated."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np


class StalenessHistogram:
    """Ages of gradients, in updates and in seconds.

    The age in updates is the number of other gradients applied between fetching the parameters and applying the
    gradient computed from them; 0 in serial training. Every age is kept.

    Examples:
        >>> ages = StalenessHistogram()
        >>> ages.add(2, 0.5), ages.add([0, 2], [0.1, 0.6])
        (None, None)
        >>> ages.counts.tolist(), ages.mean, ages.quantile(0.5)
        ([1, 0, 2], 1.3333333333333333, 2)
    """

    def __init__(self) -> None:
        self._updates, self._seconds = array("q"), array("d")

    def add(self, updates: int | Sequence[int] | np.ndarray, seconds: float | Sequence[float] | np.ndarray) -> None:
        """Count one age, or several."""
        if isinstance(updates, int):
            self._updates.append(updates)
            self._seconds.append(seconds)
        else:
            self._updates.frombytes(np.asarray(updates, dtype=np.int64).tobytes())
            self._seconds.frombytes(np.asarray(seconds, dtype=np.float64).tobytes())

    def __len__(self) -> int:
        return len(self._updates)

    @property
    def updates(self) -> np.ndarray:
        """(gradient,) ages in updates, in the order of application."""
        return np.array(self._updates, dtype=np.int64)

    @property
    def seconds(self) -> np.ndarray:
        """(gradient,) ages in seconds."""
        return np.array(self._seconds)

    def since(self, start: int) -> tuple[np.ndarray, np.ndarray]:
        """Ages in updates and in seconds, from a given one on."""
        return np.array(self._updates[start:], dtype=np.int64), np.array(self._seconds[start:])

    @property
    def counts(self) -> np.ndarray:
        """(age,) how many gradients were 0, 1, 2, ... updates old."""
        return np.bincount(self.updates)

    @property
    def mean(self) -> float:
        """Mean age in updates; NaN if there is none."""
        return float(self.updates.mean()) if self else float("nan")

    @property
    def mean_seconds(self) -> float:
        """Mean age in seconds; NaN if there is none."""
        return float(self.seconds.mean()) if self else float("nan")

    def quantile(self, share: float) -> int:
        """The least age in updates that at least ``share`` of the gradients do not exceed."""
        return int(np.quantile(self.updates, share, method="inverted_cdf"))

    def merged(self, *others: StalenessHistogram) -> StalenessHistogram:
        """This one and others together."""
        result = StalenessHistogram()
        for part in (self, *others):
            result._updates.extend(part._updates)
            result._seconds.extend(part._seconds)
        return result

    def summary(self) -> dict[str, Any]:
        """Numbers for a log."""
        if not self:
            return {"num": 0}
        return {"num": len(self), "mean": self.mean, "median": self.quantile(0.5), "p95": self.quantile(0.95),
                "largest": int(self.updates.max()), "mean_seconds": self.mean_seconds,
                "largest_seconds": float(self.seconds.max())}
