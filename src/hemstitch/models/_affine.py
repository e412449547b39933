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
        rows: (row, input).
        derivatives: of the loss by the layer's outputs, (row, output).

    Returns:
        In the order of ``layer.parameters()``; None for frozen ones. Costs one product where nothing replaced the
        forward, one application of the layer more where something did.
    """
    if not _is_replaced(layer):
        if isinstance(layer, PerElementScale):
            return ((rows * derivatives).sum(0),)
        weight = derivatives.t() @ rows
        return (weight,) if layer.bias is None else (weight, derivatives.sum(0))
    parameters = list(layer.parameters())
    with torch.enable_grad():
        found = iter(torch.autograd.grad(layer(rows), [p for p in parameters if p.requires_grad], derivatives))
    return tuple(next(found) if p.requires_grad else None for p in parameters)


def has_own_gradient(layer: nn.Module) -> bool:
    """Whether another ``forward`` was put on the instance, as natural gradient does."""
    return "forward" in vars(layer)


def _is_replaced(layer: nn.Module) -> bool:
    hooks = (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)
    return any(p.requires_grad for p in layer.parameters()) and (has_own_gradient(layer) or any(map(len, hooks)))
