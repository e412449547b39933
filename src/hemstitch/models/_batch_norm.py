"""Running statistics of batch-norm at parameters that no training step has visited: averages, backward iterates."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def batch_norms(model: nn.Module) -> list[nn.Module]:
    """The batch-norm layers that keep running statistics."""
    return [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]


@torch.no_grad()
def reestimate_batch_norm(
    model: nn.Module, passes: Iterable[Callable[[], Any]], norms: Sequence[nn.Module] | None = None
) -> int:
    """Set running statistics to their plain average over some forward passes; returns how many there were.

    Everything else, dropout too, is in eval mode meanwhile, and each module is put back into its mode.

    Args:
        model: holds the parameters at which the statistics are wanted.
        passes: each sends a batch through the model.
        norms: the layers to estimate; ``None``: all that keep statistics. With none, nothing is done.

    Cost: one forward pass a batch.
    """
    norms = batch_norms(model) if norms is None else norms
    if not norms:
        return 0
    modes = {module: module.training for module in model.modules()}
    momenta = [norm.momentum for norm in norms]
    num_passes = 0
    try:
        model.eval()
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the plain average
            norm.train()
        for forward in passes:
            forward()
            num_passes += 1
    finally:
        for norm, momentum in zip(norms, momenta):
            norm.momentum = momentum
        for module, mode in modes.items():
            module.training = mode
    return num_passes
