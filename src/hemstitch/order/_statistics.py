"""Batch-norm statistics at an iterate.

The maps use batch statistics, so running ones follow no trajectory; they are estimated anew where one looks.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import partial

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from hemstitch.models import reestimate_batch_norm
from hemstitch.order._maps import Maps, Update


def has_batch_norm(model: nn.Module) -> bool:
    """Whether some layer may keep running statistics."""
    return any(isinstance(module, _BatchNorm) for module in model.modules())


def reestimate_statistics(maps: Maps, updates: Collection[Update]) -> None:
    """Set running statistics to their plain average over some batches, at the parameters that are in the model.

    Layers that were frozen in training (eval mode) keep theirs. Cost: one forward pass a batch.
    """
    if not updates:
        return
    model = maps.model
    norms = [module for name, module in model.named_modules()
             if isinstance(module, _BatchNorm) and module.track_running_stats and maps.modes.get(name)]
    passes = (partial(maps.objective, model, maps.batch(update)) for update in updates)
    maps.passes.spend(reestimate_batch_norm(model, passes, norms), 0)
