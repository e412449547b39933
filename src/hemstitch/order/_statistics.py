"""Batch-norm statistics at an iterate.

The maps use batch statistics, so running ones follow no trajectory; they are estimated anew where one looks.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from hemstitch.order._maps import Maps, Update, modes_of, set_modes


def has_batch_norm(model: nn.Module) -> bool:
    """Whether some layer may keep running statistics."""
    return any(isinstance(module, _BatchNorm) for module in model.modules())


@torch.no_grad()
def reestimate_statistics(maps: Maps, updates: Collection[Update]) -> None:
    """Set running statistics to their plain average over some batches, at the parameters that are in the model.

    Layers that were frozen in training (eval mode) keep theirs; all else, dropout too, is in eval mode meanwhile. Cost:
    one forward pass a batch.
    """
    if not updates:
        return
    model, modes = maps.model, modes_of(maps.model)
    norms = [module for name, module in model.named_modules()
             if isinstance(module, _BatchNorm) and module.track_running_stats and maps.modes.get(name)]
    momenta = [norm.momentum for norm in norms]
    try:
        model.eval()
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the plain average
            norm.train()
        for update in updates:
            maps.objective(model, maps.batch(update))
        maps.passes.spend(len(updates), 0)
    finally:
        for norm, momentum in zip(norms, momenta):
            norm.momentum = momentum
        set_modes(model, modes)
