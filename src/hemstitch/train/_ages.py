"""Ages of gradients over a whole run, counted on when it is resumed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from hemstitch.parallel import StalenessHistogram


@dataclass
class Ages:
    """How old parameters were when gradients were applied, over a whole run.

    Attributes:
        counts: (age,) gradients by age in updates.
        seconds: sum of their ages in seconds.
    """

    counts: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    seconds: float = 0.0

    def plus(self, histogram: StalenessHistogram) -> Ages:
        """Together with those of one simulation."""
        new = histogram.counts
        counts = np.zeros(max(len(new), len(self.counts)), dtype=np.int64)
        counts[: len(self.counts)] = self.counts
        counts[: len(new)] += new
        return Ages(counts, self.seconds + float(histogram.seconds.sum()))

    @property
    def number(self) -> int:
        """How many."""
        return int(self.counts.sum())

    @property
    def mean(self) -> float:
        """Mean age in updates; 0 if there are none."""
        return float(self.counts @ np.arange(len(self.counts))) / max(1, self.number)

    @property
    def mean_seconds(self) -> float:
        """Mean age in simulated seconds."""
        return self.seconds / max(1, self.number)

    def line(self, label: str) -> dict[str, Any]:
        """Shares by age, for a diagram."""
        return {"label": f"{label}, mean {self.mean:.1f}", "x": list(range(len(self.counts))),
                "y": (self.counts / max(1, self.number)).tolist()}  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        """Both numbers."""
        return {"counts": torch.from_numpy(self.counts.copy()), "seconds": self.seconds}

    @classmethod
    def restored(cls, state: dict[str, Any]) -> Ages:
        """From a state."""
        return cls(state["counts"].numpy().copy(), state["seconds"])
