"""The Fisher matrix: the expected outer product of gradients of the log-likelihood.

*Exact*: the expectation over targets drawn from the model, F = J' F_L J with F_L in closed form. For softmax with
cross-entropy, squared error (Gaussian of variance 1/2) and logistic loss it equals the Gauss-Newton matrix.
*Empirical*: the targets are the observed ones, F = sum_n g_n g_n' over examples; it is no curvature (it vanishes with
the gradients), but needs no distribution.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hemstitch.curvature._gauss_newton import EngineName, JacobianSandwich, make_engine
from hemstitch.curvature._output_curvature import OutputProduct, as_loss_module, loss_fisher
from hemstitch.errors import MisuseError


def fisher(
    model: nn.Module,
    loss: Callable[[Tensor, Any], Tensor],
    inputs: Any,
    targets: Any,
    *,
    kind: Literal["exact", "empirical"] = "exact",
    engine: EngineName = "double_backward",
    loss_hvp: Callable[[Tensor, Tensor], Tensor] | None = None,
    params: Iterable[Tensor] | None = None,
) -> JacobianSandwich:
    """The Fisher matrix of a model whose loss is a negative log-likelihood, as a linear operator.

    Exact: F = J' F_L J. Empirical: F = sum_n g_n g_n' for a summed loss, (1/N) sum_n g_n g_n' for a mean one, g_n the
    gradient of example n (entry n of the first axis; a mean loss is the mean of the examples' losses).

    Args:
        model, inputs, targets, engine, params: as in :func:`gauss_newton`.
        loss: exact: CrossEntropyLoss, MSELoss, BCELoss, BCEWithLogitsLoss, NLLLoss (module or functional form), the
            weights and reduction of which are kept. Empirical: any loss with an attribute ``reduction``.
        kind: ``exact`` or ``empirical``.
        loss_hvp: ``loss_hvp(outputs, v)`` -> F_L v, for other distributions.

    Raises:
        MisuseError: the loss has no known distribution (exact) or no known reduction (empirical).

    Reference: paper 3, section 3.1.2 uses the empirical matrix's diagonal; see :func:`fisher_diagonal`.
    """
    made = make_engine(engine, model, inputs, params)
    if loss_hvp is not None:
        return JacobianSandwich(made, lambda v: loss_hvp(made.outputs, v))
    if kind == "exact":
        return JacobianSandwich(made, loss_fisher(loss, made.outputs, targets))
    if kind == "empirical":
        return JacobianSandwich(made, _outer_product(loss, made.outputs, targets))
    raise MisuseError(f"unknown kind {kind!r} of Fisher matrix: choose 'exact' or 'empirical'")


def _outer_product(loss: Callable[[Tensor, Any], Tensor], outputs: Tensor, targets: Any) -> OutputProduct:
    """v_n -> r_n (r_n' v_n) for each example n, r the derivative of the loss at the outputs."""
    reduction = getattr(as_loss_module(loss), "reduction", None)
    if reduction not in ("mean", "sum"):
        raise MisuseError("the empirical Fisher matrix needs a loss with reduction 'mean' or 'sum', got "
                          f"{reduction!r}: set the attribute `reduction` on the loss")
    leaf = outputs.detach().requires_grad_(True)
    with torch.enable_grad():
        (slope,) = torch.autograd.grad(loss(leaf, targets), leaf)
    rows = slope.flatten(1)
    scale = rows.shape[0] if reduction == "mean" else 1                     # undoes 1/N once of its two times

    def product(v: Tensor) -> Tensor:
        return (scale * rows * (rows * v.flatten(1)).sum(1, keepdim=True)).view_as(outputs)

    return product
