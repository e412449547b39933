"""Gradients of replicas and steps of a parameter server, as a recipe describes them."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from hemstitch.errors import ConfigError
from hemstitch.optim import SGD
from hemstitch.parallel import Bound, FlatGradient, StepRule
from hemstitch.sampling import BatchSource, ShuffledEpochs
from hemstitch.train._strategies import Batch, Gradient


class ReplicaGradient:
    """Flat parameters and batch -> what is pushed: clipped, and with the decay of the weights.

    Args:
        gradient: network, criterion and precision.
        decay: c in g + c theta.
        clip: largest norm of g; 0: none.
        natural: natural gradient in the layers of the network; kept alive here.
    """

    returns_new_tensors: ClassVar[bool] = True

    def __init__(self, gradient: Gradient, decay: float = 0.0, clip: float = 0.0, natural: Any = None) -> None:
        def loss(model: nn.Module, batch: Batch) -> tuple[Tensor, float]:
            objective = gradient.objective(batch)
            return objective.loss / max(objective.weight, 1.0), objective.weight

        self._flat = FlatGradient(gradient.model, loss)
        self._decay, self._clip, self.natural = decay, clip, natural

    def __call__(self, parameters: Tensor, batch: Batch) -> tuple[Tensor, float, float]:
        """Gradient, mean loss, and samples behind it."""
        gradient, loss, weight = self._flat(parameters, batch)
        if self._clip > 0:
            norm = float(torch.linalg.vector_norm(gradient))
            if norm > self._clip:
                gradient *= self._clip / norm
        if self._decay:
            gradient.add_(parameters.to(gradient.device), alpha=self._decay)
        return gradient, loss, weight


def check_server_can(kind: str, model: nn.Module, source: Any) -> None:
    """Refuse what a server and its replicas cannot do.

    Args:
        kind: of the recipe's [parallel] section, for the message.
        model: its parameters move between them.
        source: its batches are handed out; None: decoders make them.

    Raises:
        ConfigError: batches that depend on those before, or a network that keeps more than parameters.
    """
    by_number = type(source) is BatchSource and isinstance(source.indices, ShuffledEpochs)
    if source is not None and not by_number:
        raise ConfigError(
            f"parallel.kind = {kind!r} hands out batches by number, this data is one stream that carries a state from "
            "batch to batch: use parallel.kind = 'local'"
        )
    if any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in model.modules()):
        raise ConfigError(
            f"parallel.kind = {kind!r} moves parameters only, and batch normalisation keeps running statistics besides "
            "them: set model.norm = 'rms' or 'none'"
        )


def server_rule(optimizer: torch.optim.Optimizer, model: nn.Module) -> StepRule:
    """The steps of a server that are those of an optimizer without a state.

    Raises:
        ConfigError: the optimizer has a state, or layers have learning rates of their own.
    """
    groups = optimizer.param_groups
    if not isinstance(optimizer, SGD | torch.optim.SGD) or any(group["momentum"] for group in groups):
        raise ConfigError(
            "a parameter server takes plain steps, whose state would be of another age for every replica: set "
            "update.kind = 'max-change-sgd' or 'sgd' with update.momentum = 0, and backstitch.scale = 0"
        )
    if len({group["lr"] * group.get("lr_factor", 1.0) for group in groups}) != 1:
        raise ConfigError("a parameter server has one learning rate for all layers")
    lr = groups[0]["lr"] * groups[0].get("lr_factor", 1.0)
    if not isinstance(optimizer, SGD):
        return StepRule(lr)
    return StepRule(lr, groups[0]["global_max_change"], _bounds(groups, model))


def weight_decay(optimizer: torch.optim.Optimizer) -> float:
    """c in the gradient g + c theta, of optimizers that `server_rule` accepts."""
    group = optimizer.param_groups[0]
    return 2 * group["l2"] * group["num_sequences"] if isinstance(optimizer, SGD) else group.get("weight_decay", 0.0)


def _bounds(groups: list[dict[str, Any]], model: nn.Module) -> tuple[Bound, ...]:
    """The bound of each group, as a slice of the flat parameters."""
    place, starts = 0, {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            starts[id(parameter)] = place
            place += parameter.numel()
    bounds = []
    for group in groups:
        trained = [p for p in group["params"] if id(p) in starts]
        if trained:
            start = min(starts[id(p)] for p in trained)
            bounds.append(Bound(start, start + sum(p.numel() for p in trained), group["max_change"]))
    return tuple(sorted(bounds, key=lambda bound: bound.start))
