"""The Hessian of the loss with respect to the parameters: indefinite for a network, exact for the bracket of two steps.

H = G + sum_k (d loss / d z_k) (d^2 z_k / d theta^2): the Gauss-Newton matrix and the curvature of the network itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from hemstitch.curvature._dual_forward import DualForward
from hemstitch.curvature._forward import check_twice_differentiable, explained, run_frozen
from hemstitch.curvature._operator import LinearOperator
from hemstitch.curvature._output_curvature import slope_and_product
from hemstitch.curvature._parameters import FlatParameters, Vector
from hemstitch.errors import MisuseError


class CachedHessian(LinearOperator):
    """Products by a backward pass through the kept graph of the gradient (Pearlmutter 1994).

    Args:
        loss: a scalar with its graph.
        layout: the parameters.
    """

    def __init__(self, loss: Tensor, layout: FlatParameters) -> None:
        super().__init__(layout)
        if loss.numel() != 1 or not loss.requires_grad:
            raise MisuseError("the loss must be a scalar that depends on a parameter, got shape "
                              f"{tuple(loss.shape)}, requires_grad={loss.requires_grad}")
        with explained("double_backward"):
            slopes = torch.autograd.grad(loss, layout.trainable_params, create_graph=True, allow_unused=True)
        self._used = [k for k, slope in enumerate(slopes) if slope is not None and slope.requires_grad]
        self._slopes = [slopes[k] for k in self._used]
        check_twice_differentiable("double_backward", self._slopes)

    def _product(self, v: Vector) -> Vector:
        if not self._slopes:
            return torch.zeros_like(v)                                      # the loss is linear in the parameters
        parts = self.layout.split_trainable(v)
        with explained("double_backward"):
            rows = torch.autograd.grad(self._slopes, self.layout.trainable_params, [parts[k] for k in self._used],
                                       retain_graph=True, allow_unused=True)
        return self.layout.flatten_trainable(rows)


class DualHessian(LinearOperator):
    """Products as the tangent of the gradient on dual numbers (forward over reverse); keeps nothing.

    The loss itself is differentiated twice at the outputs, so that only the network needs a forward mode.
    """

    def __init__(self, passes: DualForward, loss: Callable[[Tensor], Tensor]) -> None:
        super().__init__(passes.layout)
        self._passes = passes
        self._slope, self._output_product = slope_and_product(loss, passes.outputs)

    def _product(self, v: Vector) -> Vector:
        with explained("dual_forward"), forward_ad.dual_level():
            outputs = self._passes.run(v)
            pushed = forward_ad.unpack_dual(outputs).tangent
            pushed = torch.zeros_like(self._slope) if pushed is None else self._output_product(pushed.detach())
            slopes = torch.autograd.grad(outputs, self.layout.trainable_params,
                                         forward_ad.make_dual(self._slope, pushed), allow_unused=True)
            tangents = [None if slope is None else forward_ad.unpack_dual(slope).tangent for slope in slopes]
        return self.layout.flatten_trainable(tangents)


def hessian(
    model: nn.Module,
    loss: Callable[[Tensor, Any], Tensor],
    inputs: Any,
    targets: Any,
    *,
    engine: Literal["double_backward", "dual_forward"] = "double_backward",
    params: Iterable[Tensor] | None = None,
) -> LinearOperator:
    """The Hessian of ``loss(model(inputs), targets)`` as a linear operator.

    Order, shapes, tied, unused and frozen parameters, dropout, batch-norm and attention as in :func:`gauss_newton`.

    Args:
        model, loss, inputs, targets, params: as there.
        engine: ``double_backward`` keeps the graph of the gradient; ``dual_forward`` keeps nothing.

    Cost of a product: about 2 gradients, either way.

    Reference: Pearlmutter 1994.
    """
    layout = FlatParameters(model.parameters() if params is None else params)
    if engine == "double_backward":
        return CachedHessian(loss(run_frozen(model, inputs), targets), layout)
    if engine == "dual_forward":
        return DualHessian(DualForward(model, inputs, layout), lambda outputs: loss(outputs, targets))
    raise MisuseError(f"engine {engine!r} has no Hessian: choose 'double_backward' or 'dual_forward' "
                      "(the R-operator here is for Gauss-Newton and Fisher matrices)")
