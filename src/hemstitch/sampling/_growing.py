"""Samples that grow: little data while any direction helps, much when only a precise one does (paper 3, section 4).

*Fixed*: |S_i| = |S_0|. *Geometric* (Friedlander and Schmidt 2012): |S_i| = factor^i |S_0| up to a cap, known in
advance; paper 3 takes 1.2 for the gradient and 1.3 for curvature. Starting at 4 % (gradient) and 1 % (curvature) of
the cap they meet it at half of 35 iterations, as in the paper.

*Variance-based* (Byrd et al. 2012): with g_u the gradient of unit u and |S| units, descent on the sample is descent on
the whole if

    |Var_u(g_u)|_1 / |S| <= theta^2 |g|^2,    |Var|_1 = (sum_u |g_u|^2 - |sum_u g_u|^2 / S) / (S - 1)

and a sample that fails grows to the size at which it would pass. Only two scalars are needed. The *unit* is what one
g_u is the mean of: here always a micro-batch, which is one utterance where utterances are passed one by one (equation
6 takes means per utterance). The ratio of both sides does not depend on it, and the ratio is all that sets the size.

*Geometric, then variance-based*: the variance of a small sample is itself noise, so the geometric size is used until a
share of the cap is reached (the combination that paper 3 suggests in section 6.2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hemstitch.errors import ConfigError
from hemstitch.sampling._epochs import generator


def gradient_noise(sum_of_squares: float, square_of_sum: float, num_units: int) -> float:
    """|Var_u(g_u)|_1 / (S |g|^2), the squared relative error of a mean of S gradients.

    Args:
        sum_of_squares: sum_u |g_u|^2.
        square_of_sum: |sum_u g_u|^2.
        num_units: S; a single unit has no variance: inf.

    Examples:
        >>> gradient_noise(sum_of_squares=2.0, square_of_sum=2.0, num_units=2)      # (1, 0) and (0, 1)
        1.0

    Reference: paper 3, equations 5 and 6.
    """
    if num_units < 2 or square_of_sum <= 0:
        return math.inf
    variance = max(0.0, sum_of_squares - square_of_sum / num_units) / (num_units - 1)
    return variance * num_units / square_of_sum


@dataclass(frozen=True, kw_only=True)
class SampleGrowth:
    """How the size of a sample follows the step.

    Neither ``factor`` nor ``theta``: fixed. ``factor`` alone: geometric. ``theta`` alone: variance-based. Both:
    geometric until ``switch_share`` of the cap, then variance-based.

    Attributes:
        start: |S_0|, in items or, where the sample counts frames, in frames.
        cap: largest size; ``None``: all there is.
        factor: alpha >= 1 of the geometric growth.
        theta: relative error of the gradient that is allowed, in (0, 1).
        switch_share: share of the cap at which the variance is trusted.
    """

    start: int
    cap: int | None = None
    factor: float | None = None
    theta: float | None = None
    switch_share: float = 0.25

    def __post_init__(self) -> None:
        if self.start < 1 or (self.cap is not None and self.cap < self.start):
            raise ConfigError(f"need 1 <= start <= cap, got start {self.start}, cap {self.cap}")
        if self.factor is not None and self.factor < 1:
            raise ConfigError(f"factor must be at least 1, got {self.factor}")
        if self.theta is not None and not 0 < self.theta < 1:
            raise ConfigError(f"theta must lie between 0 and 1, got {self.theta}")

    def after(self, size: int, step: int, total: int, noise: float | None) -> int:
        """The size at ``step``, after ``size`` at the step before.

        Args:
            size: of the step before.
            step: number of the step the size is for, from 1.
            total: items or frames that there are.
            noise: :func:`gradient_noise` of the step before; ``None`` or inf: unknown, the size stays.
        """
        cap = min(total, self.cap or total)
        if size >= cap:
            return cap
        if self.factor is not None and (self.theta is None or size < self.switch_share * cap):
            size = max(size, math.ceil(self.start * self.factor**step))
        elif self.theta is not None and noise is not None and math.isfinite(noise):
            size = max(size, math.ceil(size * noise / self.theta**2))
        return min(size, cap)


class GrowingSample:
    """A random sample whose size follows a :class:`SampleGrowth`, a function of (seed, step) and the sizes so far.

    Args:
        items: how many items there are, or (item,) their lengths in frames; then sizes count frames and the sample is
            the shortest one with at least that many.
        growth: sizes.
        seed: of the order of the items.
        nested: one order for all steps, so that each sample contains the one before it: curvature pairs of the last
            step then fit this step's matrix. ``False``: a fresh order at each step.

    Examples:
        >>> sample = GrowingSample(100, SampleGrowth(start=4, factor=1.5))
        >>> sizes = []
        >>> for _ in range(4):
        ...     sizes.append(len(sample.indices()))
        ...     sample.advance()
        >>> sizes
        [4, 6, 9, 14]
    """

    def __init__(self, items: int | Tensor, growth: SampleGrowth, seed: int = 0, *, nested: bool = True) -> None:
        self.lengths = None if isinstance(items, int) else items.to(torch.int64).cpu()
        self.num_items = items if self.lengths is None else len(self.lengths)
        if self.num_items < 1 or (self.lengths is not None and int(self.lengths.min()) < 1):
            raise ConfigError("a growing sample needs at least one item, and items of at least one frame")
        self.growth, self.seed, self.nested = growth, seed, nested
        self.step, self.size = 0, min(growth.start, self.total)

    @property
    def total(self) -> int:
        """All items, or all frames where frames are counted."""
        return self.num_items if self.lengths is None else int(self.lengths.sum())

    def indices(self) -> Tensor:
        """(sample,) int64: the items of this step."""
        order = torch.randperm(self.num_items, generator=generator(self.seed, 0 if self.nested else self.step))
        if self.lengths is None:
            return order[: self.size]
        reached = torch.searchsorted(self.lengths[order].cumsum(0), self.size)
        return order[: int(reached) + 1]

    def advance(self, noise: float | None = None) -> None:
        """Go on to the next step, with the :func:`gradient_noise` of this one where it was measured."""
        self.step += 1
        self.size = self.growth.after(self.size, self.step, self.total, noise)

    def state_dict(self) -> dict[str, Any]:
        """Step and size, with what they are relative to."""
        return {"step": self.step, "size": self.size, "seed": self.seed, "num_items": self.num_items,
                "nested": self.nested}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where ``state`` was taken; refuses a state of other data or another seed."""
        for key in ("seed", "num_items", "nested"):
            if state[key] != getattr(self, key):
                raise ConfigError(f"the saved sample is for {key} = {state[key]}, this one has {getattr(self, key)}")
        self.step, self.size = state["step"], state["size"]
