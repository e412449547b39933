"""From a series of directions to a step: backtracking over the iterates, then Armijo's rule along the chosen one.

Both read the loss through a function and never accept a step that raises it; a loss that is not finite counts as
infinite.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hemstitch.curvature._parameters import Vector
from hemstitch.errors import MisuseError


@dataclass(frozen=True, kw_only=True)
class Backtracking:
    """Which iterate of conjugate gradients to follow.

    Attributes:
        index: of the chosen iterate; the best of those tried.
        loss: there; inf if none was finite.
        last_loss: at the last iterate, for the reduction ratio.
        evaluations: of the loss.
    """

    index: int
    loss: float
    last_loss: float
    evaluations: int


def backtrack(loss_at: Callable[[Vector], float], iterates: Sequence[Vector], loss_before: float) -> Backtracking:
    """Walk back from the last iterate while the loss falls, or until it lies below ``loss_before``.

    Conjugate gradients lower the quadratic model with every iterate, the loss itself often not: the model is fitted to
    a small sample. The walk stops at the first rise once an improvement was found and returns the best iterate seen.
    (The loop printed in paper 3 overwrites its best loss with worse ones while nothing improves.)

    Args:
        loss_at: the held-out loss for a direction.
        iterates: directions, shortest first.
        loss_before: L(theta).

    Cost: at least 2 evaluations (1 for a single iterate).

    Reference: paper 3, algorithm 1; Martens 2010, section 4.6.
    """
    if not iterates:
        raise MisuseError("backtracking needs at least one iterate")
    last = best = _finite(loss_at(iterates[-1]))
    index, evaluations = len(iterates) - 1, 1
    for k in range(len(iterates) - 2, -1, -1):
        loss = _finite(loss_at(iterates[k]))
        evaluations += 1
        if loss >= best and best <= loss_before and math.isfinite(best):
            break
        if loss < best:
            best, index = loss, k
    return Backtracking(index=index, loss=best, last_loss=last, evaluations=evaluations)


@dataclass(frozen=True, kw_only=True)
class LineSearch:
    """How far to go.

    Attributes:
        step: alpha, 0 if no step lowers the loss enough.
        loss: there.
        evaluations: of the loss.
    """

    step: float
    loss: float
    evaluations: int


def armijo(
    loss_at: Callable[[float], float],
    loss_before: float,
    slope: float,
    *,
    start: float = 1.0,
    start_loss: float | None = None,
    sufficient: float = 1e-2,
    shrink: float = 0.8,
    max_trials: int = 60,
) -> LineSearch:
    """The first step alpha = start, start shrink, ... with L(alpha) <= L(0) + sufficient alpha slope.

    Args:
        loss_at: alpha -> L(theta + alpha d).
        loss_before: L(0).
        slope: g'd, the derivative of L along d at alpha = 0; a direction with slope >= 0 is refused with alpha = 0.
        start: first alpha.
        start_loss: L(start) where it is known: saves one evaluation.
        sufficient: share of the linear fall that must come true, 0 < c < 1.
        shrink: factor from one trial to the next.
        max_trials: trials at most.

    Reference: Armijo 1966; paper 3, section 2.
    """
    evaluations, alpha = 0, start
    if math.isnan(slope) or slope >= 0:
        return LineSearch(step=0.0, loss=loss_before, evaluations=0)
    for trial in range(max_trials):
        if trial == 0 and start_loss is not None:
            loss = start_loss
        else:
            loss = loss_at(alpha)
            evaluations += 1
        if _finite(loss) <= loss_before + sufficient * alpha * slope:
            return LineSearch(step=alpha, loss=loss, evaluations=evaluations)
        alpha *= shrink
    return LineSearch(step=0.0, loss=loss_before, evaluations=evaluations)


def _finite(loss: float) -> float:
    return loss if math.isfinite(loss) else math.inf
