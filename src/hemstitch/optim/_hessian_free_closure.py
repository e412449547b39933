"""The closure of a Hessian-free step for the usual case: a model, a loss of torch.nn, and tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from hemstitch.curvature import TargetLoss, gauss_newton
from hemstitch.errors import MisuseError
from hemstitch.optim._hessian_free_passes import RoleClosure


def batch_closure(
    model: nn.Module,
    loss: Callable[[Tensor, Tensor], Tensor],
    inputs: Tensor,
    targets: Tensor,
    *,
    held_out: tuple[Tensor, Tensor] | None = None,
    sample: Callable[[str, int], Tensor] | None = None,
    batch_size: int | None = None,
    engine: str = "double_backward",
) -> RoleClosure:
    """closure(role) -> micro-batches, from one batch or from samples of a data set.

    Without more arguments the batch serves all three roles, as a plain closure would have it: the loss that accepts
    the step is then the one it was fitted to.

    Args:
        model: a module from a tensor to a tensor.
        loss: as in torch.nn with reduction ``mean`` (over the rows) or ``sum``; without the attribute: ``mean``.
        inputs, targets: one row per sample.
        held_out: other data for the role ``evaluate``.
        sample: ``optimizer.sample``: rows for each role, fixed within a step and shared among workers; default: all
            rows.
        batch_size: rows of a micro-batch; default: all at once.
        engine: of the curvature products, see :func:`hemstitch.curvature.gauss_newton`.

    Examples:
        >>> import torch
        >>> from hemstitch.optim import HessianFree
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = HessianFree(model.parameters())
        >>> x = torch.randn(20, 2)
        >>> closure = batch_closure(model, torch.nn.MSELoss(), x, x.sum(1, keepdim=True))
        >>> for _ in range(20):
        ...     _ = optimizer.step(closure)
        >>> optimizer.report().loss_after < 1e-6
        True
    """
    reduction = getattr(loss, "reduction", "mean")
    if reduction not in ("mean", "sum"):
        raise MisuseError(f"the loss needs reduction 'mean' or 'sum', got {reduction!r}")

    def closure(role: str) -> Iterator[tuple[Any, Any, float]]:
        x, y = held_out if role == "evaluate" and held_out is not None else (inputs, targets)
        rows = torch.arange(len(x)) if sample is None else sample(role, len(x))
        for chunk in rows.split(batch_size or max(1, len(rows))):
            if not len(chunk):
                continue
            part = slice(None) if len(chunk) == len(x) and sample is None else chunk.to(x.device)
            summed = TargetLoss(loss, y[part], factor=len(chunk) if reduction == "mean" else 1)
            if role == "curvature" and engine != "double_backward":
                yield gauss_newton(model, summed, x[part], None, engine=engine), None, len(chunk)
            else:
                yield model(x[part]), summed, len(chunk)

    return closure
