"""Diagnosis of a run while it goes on: do its maps contract, and is the backward order the steadier one here?"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from hemstitch.order._backward_sgd import BackwardSGD
from hemstitch.order._objective import Parameters, device_of, trainable


@dataclass(frozen=True)
class OrderDiagnosis:
    """What a probe found.

    Attributes:
        contraction: how much the newest map stretched the direction that the maps probed before it stretched most.
        forward, backward: the number evaluated at the forward and at the backward iterate.
        spread: roughness of the probed numbers so far, forward over backward; ``nan`` before the third probe.
    """

    contraction: float
    forward: float
    backward: float
    spread: float


class OrderProbe:
    """Look at both orders of a :class:`BackwardSGD` run now and then.

        k = |T_n(theta + d v) - T_n(theta)| / d,    v the new unit direction
        spread = rough(forward) / rough(backward),    rough(x)^2 = mean (x_{i+1} - x_i)^2 / 2

    theta is the point from which training would go on: the forward iterate, or in exact mode the origin. The mean
    logarithm of k over a run is near the largest Lyapunov exponent if every map is probed, see
    :func:`contraction_along`; a few probes tell whether maps stretch (k > 1). Unlike there, T_n is whatever the inner
    optimizer does. Differences of neighbouring probes keep the trend of a run out of its spread.

    Args:
        order: the run; left as it is, but for its count of passes.
        evaluate: ``evaluate(model)`` -> a number, such as the dev loss; must leave the model as it is.
        memory: how many of the newest probes make the spread, >= 3.
        distance: d, small beside the parameters, large beside their rounding.
        seed: of the first direction.

    Cost of a probe: two gradients; the look at the backward iterate; in exact mode as much again for the forward one;
    two calls of ``evaluate``.

    Reference: Dherin et al. (arXiv:2502.01557), Theorems 2.2 and 2.6.
    """

    def __init__(
        self,
        order: BackwardSGD,
        evaluate: Callable[[nn.Module], float],
        *,
        memory: int = 20,
        distance: float = 1e-3,
        seed: int = 0,
    ) -> None:
        self.order, self.distance = order, distance
        self._evaluate, self._seed = evaluate, seed
        self._direction: Parameters = {}
        self._values: deque[tuple[float, float]] = deque(maxlen=memory)

    def look(self) -> OrderDiagnosis | None:
        """Probe the newest map and both iterates; ``None`` where no backward trajectory runs."""
        points = self.order.both_orders(self._evaluate)
        if points is None:
            return None
        self._values.append(points)
        forward, backward = (roughness([value[k] for value in self._values]) for k in (0, 1))
        spread = forward / backward if backward > 0 else math.nan
        return OrderDiagnosis(self._contraction(), *points, spread)

    def _contraction(self) -> float:
        direction = self._direction or self._first_direction()
        scale = self.distance / _length(direction.values())
        stretched = self.order.stretched({name: scale * v for name, v in direction.items()})
        length = _length(stretched.values())
        self._direction = stretched if 0 < length < math.inf else {}
        return length / self.distance

    def _first_direction(self) -> Parameters:
        generator = torch.Generator().manual_seed(self._seed)
        return {name: torch.randn(p.shape, generator=generator).to(p) for name, p in
                trainable(self.order.model).items()}  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        """The direction and the probed numbers."""
        return {"direction": self._direction, "values": [list(pair) for pair in self._values]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        device = device_of(self.order.model)
        self._direction = {name: v.to(device) for name, v in state["direction"].items()}
        self._values.clear()
        self._values.extend((forward, backward) for forward, backward in state["values"])


def roughness(values: Sequence[float]) -> float:
    """sqrt(mean((x_{i+1} - x_i)^2) / 2): the deviation around a slow trend; ``nan`` for fewer than three values."""
    if len(values) < 3:
        return math.nan
    return math.sqrt(math.fsum((b - a) ** 2 for a, b in pairwise(values)) / (len(values) - 1) / 2)


def _length(tensors: Iterable[Tensor]) -> float:
    return float(torch.stack([t.norm() for t in tensors]).norm())
