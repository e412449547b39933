"""Iterates of gradient descent in a chosen order of its batches, for any steps of a run at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from hemstitch.errors import MisuseError
from hemstitch.order._head import HeadAverage
from hemstitch.order._maps import EngineName, Maps, Point, Update
from hemstitch.order._objective import Loss, Objective, Parameters


def backward_iterates(
    model: nn.Module,
    loss: Loss | Objective,
    batches: Sequence[Any],
    lr: float,
    at: Iterable[int] | None = None,
    *,
    engine: EngineName = "auto",
    memory: int | None = None,
) -> dict[int, Parameters]:
    """Iterates of backward SGD: the batches up to step k, the newest applied first.

        theta_k = T_1 T_2 ... T_k(theta_0),    T_i(theta) = theta - lr grad L_i(theta)

    Exact, but not as the paper describes it: trajectories that share a batch take its step together, see
    :mod:`hemstitch.order._engines`. All engines give the same numbers up to rounding. The model stays as it is.

    Args:
        model: theta_0 is where it stands; batch-norm in training mode uses batch statistics.
        loss: ``loss(outputs, targets)`` as in ``torch.nn``, or an :class:`Objective` for other batches.
        batches: B_1, B_2, ... in the order in which they came; ``(inputs, targets)``, or what the objective takes.
        lr: learning rate h > 0.
        at: steps k, 0 <= k <= len(batches); ``None``: the last one only.
        engine: see :class:`BackwardSGD`.
        memory: bytes for the trajectories that move together.

    Returns:
        {k: {name: parameter}} for each k of ``at``, every parameter by its name in ``model.named_parameters()``.

    Raises:
        MisuseError: a step is out of range, or the engine asked for cannot serve.
        NonFiniteError: an iterate is not finite.

    Cost: k gradients for iterate k, that is the sum of ``at``; memory of all iterates that are returned.

    >>> import torch
    >>> net = torch.nn.Linear(1, 1)
    >>> batches = [(torch.rand(1, 1), torch.rand(1, 1)) for _ in range(10)]
    >>> sorted(backward_iterates(net, torch.nn.MSELoss(), batches, lr=0.1, at=[1, 10]))
    [1, 10]

    Reference: Dherin et al., "Training in reverse" (arXiv:2502.01557), section 1.
    """
    maps, updates, origin = gradient_descent(model, loss, batches, lr, engine, memory)
    steps = check_steps(at, len(updates))
    ends = {steps[index]: end for index, end in maps.descend(updates, [(origin, k) for k in steps])}
    return {k: ends[k].parameters for k in steps}


def forward_iterates(
    model: nn.Module, loss: Loss | Objective, batches: Sequence[Any], lr: float, at: Iterable[int] | None = None
) -> dict[int, Parameters]:
    """Iterates of ordinary SGD, T_k ... T_1(theta_0), for comparison; arguments as in :func:`backward_iterates`.

    Cost: max(at) gradients.
    """
    maps, updates, origin = gradient_descent(model, loss, batches, lr)
    steps = check_steps(at, len(updates))
    return {k: end.parameters for k, end in forward_points(maps, updates, origin, steps)}


def fixed_tail_iterates(
    model: nn.Module,
    loss: Loss | Objective,
    batches: Sequence[Any],
    lr: float,
    at: Iterable[int] | None = None,
    *,
    tail: int = 50,
    head_horizon: int = 1,
) -> dict[int, Parameters]:
    """Approximate backward iterates: forward over the newer batches, then always the same last maps.

        theta_k = T_1 ... T_m (T_k ... T_{m+1}(theta_0)),    m = min(tail, k)

    Not in the paper. For independent batches theta_k has the law of the backward iterate, and what makes the backward
    iterate stable, that the last maps applied are always the same, holds; m maps contract what changes before them.
    Arguments and errors as in :func:`backward_iterates`, and

    Args:
        tail: number m of maps that always come last, >= 1.
        head_horizon: the tail starts from a moving average of the newest about so many forward iterates, see
            :class:`BackwardSGD`; 1: from the newest one.

    Cost: max(at) + tail gradients an iterate, instead of k.
    """
    maps, updates, origin = gradient_descent(model, loss, batches, lr)
    steps = check_steps(at, len(updates))
    if tail < 1 or head_horizon < 1:
        raise MisuseError(f"order: tail and head_horizon must be at least 1, got {tail} and {head_horizon}")
    points = fixed_tail_points(maps, updates, origin, steps, tail, head_horizon)
    return {k: end.parameters for k, end in points}


def forward_points(
    maps: Maps, updates: Sequence[Update], origin: Point, steps: Sequence[int]
) -> Iterator[tuple[int, Point]]:
    """(k, T_k ... T_1(origin)) for ascending steps."""
    here, done = origin, 0
    for k in sorted(steps):
        ((_, here),) = maps.descend(updates[done:k][::-1], [(here, k - done)])
        done = k
        yield k, here


def averaged_points(
    maps: Maps, updates: Sequence[Update], origin: Point, steps: Sequence[int], horizon: int
) -> Iterator[tuple[int, Point]]:
    """(k, moving average of the forward iterates 1 to k) for ascending steps; step 0 gives the origin."""
    average = HeadAverage(horizon)
    for k, here in forward_points(maps, updates, origin, range(max(steps, default=0) + 1)):
        if k:
            average.add(here.parameters)
        if k in steps:
            yield k, average.point(here)


def fixed_tail_points(
    maps: Maps,
    updates: Sequence[Update],
    origin: Point,
    steps: Sequence[int],
    tail: int,
    head_horizon: int = 1,
    group: int = 64,
) -> Iterator[tuple[int, Point]]:
    """(k, fixed-tail iterate); at most ``group`` forward points are held at a time."""
    short = [k for k in sorted(steps) if k <= tail]
    for index, end in maps.descend(updates, [(origin, k) for k in short]) if short else ():
        yield short[index], end
    lengths = [k - tail for k in steps if k > tail]
    if head_horizon == 1:
        heads = forward_points(maps, updates[tail:], origin, lengths)
    else:
        heads = averaged_points(maps, updates[tail:], origin, lengths, head_horizon)
    held: list[tuple[int, Point]] = []
    for length, head in heads:
        held.append((length + tail, head))
        if len(held) == group:
            yield from _tails(maps, updates, held, tail)
            held = []
    yield from _tails(maps, updates, held, tail)


def _tails(
    maps: Maps, updates: Sequence[Update], held: list[tuple[int, Point]], tail: int
) -> Iterator[tuple[int, Point]]:
    if held:
        for index, end in maps.descend(updates, [(head, tail) for _, head in held]):
            yield held[index][0], end


def gradient_descent(
    model: nn.Module,
    loss: Loss | Objective,
    batches: Sequence[Any],
    lr: float,
    engine: EngineName = "auto",
    memory: int | None = None,
) -> tuple[Maps, list[Update], Point]:
    """The maps of plain gradient descent, one for each batch, and the point where the model stands."""
    if not lr > 0:
        raise MisuseError(f"order: lr must be positive, got {lr}")
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=lr)
    maps = Maps(model, Objective.of(loss), optimizer, engine=engine, memory=memory)
    return maps, [maps.update(batch, seed) for seed, batch in enumerate(batches)], maps.snapshot()


def check_steps(at: Iterable[int] | None, num_batches: int) -> list[int]:
    """Ascending steps within reach; ``None``: the last one."""
    steps = [num_batches] if at is None else sorted({int(k) for k in at})
    if steps and not 0 <= steps[0] <= steps[-1] <= num_batches:
        raise MisuseError(f"order: steps must lie in 0..{num_batches} (the number of batches), got {steps}")
    return steps
