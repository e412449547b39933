"""What the optimizers of this package share: declarations, checked options, and state that survives saving and copying.

``torch.optim.Optimizer.load_state_dict`` casts every floating-point state tensor to the type of its parameter, so that
a float32 velocity of a bfloat16 parameter comes back rounded; copying and pickling drop every attribute but ``state``
and ``param_groups``. Both are mended here.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from hemstitch.errors import ConfigError

STATE_VERSION = 1


class UpdateRule(Optimizer):
    """A torch optimizer that declares what it needs.

    Attributes:
        passes_per_step: the most forward-backward passes that one step makes.
        needs_closure: whether ``step()`` without a closure is refused.
        supports_grad_scaler: whether it may be driven by ``torch.amp.GradScaler``.
        refuses_nonfinite: whether gradients with NaN or inf leave parameters and state as they were.
    """

    passes_per_step: ClassVar[int] = 1
    needs_closure: ClassVar[bool] = False
    supports_grad_scaler: ClassVar[bool] = True
    refuses_nonfinite: ClassVar[bool] = True

    def state_dict(self) -> dict[str, Any]:
        """As in torch, with a format version."""
        return super().state_dict() | {"version": STATE_VERSION}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As in torch, but state keeps the type it was saved in."""
        check(state_dict.get("version", STATE_VERSION) <= STATE_VERSION, "this state was saved by a newer version "
              f"({state_dict.get('version')}; this one reads up to {STATE_VERSION}): upgrade hemstitch")
        super().load_state_dict(state_dict)
        keep_types(self, state_dict)

    def __getstate__(self) -> dict[str, Any]:
        """Everything but hooks and whatever schedulers put on the instance, for copying and pickling."""
        return {name: value for name, value in self.__dict__.items()
                if not name.startswith(("_optimizer_", "_zero_grad")) and name not in ("step", "_opt_called")}


def keep_types(optimizer: Optimizer, saved: dict[str, Any]) -> None:
    """Give the state of ``optimizer`` the types it has in ``saved``, from which it was just loaded."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    indexes = [index for group in saved["param_groups"] for index in group["params"]]
    for parameter, index in zip(parameters, indexes, strict=True):
        state = optimizer.state.get(parameter, {})
        for key, value in saved["state"].get(index, {}).items():
            if isinstance(value, Tensor) and state[key].dtype != value.dtype:
                state[key] = value.to(parameter.device, copy=True)


def gradients(optimizer: Optimizer) -> tuple[list[Tensor], list[Tensor]]:
    """The parameters that have a gradient, and their gradients."""
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    return parameters, [p.grad for p in parameters]


def norm(tensors: list[Tensor]) -> Tensor:
    """Euclidean norm of all tensors together, at least in float32 (0-d)."""
    norms = torch._foreach_norm([t if t.dtype.itemsize >= 4 else t.float() for t in tensors])
    return torch.linalg.vector_norm(torch.stack([n.to(norms[0]) for n in norms]))


def check(condition: bool, message: str) -> None:
    """Raise ConfigError unless ``condition`` holds."""
    if not condition:
        raise ConfigError(message)
