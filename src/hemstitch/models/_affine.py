"""Affine maps that are applied step by step, and differentiated all steps at once.

A recurrent layer computes with the weights of its affine maps inside a loop, but their gradient is one product over
the rows of all steps stacked. Its maps stay ordinary modules (``nn.Linear``, `PerElementScale`): whatever replaces
their ``forward`` to change their gradient, as natural gradient does, sees one call a backward pass with the stacked
rows.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PerElementScale(nn.Module):
    """Scale every element by its own parameter: y = v * x. Starts at zero.

    Args:
        size: number of elements.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(size))

    def forward(self, inputs: Tensor) -> Tensor:
        """(..., size) -> (..., size)."""
        return inputs * self.weight

    def extra_repr(self) -> str:
        """Size, for printing."""
        return str(len(self.weight))


def affine_gradients(layer: nn.Module, rows: Tensor, derivatives: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of the parameters of ``layer``, as if it had been applied to ``rows``.

    Args:
        layer: ``nn.Linear`` or `PerElementScale`, possibly with another ``forward`` put on the instance or with hooks.
        rows: (time, batch, input).
        derivatives: of the loss by the layer's outputs, (time, batch, output).

    Returns:
        In the order of ``layer.parameters()``; None for frozen ones. Costs one product where nothing replaced the
        forward, one application of the layer (to (batch, time, input), as everywhere) more where something did.
    """
    parameters = list(layer.parameters())
    trained = [p for p in parameters if p.requires_grad]
    if not trained:
        return (None,) * len(parameters)
    if _is_replaced(layer):
        with torch.enable_grad():
            outputs = layer(rows.transpose(0, 1))
        found = iter(torch.autograd.grad(outputs, trained, derivatives.transpose(0, 1)))
        return tuple(next(found) if p.requires_grad else None for p in parameters)
    rows, derivatives = rows.flatten(0, 1), derivatives.flatten(0, 1)
    if isinstance(layer, PerElementScale):
        return ((rows * derivatives).sum(0),)
    return (derivatives.t() @ rows, derivatives.sum(0))[: len(parameters)]


def _is_replaced(layer: nn.Module) -> bool:
    hooks = (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)
    return "forward" in vars(layer) or any(map(len, hooks))
