"""A loss that already knows its targets: what a micro-batch of a Hessian-free step carries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from hemstitch.curvature._output_curvature import OutputProduct, loss_hessian


class TargetLoss:
    """``loss(outputs, targets)`` as a function of the outputs, times a factor, with its curvature at the outputs.

    Args:
        loss: as in torch.nn.
        targets: as the loss wants them.
        factor: multiplies the loss (the batch size turns a mean into a sum).
        loss_hvp: ``loss_hvp(outputs, v)`` -> H_L v of the *unscaled* loss; default: its Hessian, analytic for
            cross-entropy, squared error and logistic loss.

    Examples:
        >>> import torch
        >>> half = TargetLoss(torch.nn.MSELoss(), torch.zeros(2), factor=0.5)
        >>> half(torch.tensor([1.0, 3.0])), half.curvature(torch.zeros(2))(torch.ones(2))
        (tensor(2.5000), tensor([0.5000, 0.5000]))
    """

    def __init__(
        self,
        loss: Callable[[Tensor, Any], Tensor],
        targets: Any,
        factor: float = 1.0,
        loss_hvp: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> None:
        self.loss, self.targets, self.factor, self.loss_hvp = loss, targets, factor, loss_hvp

    def __call__(self, outputs: Tensor) -> Tensor:
        """The loss, a scalar."""
        return self.factor * self.loss(outputs, self.targets)

    def curvature(self, outputs: Tensor) -> OutputProduct:
        """v -> H_L v at these outputs; what does not depend on v is computed once."""
        if self.loss_hvp is not None:
            return lambda v: self.factor * self.loss_hvp(outputs, v)
        product = loss_hessian(self.loss, outputs, self.targets)
        return lambda v: self.factor * product(v)
