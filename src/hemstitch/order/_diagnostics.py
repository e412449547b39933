"""Is a run where backward order helps? Contraction of its maps, and the spread of forward against backward iterates.

Backward iterates converge where maps contract (Theorem 2.2); forward ones keep the spread of their stationary law
(Theorem 2.6). Both can be measured. On networks the parameters of two runs under shared maps do not always approach
each other, though the functions they compute do: look at the spread as well as at the factors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import stdev
from typing import Any

import torch
from torch import nn

from hemstitch.errors import MisuseError
from hemstitch.order._iterates import check_steps, fixed_tail_points, forward_points, gradient_descent
from hemstitch.order._maps import EngineName, Maps, Point
from hemstitch.order._objective import Loss, Objective, device_of, kept_buffers, seeded, trainable


def contraction_factor(
    model: nn.Module, loss: Loss | Objective, batch: Any, lr: float, *, num_iterations: int = 50, seed: int = 0
) -> float:
    """How much the map of one batch stretches, at most, around the current parameters.

        k = |1 - h H| = max_i |1 - h lambda_i|,    by power iteration with Hessian-vector products

    Below 1 the map contracts here (equation 1): h < 2 / lambda_max and all curvature positive. A direction without
    curvature gives 1; a network has many, so 1 is the common answer and the excess over 1 is the news.

    Args:
        model: evaluated at its current parameters and left as it is.
        loss: ``loss(outputs, targets)``, or an :class:`Objective`.
        batch: one batch.
        lr: learning rate h > 0.
        num_iterations: products; the result is a lower bound that rises with them.
        seed: of the first direction.

    Cost: one gradient and ``num_iterations`` double backwards.

    Reference: Dherin et al. (arXiv:2502.01557), Example 2.1.
    """
    parameters = list(trainable(model).values())
    generator = torch.Generator().manual_seed(seed)
    vector = [torch.randn(p.shape, generator=generator, dtype=p.dtype).to(p.device) for p in parameters]
    factor = 1.0
    with kept_buffers(model), torch.enable_grad(), seeded(0, device_of(model)):
        gradient = torch.autograd.grad(Objective.of(loss)(model, batch), parameters, create_graph=True)
        for _ in range(num_iterations):
            size = _length(vector)
            if size == 0:
                return 0.0
            vector = [v / size for v in vector]
            curved = torch.autograd.grad(gradient, parameters, vector, retain_graph=True, materialize_grads=True,
                                         allow_unused=True)
            vector = [v - lr * c for v, c in zip(vector, curved)]
            factor = _length(vector)
    return factor


def contraction_along(
    model: nn.Module,
    loss: Loss | Objective,
    batches: Sequence[Any],
    lr: float,
    *,
    distance: float = 1e-3,
    seed: int = 0,
) -> list[float]:
    """How much each map of a forward run stretches the direction that the maps before it stretched most.

        k_i = |T_i(theta_{i-1} + d v_{i-1}) - T_i(theta_{i-1})| / d,    v_i the new unit direction

    The mean logarithm is the largest Lyapunov exponent of the run: below 0, runs from nearby starting points under the
    same batches approach each other and backward iterates converge; near 0 they do not within reach.

    Args:
        model: theta_0 is where it stands; it stays there.
        loss: ``loss(outputs, targets)``, or an :class:`Objective`.
        batches: B_1, B_2, ...
        lr: learning rate h > 0.
        distance: d, length of the displacement; small beside the parameters, large beside their rounding.
        seed: of the first direction.

    Returns:
        One factor for each batch.

    Cost: two gradients a batch.
    """
    maps, updates, here = gradient_descent(model, loss, batches, lr)
    generator = torch.Generator().manual_seed(seed)
    direction = {name: torch.randn(p.shape, generator=generator, dtype=p.dtype).to(p.device)
                 for name, p in trainable(model).items()}
    factors = []
    for update in updates:
        scale = distance / _length(direction.values())
        moved = {name: here.parameters[name] + scale * v for name, v in direction.items()}
        there = replace(here, parameters=here.parameters | moved)
        ends = dict(maps.descend([update], [(here, 1), (there, 1)]))
        here = ends[0]
        direction = {name: ends[1].parameters[name] - p for name, p in here.parameters.items() if name in direction}
        factors.append(_length(direction.values()) / distance)
    return factors


@dataclass(frozen=True)
class OrderComparison:
    """One number, such as the training loss, along three orders of the same maps.

    Attributes:
        steps: the steps looked at.
        forward, backward, fixed_tail: its value at each of them.
        passes: gradients spent on each order, by its name.
    """

    steps: list[int]
    forward: list[float]
    backward: list[float]
    fixed_tail: list[float]
    passes: dict[str, int]

    @property
    def spread(self) -> float:
        """Standard deviation over the steps, forward over backward: above 1, the backward order is the steadier one."""
        return stdev(self.forward) / stdev(self.backward)

    @property
    def tail_spread(self) -> float:
        """Standard deviation over the steps, fixed tail over backward."""
        return stdev(self.fixed_tail) / stdev(self.backward)


def compare_orders(
    model: nn.Module,
    loss: Loss | Objective,
    batches: Sequence[Any],
    lr: float,
    at: Iterable[int],
    evaluate: Callable[[nn.Module], float],
    *,
    tail: int = 50,
    head_horizon: int = 1,
    engine: EngineName = "auto",
    memory: int | None = None,
) -> OrderComparison:
    """Evaluate the forward, the backward and the fixed-tail iterates of one run at the same steps.

    Args:
        model: theta_0 is where it stands; it stays there.
        loss, batches, lr, at, engine, memory: as for :func:`backward_iterates`.
        evaluate: ``evaluate(model)`` -> a number; must leave the model as it is.
        tail, head_horizon: as for :func:`fixed_tail_iterates`.

    Returns:
        The three curves, the gradients each took, and the ratio of their spreads.

    Cost: sum of ``at`` gradients (backward), max(at) (forward), max(at) + tail a step (fixed tail).
    """
    maps, updates, origin = gradient_descent(model, loss, batches, lr, engine, memory)
    steps = check_steps(at, len(updates))
    if len(steps) < 2:
        raise MisuseError(f"compare_orders: a spread needs at least two steps, got {steps}")
    backward = ((steps[i], end) for i, end in maps.descend(updates, [(origin, k) for k in steps]))
    curves, passes = {}, {}
    for name, points in {
        "forward": forward_points(maps, updates, origin, steps),
        "backward": backward,
        "fixed_tail": fixed_tail_points(maps, updates, origin, steps, tail, head_horizon),
    }.items():
        before = maps.passes.backward
        values = {k: _evaluate(maps, end, evaluate) for k, end in points}
        curves[name], passes[name] = [values[k] for k in steps], maps.passes.backward - before
    return OrderComparison(steps=steps, **curves, passes=passes)


def _evaluate(maps: Maps, point: Point, evaluate: Callable[[nn.Module], float]) -> float:
    with maps.workspace():
        maps.restore(point, states=False)
        return float(evaluate(maps.model))


def _length(tensors) -> float:
    return float(torch.stack([t.norm() for t in tensors]).norm())
