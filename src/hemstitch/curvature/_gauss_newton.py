"""The Gauss-Newton matrix G = J' H_L J: the curvature of the loss, the network taken as linear in its parameters.

J is the Jacobian of the outputs with respect to the parameters and H_L the Hessian of the loss with respect to the
outputs. G is positive semi-definite wherever H_L is (Schraudolph 2002), which the Hessian of a network is not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal, Protocol

from torch import Tensor, nn

from hemstitch.curvature._double_backward import DoubleBackward
from hemstitch.curvature._dual_forward import DualForward
from hemstitch.curvature._operator import LinearOperator
from hemstitch.curvature._output_curvature import OutputProduct, loss_hessian, slope_and_product
from hemstitch.curvature._parameters import FlatParameters, Vector
from hemstitch.curvature._r_operator import ROperator
from hemstitch.curvature._target_loss import TargetLoss
from hemstitch.errors import MisuseError

EngineName = Literal["double_backward", "r_operator", "dual_forward"]


class Engine(Protocol):
    """Computes J'(H(J v)) for one network and one batch.

    Attributes:
        outputs: of the network, detached.
        layout: the parameters.
    """

    outputs: Tensor
    layout: FlatParameters

    def product(self, v: Vector, output_product: OutputProduct) -> Vector:
        """J' H_L J v, with ``output_product`` for H_L."""
        ...


_ENGINES: dict[str, Callable[[nn.Module, Any, FlatParameters], Engine]] = {
    "double_backward": DoubleBackward.of_model,
    "r_operator": ROperator,
    "dual_forward": DualForward,
}


def make_engine(name: str, model: nn.Module, inputs: Any, params: Iterable[Tensor] | None) -> Engine:
    """The engine called ``name``, for ``params`` (default: all of the model)."""
    if name not in _ENGINES:
        raise MisuseError(f"unknown engine {name!r}: choose one of {', '.join(sorted(_ENGINES))}")
    layout = FlatParameters(model.parameters() if params is None else params)
    return _ENGINES[name](model, inputs, layout)


class JacobianSandwich(LinearOperator):
    """J' H J, with products with J from an engine and with H given: the form of Gauss-Newton and Fisher matrices."""

    def __init__(self, engine: Engine, output_product: OutputProduct) -> None:
        super().__init__(engine.layout)
        self._engine, self._output_product = engine, output_product

    def _product(self, v: Vector) -> Vector:
        return self._engine.product(v, self._output_product)


def gauss_newton(
    model: nn.Module,
    loss: Callable[[Tensor, Any], Tensor],
    inputs: Any,
    targets: Any,
    *,
    engine: EngineName = "double_backward",
    loss_hvp: Callable[[Tensor, Tensor], Tensor] | None = None,
    params: Iterable[Tensor] | None = None,
) -> JacobianSandwich:
    """The Gauss-Newton matrix of ``loss(model(inputs), targets)`` as a linear operator.

    ``A @ v`` takes (n,) or (n, k), flat in the order of ``model.parameters()``. The loss's own reduction is kept: a
    mean loss gives the mean matrix.

    - A tied parameter counts once, an unused or frozen one has zero rows and columns.
    - Dropout draws its mask once, with the current random state, which is left as it was. Batch-norm in train mode
      uses the statistics of ``inputs`` and is differentiated through them; its running statistics do not change.
    - Attention runs under the math kernel, recurrent layers without cuDNN.

    Args:
        model: returns one tensor.
        loss: as in torch.nn, ``loss(outputs, targets)`` -> scalar; its module or functional form. Or a
            :class:`TargetLoss`, and ``None`` for ``targets``.
        inputs: a tensor, a tuple of positional arguments or a mapping of keyword arguments.
        targets: as the loss wants them.
        engine: ``double_backward`` keeps its graph: any model. ``r_operator`` is the fastest, for chains of Linear,
            Conv and pointwise layers. ``dual_forward`` keeps nothing. The products agree to rounding.
        loss_hvp: ``loss_hvp(outputs, v)`` -> H_L v replaces the Hessian of the loss at the outputs (sequence criteria:
            :func:`occupancy_product`); ``loss`` and ``targets`` are not used then.
        params: another choice or order of parameters.

    Raises:
        MisuseError: the engine cannot differentiate the model, or the loss is linear in the outputs.

    Cost of a product, in gradients of the same batch: 4/3 (``r_operator``), about 1.4 (``double_backward``), 2.1
    (``dual_forward``). Memory as stated in each engine's module.

    Examples:
        >>> import torch
        >>> model, loss = torch.nn.Linear(2, 1), torch.nn.MSELoss()
        >>> A = gauss_newton(model, loss, torch.ones(1, 2), torch.zeros(1, 1))
        >>> A @ torch.tensor([1.0, 0.0, 0.0])
        tensor([2., 2., 2.])

    Reference: Schraudolph 2002; paper 3, section 2 (matrix B before damping).
    """
    made = make_engine(engine, model, inputs, params)
    if loss_hvp is not None:
        return JacobianSandwich(made, lambda v: loss_hvp(made.outputs, v))
    if isinstance(loss, TargetLoss):
        return JacobianSandwich(made, loss.curvature(made.outputs))
    return JacobianSandwich(made, loss_hessian(loss, made.outputs, targets))


def gauss_newton_of_outputs(
    outputs: Tensor, loss: Callable[[Tensor], Tensor], params: Iterable[Tensor]
) -> JacobianSandwich:
    """The Gauss-Newton matrix of ``loss(outputs)`` for outputs that were computed under autograd already.

    Args:
        outputs: carry their graph; it is kept as long as the operator lives.
        loss: from outputs to a scalar. Where it has a method ``curvature(outputs)`` that returns v -> H_L v
            (:class:`TargetLoss` has), that is used, else a double backward at the outputs.
        params: the parameters, in order.
    """
    engine = DoubleBackward(outputs, FlatParameters(params))
    curvature = getattr(loss, "curvature", None)
    product = slope_and_product(loss, engine.outputs)[1] if curvature is None else curvature(engine.outputs)
    return JacobianSandwich(engine, product)
