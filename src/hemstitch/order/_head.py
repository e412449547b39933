"""The head of a fixed tail: which point the tail starts from.

The m maps of a tail leave a part of the head's noise, at worst all of it where they hardly contract. An average over
forward iterates has less noise to begin with. It is no iterate of any order, so the law of the backward iterate is
lost; the last maps applied are still the same at every look.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from hemstitch.order._maps import Point
from hemstitch.order._objective import Parameters


class HeadAverage:
    """a := a + (theta - a) max(1 / horizon, 1 / n) after the n-th iterate; at horizon 1 the iterate itself.

    Attributes:
        horizon: how many of the newest iterates it stands for, about.
        num_members: n.
        parameters: a; empty at the start, and always at horizon 1, which needs no memory.
    """

    def __init__(self, horizon: int) -> None:
        self.horizon, self.num_members = horizon, 0
        self.parameters: Parameters = {}

    def add(self, parameters: Mapping[str, Tensor]) -> None:
        """Take another iterate."""
        self.num_members += 1
        if self.horizon == 1:
            return
        weight = max(1 / self.horizon, 1 / self.num_members)
        for name, p in parameters.items():
            old = self.parameters.get(name)
            self.parameters[name] = p.detach().clone() if old is None else old.lerp_(p.detach(), weight)

    def point(self, here: Point) -> Point:
        """``here`` with the average as its parameters, by copy."""
        return replace(here, parameters=here.parameters | {name: a.clone() for name, a in self.parameters.items()})

    def clear(self) -> None:
        """Forget all iterates."""
        self.num_members, self.parameters = 0, {}
