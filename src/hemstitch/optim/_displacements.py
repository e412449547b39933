"""Steps of torch's SGD and Adam(W) from state that is only read: it need not be copied to be thrown away.

With gradient g, step count t of this step, and everything proportional to the learning rate:

    SGD        m b + (1 - dampening) g;  Nesterov: m^2 b + (1 + m) g;  g alone while there is no b
    Adam(W)    (b1 a + (1 - b1) g) / (1 - b1^t)  over  sqrt((b2 v + (1 - b2) g^2) / (1 - b2^t)) + eps

Twins of ``optimizer.step()`` on a copy of the state, which the tests compare them with. On a CPU the copy would cost
more than the step; elsewhere torch's own kernels over all tensors at once are the better choice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, optim
from torch.optim import Optimizer

State = Mapping[str, Any]


class Room:
    """Memory for two tensors of any one shape, kept for the next time; small enough to stay in a cache."""

    def __init__(self) -> None:
        self._kept = torch.empty(2, 0)

    def like(self, tensor: Tensor) -> tuple[Tensor, Tensor]:
        """Two tensors of the shape and type of ``tensor``, with anything in them."""
        if self._kept.dtype != tensor.dtype or self._kept.shape[1] < tensor.numel():
            self._kept = torch.empty(2, tensor.numel(), dtype=tensor.dtype)
        one, two = self._kept[:, : tensor.numel()].unbind()
        return one.view(tensor.shape), two.view(tensor.shape)

    def __reduce__(self) -> tuple[type[Room], tuple[()]]:
        return Room, ()


def displace(optimizer: Optimizer, scale: float, decay: float, room: Room) -> bool:
    """Move the parameters by ``scale`` times the step that the optimizer would make, and leave its state alone.

    Args:
        optimizer: any.
        scale: may be negative.
        decay: share of the weight decay in this move.
        room: for intermediate results.

    Returns:
        Whether it was done: with another optimizer, device or option than those known here nothing has changed.
    """
    rule = _RULES.get(type(optimizer))
    known = [(p, optimizer.state.get(p, {}), group) for group in optimizer.param_groups for p in group["params"]
             if p.grad is not None]
    if rule is None or not all(_is_plain(p, state, group, decay) for p, state, group in known):
        return False
    for p, state, group in known:
        rule(p, state, group, -scale * float(group["lr"]), room)
    return True


def _is_plain(p: Tensor, state: State, group: State, decay: float) -> bool:
    ready = "exp_avg" in state or "betas" not in group
    odd = any(group.get(option) for option in ("maximize", "amsgrad", "capturable", "differentiable"))
    dense = p.device.type == "cpu" and p.grad.layout == torch.strided and not p.is_complex()
    return ready and dense and not odd and not group["weight_decay"] * decay


def _sgd(p: Tensor, state: State, group: State, rate: float, _: Room) -> None:
    momentum, buffer = group["momentum"], state.get("momentum_buffer")
    share = 1.0 if buffer is None else 1.0 - group["dampening"]
    if group["nesterov"]:  # whose dampening is 0
        share, momentum = 1.0 + momentum, momentum * momentum
    if buffer is not None:
        p.add_(buffer, alpha=rate * momentum)
    p.add_(p.grad, alpha=rate * share)


def _adam(p: Tensor, state: State, group: State, rate: float, room: Room) -> None:
    beta1, beta2 = map(float, group["betas"])
    step = float(state["step"]) + 1
    correction = math.sqrt(1 - beta2**step)  # taken out of the root, into eps and the rate
    mean, root = room.like(p)
    torch.lerp(state["exp_avg"], p.grad, 1 - beta1, out=mean)
    torch.mul(state["exp_avg_sq"], beta2, out=root).addcmul_(p.grad, p.grad, value=1 - beta2).sqrt_()
    p.addcdiv_(mean, root.add_(group["eps"] * correction), value=rate * correction / (1 - beta1**step))


_RULES: Mapping[type, Callable[..., None]] = {optim.SGD: _sgd, optim.Adam: _adam, optim.AdamW: _adam}
