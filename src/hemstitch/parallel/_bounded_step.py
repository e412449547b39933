"""Stochastic gradient descent on flat parameters, with bounds on the change of each component and of all together.

With Delta = -lr g and its parts Delta_c,

    f_c = min(1, max_change_c / |Delta_c|)      h = min(1, max_change / |f Delta|)      theta += h f_c Delta_c

which is the rule of ``hemstitch.optim.SGD`` where there are no layers any more, only slices of one vector: in a
parameter server, in virtual replicas. The norms, which cost one pass, also tell whether the gradient is finite.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from hemstitch.errors import ConfigError


@dataclass(frozen=True)
class Bound:
    """A component, the slice ``start:stop`` of the parameters, and the most that it may move in a step; 0: no bound."""

    start: int
    stop: int
    max_change: float


@dataclass(frozen=True)
class StepRule:
    """Which steps are taken.

    Attributes:
        lr: learning rate nu, >= 0.
        max_change: most that all parameters together may move, Euclidean; 0: no bound.
        components: bounds on slices, in ascending order, not overlapping.
    """

    lr: float
    max_change: float = 0.0
    components: tuple[Bound, ...] = ()

    def __post_init__(self) -> None:
        if not (0 <= self.lr < math.inf and 0 <= self.max_change < math.inf):
            raise ConfigError(f"lr and max_change must be >= 0 and finite, got {self.lr} and {self.max_change}")
        ends = [0, *(place for c in self.components for place in (c.start, c.stop))]
        if ends != sorted(ends):
            raise ConfigError(f"components must be slices in ascending order without overlap, got {self.components}")

    def factors(self, gradient: Tensor, norm: float | None = None) -> list[tuple[slice, float]] | None:
        """By what to multiply each slice of the gradient before adding it; ``None`` if it is not finite.

        Args:
            gradient: flat, g.
            norm: of the whole gradient, if it is known, or if this one is a shard of it; then the common bound neglects
                how much other shards' components were shortened, so it is at least as tight as it should be.
        """
        if norm is not None and not self.components:
            length = self.lr * norm
            return [(slice(None), -self.lr * _bound(self.max_change, length))] if math.isfinite(length) else None
        pieces = _pieces(self.components, gradient.numel())
        lengths = [self.lr * float(torch.linalg.vector_norm(gradient[piece])) for piece, _ in pieces]
        total = math.hypot(*lengths) if norm is None else self.lr * norm
        if not all(map(math.isfinite, (*lengths, total))):
            return None
        shortened = [_bound(most, length) for (_, most), length in zip(pieces, lengths, strict=True)]
        if norm is None:
            total = math.hypot(*(f * length for f, length in zip(shortened, lengths, strict=True)))
        common = -self.lr * _bound(self.max_change, total)
        return [(piece, common * f) for (piece, _), f in zip(pieces, shortened, strict=True)]


def apply_step(parameters: Tensor, gradient: Tensor, factors: Sequence[tuple[slice, float]], out: Tensor) -> Tensor:
    """The parameters after the step, in ``out``: the parameters, the gradient, or other memory.

    Cost: one pass.
    """
    for piece, factor in factors:
        torch.add(parameters[piece], gradient[piece], alpha=factor, out=out[piece])
    return out


@lru_cache(maxsize=64)
def _pieces(components: tuple[Bound, ...], size: int) -> list[tuple[slice, float]]:
    """The components and, without a bound, what lies between them."""
    pieces, end = [], 0
    for component in components:
        if component.start > end:
            pieces.append((slice(end, component.start), 0.0))
        pieces.append((slice(component.start, component.stop), component.max_change))
        end = component.stop
    return [*pieces, (slice(end, size), 0.0)] if end < size or not pieces else pieces


def _bound(most: float, length: float) -> float:
    return most / length if 0 < most < length else 1.0
