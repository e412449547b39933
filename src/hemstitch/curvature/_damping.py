"""Levenberg-Marquardt damping: trust the quadratic model as far as it was right."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hemstitch.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class LevenbergMarquardt:
    """How the damping lambda follows rho, the share of the predicted fall of the loss that came true.

    rho = (L(theta + d) - L(theta)) / q(d). Below ``low`` the model was too bold: lambda grows; above ``high`` it was
    timid: lambda shrinks; a rejected step counts as rho = -infinity. (In algorithm 1 of paper 3 the sign of rho is
    reversed, so that lambda would shrink with every success.)

    Attributes:
        increase, decrease: factors, > 1 and < 1.
        low, high: bounds of rho between which lambda stays.
        minimum, maximum: bounds of lambda.

    Examples:
        >>> rule = LevenbergMarquardt()
        >>> rule.adjust(1.0, rho=0.1), rule.adjust(1.0, rho=0.5), rule.adjust(1.5, rho=0.9)
        (1.5, 1.0, 1.0)

    Reference: paper 3, algorithm 1; Martens 2010, section 4.1.
    """

    increase: float = 1.5
    decrease: float = 2 / 3
    low: float = 0.25
    high: float = 0.75
    minimum: float = 1e-10
    maximum: float = 1e10

    def __post_init__(self) -> None:
        if not (self.increase >= 1 >= self.decrease > 0 and self.low <= self.high
                and 0 <= self.minimum <= self.maximum):
            raise ConfigError("need increase >= 1 >= decrease > 0, low <= high and 0 <= minimum <= maximum, "
                              f"got {self}")

    def adjust(self, damping: float, rho: float) -> float:
        """The next damping; a rho that is NaN counts as a failure."""
        if math.isnan(rho) or rho < self.low:
            damping *= self.increase
        elif rho > self.high:
            damping *= self.decrease
        return min(max(damping, self.minimum), self.maximum)
