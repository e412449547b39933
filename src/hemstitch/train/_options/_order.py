"""The order of the updates: [order]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hemstitch.train._options._checks import at_least, require


@dataclass(frozen=True, kw_only=True)
class ForwardOrder:
    """Batches are applied in the order in which they come: ordinary training."""


@dataclass(frozen=True, kw_only=True)
class BackwardOrder:
    """At each look all batches since the origin are applied again, the newest first (paper 5).

    Attributes:
        mode: exact, or ordinary training on the newer batches followed by the first ones, always the same.
        tail: batches that a fixed tail applies last.
        head_horizon: a fixed tail starts from a moving average of about so many newest iterates; 1: from the newest.
        window: steps after which the trajectory may start anew from its end; 0: never.
        reset: start anew at the end of each window, or only if that lowers the dev loss.
        hold: look at the end of the last window instead of the running iterate.
        start: ordinary steps before the backward order begins.
        stop: last step in backward order, ordinary steps go on from there; 0: the end.
        fresh_state: clear the optimizer's state whenever a trajectory starts.
        diagnose_every: steps between probes of the contraction of the maps and of the dev loss in both orders, shown
            in the report; each costs two looks; 0: none.
        statistics_batches: newest batches from which batch-norm statistics are estimated for a look.
    """

    mode: Literal["exact", "fixed_tail"] = "exact"
    tail: int = 50
    head_horizon: int = 1
    window: int = 0
    reset: Literal["always", "better"] = "always"
    hold: bool = False
    start: int = 0
    stop: int = 0
    fresh_state: bool = False
    diagnose_every: int = 0
    statistics_batches: int = 50

    def __post_init__(self) -> None:
        require(self.diagnose_every >= 0, f"diagnose_every must be at least 0, got {self.diagnose_every}")
        require(self.tail >= 1, f"tail must be at least 1, got {self.tail}")
        require(self.head_horizon >= 1, f"head_horizon must be at least 1, got {self.head_horizon}")
        require(self.head_horizon == 1 or self.mode == "fixed_tail", "head_horizon needs mode = 'fixed_tail'")
        require(self.window >= 0, f"window must be at least 0, got {self.window}")
        require(self.window or not self.hold, "hold = true needs a window")
        require(self.reset == "always" or (self.window and self.mode == "exact"),
                "reset = 'better' needs a window and mode = 'exact': it applies the newest batches again")  # fmt: skip
        require(self.start >= 0 and (self.stop == 0 or self.start < self.stop),
                f"0 <= start < stop is needed, got start = {self.start}, stop = {self.stop}")  # fmt: skip
        require(self.statistics_batches >= 1, f"statistics_batches must be >= 1, got {self.statistics_batches}")

    @property
    def needs_score(self) -> bool:
        """Whether the dev loss is asked for in between."""
        return self.reset == "better" or self.diagnose_every > 0


@dataclass(frozen=True, kw_only=True)
class OrderAverageOptions:
    """Each batch is cut into parts, and the mean effect of all orders of them is added to its gradient (paper 5, D.2).

    Attributes:
        num_parts: parts of a batch.
        strength: of the added term, in units of the squared learning rate; the paper tries 0.5 to 4.
        order: mean over all orders, or the one in which the parts come.
    """

    num_parts: int = 4
    strength: float = 1.0
    order: Literal["average", "single"] = "average"

    def __post_init__(self) -> None:
        at_least(2, self, "num_parts")
        at_least(0, self, "strength")
