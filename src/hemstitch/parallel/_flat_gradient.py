"""A network's gradient as a function of flat parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from hemstitch.errors import MisuseError
from hemstitch.parallel._bounded_step import Bound

Loss = Callable[[nn.Module, Any], tuple[Tensor, float]]


class FlatGradient:
    """The gradient function of a model, for replicas whose parameters are flat vectors.

        gradient = FlatGradient(model, lambda model, batch: (loss(model(batch[0]), batch[1]), len(batch[0])))
        gradient(theta, batch)                              # flat gradient, loss, weight

    The model is a tool here: its parameters are overwritten at each call. Frozen ones are no part of the vector.

    Args:
        model: the network; hooks that change its gradients, such as natural gradient, act as usual.
        loss: (model, batch) -> (loss to differentiate, number of samples).

    Attributes:
        parameters: (parameter,) the model's parameters now, flat, in the order of ``model.parameters()``.

    Cost: forward and backward, and two passes over the parameters.
    """

    returns_new_tensors: ClassVar[bool] = True      # a caller may overwrite the gradients

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        self.model, self.loss = model, loss
        self._trained = [p for p in model.parameters() if p.requires_grad]
        if len({(p.dtype, p.device) for p in self._trained}) != 1:
            raise MisuseError("the trained parameters must exist and have one type and device: "
                              f"{sorted({str(p.dtype) for p in self._trained})}")

    @property
    def parameters(self) -> Tensor:
        """A copy of the model's parameters, flat."""
        return torch.cat([p.detach().reshape(-1) for p in self._trained])

    @torch.no_grad()
    def load(self, parameters: Tensor) -> nn.Module:
        """Put flat parameters into the model and return it."""
        pieces = parameters.split([p.numel() for p in self._trained])
        torch._foreach_copy_(self._trained, [piece.view_as(p) for piece, p in zip(pieces, self._trained, strict=True)])
        return self.model

    def components(self, max_change: float, overrides: dict[str, float] | None = None) -> tuple[Bound, ...]:
        """One `Bound` per layer (weights and bias together), for `StepRule`.

        Args:
            max_change: of each layer.
            overrides: by name of the layer.
        """
        bounds: list[Bound] = []
        layers: list[str] = []
        place = 0
        for name, p in self.model.named_parameters():
            if not p.requires_grad:
                continue
            layer = name.rpartition(".")[0]
            start = place if not layers or layers[-1] != layer else bounds.pop().start
            layers.append(layer)
            place += p.numel()
            bounds.append(Bound(start, place, (overrides or {}).get(layer, max_change)))
        return tuple(bounds)

    def __call__(self, parameters: Tensor, batch: Any) -> tuple[Tensor, float, float]:
        """Flat gradient of the loss at ``parameters``, the loss, and its weight."""
        self.load(parameters)
        for p in self._trained:
            p.grad = None
        with torch.enable_grad():
            loss, weight = self.loss(self.model, batch)
            loss.backward()
        gradient = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in self._trained])
        return gradient, float(loss.detach()), float(weight)
