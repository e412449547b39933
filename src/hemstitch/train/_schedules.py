"""Learning-rate schedules: a factor on the configured rate, from the progress of the run and the dev loss."""

from __future__ import annotations

import math
from typing import Any

from hemstitch.train import _options as o

ScheduleOptions = o.ConstantRate | o.ExponentialRate | o.CosineRate | o.PlateauRate


class Schedule:
    """The factor on the learning rate.

    Args:
        options: which schedule.
        epochs: length of the run, in epochs.
    """

    def __init__(self, options: ScheduleOptions, epochs: int) -> None:
        self.options, self.epochs = options, epochs
        self.start = 0.0  # epoch at which the schedule began
        self.reduction = 1.0  # what plateaus and roll-backs have left
        self.best = math.inf
        self.looks_since_best = 0

    def factor(self, progress: float) -> float:
        """The factor at ``progress`` epochs into the run."""
        warmup, progress = self.options.warmup, progress - self.start
        rise = min(1.0, progress / warmup) if warmup > 0 else 1.0
        share = min(1.0, progress / (self.epochs - self.start))
        match self.options:
            case o.ExponentialRate(final=final):
                fall = final**share
            case o.CosineRate(final=final):
                fall = final + (1 - final) * (1 + math.cos(math.pi * share)) / 2
            case _:
                fall = 1.0
        return rise * fall * self.reduction

    def observe(self, dev_loss: float) -> bool:
        """Tell the dev loss of a look; returns whether the rate was reduced because of it."""
        if not isinstance(self.options, o.PlateauRate):
            return False
        if dev_loss < self.best * (1 - self.options.threshold):
            self.best, self.looks_since_best = dev_loss, 0
            return False
        self.looks_since_best += 1
        if self.looks_since_best <= self.options.patience:
            return False
        self.reduction *= self.options.factor
        self.looks_since_best = 0
        return True

    def state_dict(self) -> dict[str, Any]:
        """What observations have changed."""
        return {name: getattr(self, name) for name in ("start", "reduction", "best", "looks_since_best")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what observations had changed."""
        for name, value in state.items():
            setattr(self, name, value)
