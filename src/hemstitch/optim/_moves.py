"""Moving by any multiple of the step that an optimizer proposes: what two-pass methods are made of.

`SGD` can do this by itself (``SGD.move``). For any other torch optimizer the proposed step is found by running it:

    displacement = step of the optimizer from theta       theta += scale * displacement

With ``commit=False`` it runs on throw-away state, so that momentum and second moments see each batch once. Weight
decay belongs to a whole step, not to a multiple of it: ``decay`` is the share of it in this displacement. How it gets
there:

- decoupled decay (AdamW): by scaling ``weight_decay`` for the run. Exact, as it does not touch the state;
- decay added to the gradient (torch's SGD, Adam): the displacement is found on throw-away state with the scaled
  decay, then the state is advanced with the whole decay. Scaling it in one run would leave a fraction of the decay in
  the momentum for all later steps: with momentum 0.9 and backstitch scale 1, 45 % of it would be lost.

Cost, beside the optimizer's own step: two copies of the parameters, one of the state where it is thrown away.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer

from hemstitch.errors import MisuseError
from hemstitch.optim._update_rule import gradients, norm


class Mover(Protocol):
    """An optimizer that can move by any multiple of its step; see ``SGD.move``."""

    def move(self, scale: float = 1.0, *, decay: float = 1.0, commit: bool = True) -> bool:
        """Whether the parameters moved."""


class TorchMover:
    """Multiples of the step of any torch optimizer that works without a closure."""

    def __init__(self, optimizer: Optimizer) -> None:
        if isinstance(optimizer, torch.optim.LBFGS) or getattr(optimizer, "needs_closure", False):
            raise MisuseError(f"{type(optimizer).__name__} evaluates the loss by itself; two-pass methods need an "
                              "optimizer that steps from gradients alone")
        if getattr(optimizer, "passes_per_step", 1) > 1:
            raise MisuseError(f"{type(optimizer).__name__} makes two passes already")
        self.optimizer = optimizer

    @torch.no_grad()
    def move(self, scale: float = 1.0, *, decay: float = 1.0, commit: bool = True) -> bool:
        """Move by ``scale`` times the optimizer's step; refuses gradients that are not finite."""
        parameters, grads = gradients(self.optimizer)
        if not parameters:
            return True
        if not torch.isfinite(norm(grads)):
            return False
        if scale == decay == 1 and commit:
            self.optimizer.step()
            return True
        origin = [p.clone() for p in parameters]
        if commit and (decay == 1 or self._decay_is_harmless()):
            with self._decayed(decay):
                self.optimizer.step()
        else:
            with self._decayed(decay), self._throw_away_state(parameters):
                self.optimizer.step()
            if commit:
                target = [p.clone() for p in parameters]
                torch._foreach_copy_(parameters, origin)
                self.optimizer.step()
                torch._foreach_copy_(parameters, target)
        torch._foreach_lerp_(parameters, origin, 1.0 - scale)
        return True

    def _decay_is_harmless(self) -> bool:
        """Whether a scaled decay leaves the state as a whole one would."""
        decoupled = isinstance(self.optimizer, torch.optim.AdamW)
        return all(not group.get("weight_decay") or decoupled or group.get("decoupled_weight_decay")
                   for group in self.optimizer.param_groups)

    @contextmanager
    def _decayed(self, factor: float) -> Iterator[None]:
        """Weight decay times ``factor`` within."""
        groups = [group for group in self.optimizer.param_groups if group.get("weight_decay")]
        before = [group["weight_decay"] for group in groups]
        try:
            for group, whole in zip(groups, before, strict=True):
                group["weight_decay"] = factor * whole
            yield
        finally:
            for group, whole in zip(groups, before, strict=True):
                group["weight_decay"] = whole

    @contextmanager
    def _throw_away_state(self, parameters: list[Tensor]) -> Iterator[None]:
        """The state as before, afterwards."""
        state: dict[Tensor, Any] = self.optimizer.state
        before = {p: state[p] for p in parameters if p in state}
        try:
            for p, kept in before.items():
                state[p] = copy.deepcopy(kept)
            yield
        finally:
            for p in parameters:
                if p in before:
                    state[p] = before[p]
                else:
                    state.pop(p, None)
