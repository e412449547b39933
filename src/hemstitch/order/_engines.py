"""Many trajectories at once: how one batch moves a whole stack of parameter vectors.

Backward trajectory k applies T_k, ..., T_1, so batch j is due in every trajectory k >= j: with the trajectories
stacked, all n of them cost n sequential steps, not n^2 / 2. An engine takes such a step for plain gradient descent

    theta_k := (1 - h w) theta_k - h grad L_j(theta_k)        h learning rate, w weight decay, for all k in the stack.

``FusedEngine`` (in ``_fused``) knows chains of Linear layers and activations, and writes the products by hand;
:class:`VmapEngine` takes any model that ``torch.func.vmap`` takes. An engine that cannot serve raises :class:`Refused`.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from hemstitch.order._objective import Objective, Parameters, device_of, seeded, trainable

Rates = dict[str, tuple[float, float]]
"""Learning rate and weight decay of each parameter that moves."""


class Refused(Exception):
    """An engine cannot serve this model; the message says why."""


class _Bound(nn.Module):
    """The objective as a module's forward, so that ``functional_call`` reaches the model inside."""

    def __init__(self, model: nn.Module, objective: Objective):
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, batch: Any) -> Tensor:
        return self.objective(self.model, batch)


def _places(model: nn.Module) -> dict[str, str]:
    """Every place in the model that holds a trainable parameter -> the parameter's name.

    A shared module counts once: ``functional_call`` ties its places itself, but leaves such a module changed.
    """
    names = {id(p): name for name, p in trainable(model).items()}
    return {f"{prefix}.{key}" if prefix else key: names[id(p)] for prefix, module in model.named_modules()
            for key, p in module.named_parameters(recurse=False, remove_duplicate=False) if id(p) in names}


def _with_batch_statistics(model: nn.Module) -> nn.Module:
    """The model, or a copy whose training batch-norms keep no running statistics (in-place updates stop vmap)."""
    if not any(isinstance(m, _BatchNorm) and m.training for m in model.modules()):
        return model
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, _BatchNorm) and module.training:
            module.running_mean = module.running_var = module.num_batches_tracked = None
            module.track_running_stats = False
    return model


class VmapEngine:
    """Gradients of all trajectories by ``torch.func.vmap``: up to 2.5 times the loop's speed on small networks.

    Randomness is drawn once a batch for all trajectories, from the batch's seed, as the loop draws it.
    """

    name = "vmap"
    cpu_budget = 64 * 2**20  # bytes; vmap has a high cost per call, many trajectories share it

    def __init__(self, model: nn.Module, objective: Objective, batch: Any):
        del batch
        self._device = device_of(model)
        self._bound = _Bound(_with_batch_statistics(model), objective)
        self._names = list(trainable(model))
        self._places = _places(model)

    @staticmethod
    def pays(model: nn.Module) -> bool:
        """Whether it beats the loop: on a CPU, where calls rather than products take the time (measured)."""
        is_small = sum(p.numel() for p in model.parameters()) <= 100_000
        return device_of(model).type != "cpu" or (is_small and not any(isinstance(m, _ConvNd) for m in model.modules()))

    def bytes_per_trajectory(self, stack: Parameters) -> int:
        """Parameters, their gradients and as much again for intermediate results."""
        return 3 * sum(p.nbytes for p in stack.values())

    def stack(self, starts: Sequence[Parameters]) -> Parameters:
        """Stack the trainable parameters: {name: (trajectory, *shape)}."""
        return {name: torch.stack([start[name] for start in starts]) for name in self._names}

    def unstack(self, stack: Parameters, index: int) -> Parameters:
        """The parameters of one trajectory, as their own memory."""
        return {name: value[index].clone() for name, value in stack.items()}

    def step(self, stack: Parameters, batch: Any, rates: Rates, seed: int) -> None:
        """Apply the map of ``batch`` to every trajectory of ``stack``, in place."""
        def loss(parameters: Parameters) -> Tensor:
            placed = {f"model.{place}": parameters[name] for place, name in self._places.items()}
            return functional_call(self._bound, placed, (batch,), tie_weights=False)

        with seeded(seed, self._device):
            gradients = vmap(grad(loss), randomness="same")(stack)
        for name, (lr, decay) in rates.items():
            if decay:
                stack[name].mul_(1 - lr * decay)
            stack[name].sub_(gradients[name], alpha=lr)
