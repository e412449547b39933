"""How far a run is, and what its steps told since the last line of metrics.jsonl; both are in every checkpoint."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from hemstitch.train._strategies import StepReport


@dataclass
class Progress:
    """How far a run is; the x-axes of every curve.

    Attributes:
        step: updates, those left out included.
        samples: training samples consumed.
        forward, backward: samples sent forward and backward by training (looks at the dev part not counted).
        wall, cpu: seconds spent by this run, all its sessions together.
        non_finite: steps left out or rolled back.
        looked: epochs after which the dev part was looked at.
        best_loss, best_step: the best look.
    """

    step: int = 0
    samples: int = 0
    forward: float = 0.0
    backward: float = 0.0
    wall: float = 0.0
    cpu: float = 0.0
    non_finite: int = 0
    looked: int = 0
    best_loss: float = math.inf
    best_step: int = -1


@dataclass
class Window:
    """Sums over the steps since the last logged training value."""

    loss: float = 0.0
    weight: float = 0.0
    errors: float | None = None  # None: the criterion counts none
    norm: float = 0.0
    steps: int = 0
    extra: dict[str, list[float]] = field(default_factory=dict)  # name -> [sum, number of steps that told it]

    def add(self, report: StepReport) -> None:
        """Add a step that was applied."""
        self.loss += report.loss
        self.weight += report.weight
        if report.errors is not None:
            self.errors = (self.errors or 0.0) + report.errors
        if report.gradient_norm is not None:
            self.norm += report.gradient_norm
            self.steps += 1
        for name, value in report.extra.items():
            total, count = self.extra.get(name, (0.0, 0))
            self.extra[name] = [total + value, count + 1]
