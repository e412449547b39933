"""The curvature of a criterion at the network's outputs, as Hessian-free optimisation needs it.

Conjugate gradients want a positive semi-definite matrix. Cross-entropy has one, diag(p) - p p' with the softmax p.
Sequence criteria are not convex in the outputs and take a surrogate of the same form per frame, with the occupancies
gamma of the denominator in place of p and kappa the acoustic scale (Kingsbury et al. 2012):

    MMI kinds                        kappa^2 (diag(gamma) - gamma gamma')
    minimum-Bayes-risk kinds         the same with the softmax of the outputs for gamma
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class OutputCurvature:
    """A positive semi-definite matrix H over the outputs of a batch.

    Attributes:
        product: v -> H v, both in the shape of the outputs. H belongs to the *summed* loss.
        weight: that of the objective on the same batch: what to divide sums by. 0: nothing in the batch counts.
    """

    product: Callable[[Tensor], Tensor]
    weight: float


@runtime_checkable
class CurvedCriterion(Protocol):
    """A criterion that Hessian-free optimisation can minimise; a task's criterion is used by these two methods only."""

    def __call__(self, outputs: Tensor, targets: Any) -> Any:
        """The objective: ``loss``, a scalar sum that carries the gradient, and its ``weight``."""

    def curvature(self, outputs: Tensor, targets: Any) -> OutputCurvature:
        """The (surrogate) curvature of the summed loss at detached ``outputs``."""
