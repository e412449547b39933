"""Moving by any multiple of the step that an optimizer proposes: what two-pass methods are made of.

`SGD` can do this by itself (``SGD.move``). For other torch optimizers:

- The step of torch's own ones is proportional to the learning rate, given their state, which does not depend on it: a
  multiple of the step is a step with that multiple of the learning rate, which may be negative.
- For any other the step is found by making it, and the parameters are then moved along it by the difference.

With ``commit=False`` the step is made on throw-away state, so that momentum and second moments see each batch once.
Weight decay belongs to a whole step, not to a multiple of it: ``decay`` is its share in this move. How it gets there:

- decoupled decay (AdamW): by scaling ``weight_decay``. Exact, as it does not touch the state;
- decay added to the gradient (torch's SGD, Adam): the move is made on throw-away state with the scaled decay, and the
  state advanced with the whole decay. Scaling it for both would leave a fraction of the decay in the momentum for all
  later steps: with momentum 0.9 and backstitch scale 1, 45 % of it would be lost.

Cost: one copy of the state where it is thrown away, except for SGD and Adam(W) on a CPU (see `_displacements`); two of
the parameters where the step is not proportional.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, optim
from torch.optim import Optimizer

from hemstitch.errors import MisuseError
from hemstitch.optim._displacements import Room, displace
from hemstitch.optim._update_rule import gradients, norm

_PROPORTIONAL = (optim.SGD, optim.Adam, optim.AdamW, optim.Adamax, optim.NAdam, optim.RAdam, optim.Adagrad,
                 optim.RMSprop, optim.Adadelta)


class Mover(Protocol):
    """An optimizer that can move by any multiple of its step; see ``SGD.move``."""

    def move(self, scale: float = 1.0, *, decay: float = 1.0, commit: bool = True) -> bool:
        """Whether the parameters moved."""


class Scratch:
    """Copies of tensors, into memory that is kept for the next time; not copied or pickled itself."""

    def __init__(self) -> None:
        self._kept: dict[Any, Tensor] = {}

    def copy(self, tensors: dict[Any, Tensor]) -> list[Tensor]:
        """Copies of ``tensors``, valid until the next copy under the same keys."""
        for key, tensor in tensors.items():
            kept = self._kept.get(key)
            if kept is None or kept.shape != tensor.shape or kept.dtype != tensor.dtype or kept.device != tensor.device:
                self._kept[key] = torch.empty_like(tensor, requires_grad=False)
        copies = [self._kept[key] for key in tensors]
        if copies:
            torch._foreach_copy_(copies, [tensor.detach() for tensor in tensors.values()])
        return copies

    def __reduce__(self) -> tuple[type[Scratch], tuple[()]]:
        return Scratch, ()


class TorchMover:
    """Multiples of the step of any torch optimizer that works without a closure."""

    def __init__(self, optimizer: Optimizer) -> None:
        if isinstance(optimizer, optim.LBFGS) or getattr(optimizer, "needs_closure", False):
            raise MisuseError(f"{type(optimizer).__name__} evaluates the loss by itself; two-pass methods need an "
                              "optimizer that steps from gradients alone")
        if getattr(optimizer, "passes_per_step", 1) > 1:
            raise MisuseError(f"{type(optimizer).__name__} makes two passes already")
        self.optimizer = optimizer
        self._scratch, self._room = Scratch(), Room()

    @torch.no_grad()
    def move(self, scale: float = 1.0, *, decay: float = 1.0, commit: bool = True) -> bool:
        """Move by ``scale`` times the optimizer's step; refuses gradients that are not finite."""
        parameters, grads = gradients(self.optimizer)
        if not parameters:
            return True
        if not torch.isfinite(norm(grads)):
            return False
        if commit and (decay == 1 or self._decay_is_harmless()):
            self._step(parameters, scale, decay)
            return True
        if not commit and displace(self.optimizer, scale, decay, self._room):
            return True
        old = self._copied_state(parameters)
        if commit:
            self._step(parameters, 0.0, 1.0)
        with self._state(parameters, old):
            self._step(parameters, scale, decay)
        return True

    def _step(self, parameters: list[Tensor], scale: float, decay: float) -> None:
        """The optimizer's step times ``scale``, on whatever state it has now."""
        with self._scaled("weight_decay", decay):
            if scale == 1:
                self.optimizer.step()
            elif type(self.optimizer) in _PROPORTIONAL:
                with self._scaled("lr", scale):
                    self.optimizer.step()
            else:
                origin = self._scratch.copy(dict(enumerate(parameters)))
                self.optimizer.step()
                torch._foreach_lerp_(parameters, origin, 1.0 - scale)

    def _decay_is_harmless(self) -> bool:
        """Whether a scaled decay leaves the state as a whole one would."""
        decoupled = isinstance(self.optimizer, optim.AdamW)
        return all(not group.get("weight_decay") or decoupled or group.get("decoupled_weight_decay")
                   for group in self.optimizer.param_groups)

    @contextmanager
    def _scaled(self, option: str, factor: float) -> Iterator[None]:
        """An option of all groups times ``factor`` within."""
        groups = [group for group in self.optimizer.param_groups if option in group and factor != 1]
        before = [group[option] for group in groups]
        try:
            for group, whole in zip(groups, before, strict=True):
                group[option] = factor * whole
            yield
        finally:
            for group, whole in zip(groups, before, strict=True):
                group[option] = whole

    def _copied_state(self, parameters: list[Tensor]) -> dict[Tensor, dict[str, Any]]:
        """The state, to be run on and thrown away."""
        state = {p: self.optimizer.state[p] for p in parameters if p in self.optimizer.state}
        tensors = {(p, key): value for p, own in state.items() for key, value in own.items()
                   if isinstance(value, Tensor)}
        copies = dict(zip(tensors, self._scratch.copy(tensors), strict=True))
        return {p: {key: copies[p, key] if (p, key) in copies else copy.deepcopy(value) for key, value in own.items()}
                for p, own in state.items()}

    @contextmanager
    def _state(self, parameters: list[Tensor], other: dict[Tensor, dict[str, Any]]) -> Iterator[None]:
        """Run on another state within."""
        state = self.optimizer.state
        before = {p: state.pop(p) for p in parameters if p in state}
        state.update(other)
        try:
            yield
        finally:
            for p in parameters:
                state.pop(p, None)
            state.update(before)
