"""What becomes of the state of optimizers and natural gradients when parameters are averaged."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

from torch import Tensor
from torch.optim import Optimizer

from hemstitch.errors import ConfigError

StatePolicy = Literal["local", "averaged", "reset"]


class Stateful(Protocol):
    """An optimizer, a natural gradient, anything whose state is a nest of tensors."""

    def state_dict(self) -> Mapping[str, Any]:
        """The state."""

    def load_state_dict(self, state: Any) -> None:
        """Restore it."""


class WorkerState:
    """The state of some objects under one policy.

    Args:
        owners: the objects.
        policy: ``local``: left alone; ``averaged``: floating-point tensors are averaged; ``reset``: back to the state
            of now (of an optimizer: no state, while its options, such as the learning rate, stay).
    """

    def __init__(self, owners: Sequence[Stateful], policy: StatePolicy) -> None:
        if policy not in ("local", "averaged", "reset"):
            raise ConfigError(f"state must be local, averaged or reset, got {policy!r}")
        self.owners, self.policy = tuple(owners), policy
        self._initial = [copy.deepcopy(_state_of(owner)) for owner in self.owners] if policy == "reset" else []
        self._taken: list[Any] = []

    def tensors(self) -> list[Tensor]:
        """What is to be averaged in place; an optimizer's own tensors, copies or not of the others'."""
        if self.policy != "averaged":
            return []
        self._taken = [_state_of(owner) for owner in self.owners]
        return [tensor for state in self._taken for tensor in _tensors(state)]

    def commit(self, averaged: bool) -> None:
        """After the average of the parameters; ``averaged``: whether the tensors taken were averaged as well."""
        for owner, initial in zip(self.owners, self._initial, strict=False):
            if isinstance(owner, Optimizer):
                owner.state.clear()
            else:
                owner.load_state_dict(copy.deepcopy(initial))
        for owner, state in zip(self.owners, self._taken if averaged else (), strict=False):
            if not isinstance(owner, Optimizer):
                owner.load_state_dict(state)


def _state_of(owner: Stateful) -> Any:
    """Its state; of an optimizer by parameter, without the options and without copies."""
    return [owner.state[p] for group in owner.param_groups for p in group["params"] if p in owner.state] if isinstance(
        owner, Optimizer) else owner.state_dict()


def _tensors(state: Any) -> list[Tensor]:
    """The floating-point tensors of a nest of dicts, lists and tuples, in its order."""
    if isinstance(state, Tensor):
        return [state] if state.is_floating_point() else []
    items = state.values() if isinstance(state, Mapping) else state if isinstance(state, list | tuple) else ()
    return [tensor for item in items for tensor in _tensors(item)]
