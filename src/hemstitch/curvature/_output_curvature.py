"""Curvature of a loss with respect to the network's outputs: the matrix H_L in J' H_L J.

With outputs z and a softmax p = softmax(z), a row of cross-entropy has H_L = mass * (diag(p) - p p'), where the mass is
the total weight of the row's targets (class weights, label smoothing and the reduction enter there only). Squared error
has 2 I, logistic loss sigma (1 - sigma). Every other loss is differentiated twice by autograd at the outputs, which
costs nothing against a pass through the network.

The Fisher matrix of the outputs replaces the observed targets by their expectation under the model. For the three
losses above it is the same matrix (their link is canonical); for losses on probabilities it is another one.

A sequence criterion has no usable Hessian at the outputs (MMI's is indefinite). It takes a positive semi-definite
surrogate instead, :func:`occupancy_product`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from hemstitch.curvature._forward import explained
from hemstitch.errors import MisuseError

OutputProduct = Callable[[Tensor], Tensor]
"""v -> H v for v in the shape of the outputs."""

_FUNCTIONS: dict[Callable[..., Tensor], type[nn.Module]] = {
    F.cross_entropy: nn.CrossEntropyLoss,
    F.mse_loss: nn.MSELoss,
    F.binary_cross_entropy: nn.BCELoss,
    F.binary_cross_entropy_with_logits: nn.BCEWithLogitsLoss,
    F.nll_loss: nn.NLLLoss,
}
_TINY = 1e-12


def occupancy_product(
    occupancy: Float[Tensor, "*row label"], v: Float[Tensor, "*row label"], scale: float = 1.0
) -> Float[Tensor, "*row label"]:
    """scale^2 (diag(gamma) - gamma gamma') v, row by row: the curvature of a softmax with probabilities gamma.

    For cross-entropy gamma is the softmax of the outputs. For MMI-type sequence criteria gamma are the denominator
    occupancies of each frame and ``scale`` (kappa) the acoustic scale; for minimum-Bayes-risk criteria use the softmax.
    It is positive semi-definite whenever the rows of gamma are non-negative and sum to at most 1.

    Reference: the Gauss-Newton form of Kingsbury et al. 2012 for sequence training.
    """
    weighted = occupancy * v
    return scale**2 * (weighted - occupancy * weighted.sum(-1, keepdim=True))


def as_loss_module(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The module form of a loss of torch.nn.functional (also as ``functools.partial``); others as they are."""
    options = {}
    function = loss
    if isinstance(loss, partial) and not loss.args:
        function, options = loss.func, loss.keywords
    if function in _FUNCTIONS:
        return _FUNCTIONS[function](**options)
    return loss


def loss_hessian(loss: Callable[..., Tensor], outputs: Tensor, targets: Any) -> OutputProduct:
    """Products with the Hessian of ``loss(outputs, targets)`` with respect to the outputs.

    Analytic for CrossEntropyLoss, MSELoss, BCELoss and BCEWithLogitsLoss with all their options, else by double
    backward on the detached outputs.

    Raises:
        MisuseError: the loss is not a scalar, or is NLLLoss or L1Loss: linear in the outputs, so that the Hessian, and
            with it the Gauss-Newton matrix, is zero.
    """
    loss = as_loss_module(loss)
    analytic = {nn.CrossEntropyLoss: _cross_entropy, nn.MSELoss: _mean_squares,
                nn.BCEWithLogitsLoss: _logistic, nn.BCELoss: _bernoulli}.get(type(loss))
    if type(loss) in (nn.NLLLoss, nn.L1Loss):
        raise MisuseError(f"{type(loss).__name__} is linear in the outputs, so its Gauss-Newton matrix is zero. For "
                          "log-softmaxed outputs use CrossEntropyLoss (the same loss, the curvature of the softmax), "
                          "or use fisher")
    outputs = outputs.detach()
    if analytic is not None:
        return analytic(loss, outputs, targets)
    return slope_and_product(lambda z: loss(z, targets), outputs)[1]


def loss_fisher(loss: Callable[..., Tensor], outputs: Tensor, targets: Any) -> OutputProduct:
    """Products with the Fisher matrix of the outputs: the targets enter only through the weight of each row.

    Raises:
        MisuseError: the loss is not the negative log-likelihood of a known distribution.
    """
    loss = as_loss_module(loss)
    expected = {nn.CrossEntropyLoss: _cross_entropy, nn.MSELoss: _mean_squares, nn.BCEWithLogitsLoss: _logistic,
                nn.BCELoss: _bernoulli_fisher, nn.NLLLoss: _categorical_fisher}.get(type(loss))
    if expected is None:
        raise MisuseError(f"no distribution is known for {loss!r}: use a likelihood of torch.nn, give the products "
                          "with the Fisher matrix of the outputs as loss_hvp, or choose kind='empirical'")
    return expected(loss, outputs.detach(), targets)


def slope_and_product(loss: Callable[[Tensor], Tensor], outputs: Tensor) -> tuple[Tensor, OutputProduct]:
    """The derivative of a scalar function of the outputs, and products with its Hessian by double backward."""
    leaf = outputs.detach().requires_grad_(True)
    with torch.enable_grad():
        value = loss(leaf)
        if value.numel() != 1:
            raise MisuseError(f"the loss must be a scalar, got shape {tuple(value.shape)}: "
                              "use reduction='mean' or 'sum'")
        (slope,) = torch.autograd.grad(value, leaf, create_graph=True)

    def product(v: Tensor) -> Tensor:
        if not slope.requires_grad:                                             # linear
            return torch.zeros_like(v)
        with explained("double_backward"):
            (result,) = torch.autograd.grad(slope, leaf, v, retain_graph=True, materialize_grads=True)
        return result

    return slope.detach(), product


def _reduced(loss: nn.Module, weight: Tensor, count: Tensor | float) -> Tensor:
    """Weights as the loss's reduction scales them."""
    if loss.reduction == "mean":
        return weight / count
    if loss.reduction == "sum":
        return weight
    raise MisuseError(f"the loss must be a scalar: expected reduction 'mean' or 'sum', got {loss.reduction!r}")


def _cross_entropy(loss: nn.CrossEntropyLoss, outputs: Tensor, targets: Tensor) -> OutputProduct:
    axis = 0 if outputs.ndim == 1 else 1
    logits = outputs.movedim(axis, -1)
    mass = _target_mass(loss, logits, targets, axis).unsqueeze(-1)
    probs = logits.softmax(-1)
    return lambda v: (mass * occupancy_product(probs, v.movedim(axis, -1))).movedim(-1, axis)


def _target_mass(loss: nn.CrossEntropyLoss, logits: Tensor, targets: Tensor, axis: int) -> Tensor:
    """Each row's total target weight, as the loss reduces it."""
    num_labels, smoothing = logits.shape[-1], loss.label_smoothing
    weight = logits.new_ones(num_labels) if loss.weight is None else loss.weight.to(logits)
    if targets.is_floating_point():                                                     # class probabilities
        wanted = (1 - smoothing) * targets.movedim(axis, -1) + smoothing / num_labels
        return _reduced(loss, wanted @ weight, logits.numel() // num_labels)
    used = targets != loss.ignore_index
    own = weight[torch.where(used, targets, 0)] * used
    return _reduced(loss, (1 - smoothing) * own + smoothing * weight.mean() * used, own.sum())


def _mean_squares(loss: nn.MSELoss, outputs: Tensor, targets: Tensor) -> OutputProduct:
    scale = _reduced(loss, torch.tensor(2.0, dtype=torch.float64), outputs.numel()).item()
    return lambda v: scale * v


def _logistic(loss: nn.BCEWithLogitsLoss, outputs: Tensor, targets: Tensor) -> OutputProduct:
    probs = outputs.sigmoid()
    mass = torch.ones_like(outputs) if loss.pos_weight is None else 1 + (loss.pos_weight - 1) * targets
    if loss.weight is not None:
        mass = mass * loss.weight
    diagonal = _reduced(loss, mass * probs * (1 - probs), outputs.numel())
    return lambda v: diagonal * v


def _bernoulli(loss: nn.BCELoss, outputs: Tensor, targets: Tensor) -> OutputProduct:
    curvature = targets / outputs.square().clamp_min(_TINY) + (1 - targets) / (1 - outputs).square().clamp_min(_TINY)
    return _weighted(loss, curvature, outputs)


def _bernoulli_fisher(loss: nn.BCELoss, outputs: Tensor, targets: Tensor) -> OutputProduct:
    return _weighted(loss, 1 / (outputs * (1 - outputs)).clamp_min(_TINY), outputs)


def _weighted(loss: nn.BCELoss, curvature: Tensor, outputs: Tensor) -> OutputProduct:
    diagonal = _reduced(loss, curvature if loss.weight is None else curvature * loss.weight, outputs.numel())
    return lambda v: diagonal * v


def _categorical_fisher(loss: nn.NLLLoss, outputs: Tensor, targets: Tensor) -> OutputProduct:
    axis = 0 if outputs.ndim == 1 else 1
    weight = outputs.new_ones(outputs.shape[axis]) if loss.weight is None else loss.weight.to(outputs)
    used = targets != loss.ignore_index
    own = weight[torch.where(used, targets, 0)] * used
    diagonal = _reduced(loss, own, own.sum()).unsqueeze(axis) * outputs.exp()
    return lambda v: diagonal * v
