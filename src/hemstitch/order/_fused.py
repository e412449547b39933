"""The engine for feed-forward networks: batched products written by hand, updates in place.

For a layer with input rows x (trajectory, batch, in), weights W (trajectory, in, out) and output derivative d:

    y = b + x W,    d_in = d W',    W := W - h x' d,    b := b - h sum_rows d

one read of the weights forward, one down, and one read and write for the update, which at batch size 1 is an outer
product. All three run along rows in this layout.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import grad, vmap
from torch.nn import functional as F

from hemstitch.order._engines import Rates, Refused
from hemstitch.order._objective import Objective, Parameters


@dataclass(frozen=True)
class _Activation:
    apply: Callable[[Tensor], Tensor]  # in place
    slope: Callable[[Tensor], Tensor]  # the derivative, from the output, in its type


_ACTIVATIONS = {
    nn.ReLU: _Activation(Tensor.relu_, Tensor.sign),
    nn.Tanh: _Activation(Tensor.tanh_, lambda out: 1 - out * out),
    nn.Sigmoid: _Activation(Tensor.sigmoid_, lambda out: out * (1 - out)),
}


@dataclass(frozen=True)
class _Layer:
    weight: str
    bias: str | None
    activation: _Activation | None


class FusedEngine:
    """Gradients of all trajectories through chains of Linear layers, each with ReLU, tanh, sigmoid or nothing.

    Speed is memory traffic, so on a CPU a few trajectories at a time, as many as fit the second-level cache, beat many.
    """

    name = "fused"
    cpu_budget = 2 * 2**20  # bytes; about a core's second-level cache

    def __init__(self, model: nn.Module, objective: Objective, batch: Any):
        if objective.loss is None:
            raise Refused("the loss is not loss(outputs, targets)")
        if not (isinstance(batch, tuple | list) and [isinstance(part, Tensor) for part in batch] == [True, True]):
            raise Refused("batches are not pairs of tensors")
        self._layers, is_flattened = _chain(model)
        if batch[0].dim() != 2 and not is_flattened:
            raise Refused(f"inputs are {batch[0].dim()}-dimensional, not (batch, features)")
        self._output_slope = _output_slope(objective.loss)
        self._num_rows = batch[0].shape[0]
        self._biases = {layer.bias for layer in self._layers}

    def bytes_per_trajectory(self, stack: Parameters) -> int:
        """The parameters, the activations and as much again for derivatives."""
        activations = sum(w.shape[-1] * w.element_size() for name, w in stack.items() if name not in self._biases)
        return sum(p.nbytes for p in stack.values()) + 2 * self._num_rows * activations

    def stack(self, starts: Sequence[Parameters]) -> Parameters:
        """{name: (trajectory, in, out) or (trajectory, 1, out)}."""
        names = [name for layer in self._layers for name in (layer.weight, layer.bias) if name]
        stacked = {name: torch.stack([start[name] for start in starts]) for name in names}
        return {name: value.unsqueeze(1) if name in self._biases else value.transpose(1, 2).contiguous()
                for name, value in stacked.items()}

    def unstack(self, stack: Parameters, index: int) -> Parameters:
        """The parameters of one trajectory, in the model's shapes."""
        return {name: value[index, 0].clone() if name in self._biases else value[index].T.clone(
            memory_format=torch.contiguous_format) for name, value in stack.items()}

    def step(self, stack: Parameters, batch: Any, rates: Rates, seed: int) -> None:
        """Apply the map of ``batch`` to every trajectory of ``stack``, in place."""
        del seed  # nothing random in these layers
        num_trajectories = next(iter(stack.values())).shape[0]
        values = [batch[0].flatten(1).expand(num_trajectories, -1, -1)]
        for layer in self._layers:
            values.append(_forward(layer, stack, values[-1]))
        delta = self._output_slope(values[-1], batch[1])
        for index in reversed(range(len(self._layers))):
            layer = self._layers[index]
            if layer.activation is not None:
                delta.mul_(layer.activation.slope(values[index + 1]))
            below = torch.bmm(delta, stack[layer.weight].mT) if index else delta
            _update(layer, stack, values[index], delta, rates)
            delta = below


def _forward(layer: _Layer, stack: Parameters, value: Tensor) -> Tensor:
    weight = stack[layer.weight]
    value = torch.bmm(value, weight) if layer.bias is None else torch.baddbmm(stack[layer.bias], value, weight)
    return value if layer.activation is None else layer.activation.apply(value)


def _update(layer: _Layer, stack: Parameters, value: Tensor, delta: Tensor, rates: Rates) -> None:
    """theta := (1 - h w) theta - h gradient, at batch size 1 as an outer product."""
    is_single = delta.shape[1] == 1
    if layer.weight in rates:
        lr, decay = rates[layer.weight]
        if is_single and not decay:
            stack[layer.weight].addcmul_(value.mT, delta, value=-lr)
        else:
            stack[layer.weight].baddbmm_(value.mT, delta, beta=1 - lr * decay, alpha=-lr)
    if layer.bias in rates:
        lr, decay = rates[layer.bias]
        if decay:
            stack[layer.bias].mul_(1 - lr * decay)
        stack[layer.bias].sub_(delta if is_single else delta.sum(1, keepdim=True), alpha=lr)


def _chain(model: nn.Module) -> tuple[list[_Layer], bool]:
    """The model as Linear layers, each with at most one activation, and whether a Flatten comes first."""
    hooked = [name or "the model" for name, module in model.named_modules() if _is_hooked(module)]
    if hooked:
        raise Refused(f"{hooked[0]} has hooks or a forward of its own")
    try:
        nodes = list(fx.symbolic_trace(model).graph.nodes)
    except Exception as error:  # whatever a model's forward raises when traced
        raise Refused(f"the forward cannot be traced: {error}") from error
    for before, node in pairwise(nodes):
        if [*node.all_input_nodes] != [before]:
            raise Refused(f"the model is no plain chain of layers (at {node.name!r})")
    if any(node.op != "call_module" for node in nodes[1:-1]):
        raise Refused("the forward calls functions, not only layers")
    names = [node.target for node in nodes[1:-1]]
    if len(set(names)) < len(names):
        raise Refused("a layer is used twice")
    modules = {name: model.get_submodule(name) for name in names}
    own = dict(model.named_parameters())
    if any(f"{name}.{key}" not in own for name, module in modules.items() for key, _ in module.named_parameters()):
        raise Refused("layers share a parameter")
    is_flattened = bool(names) and _is_flatten(modules[names[0]])
    layers: list[_Layer] = []
    for name, module in list(modules.items())[is_flattened:]:
        if type(module) is nn.Linear and type(module.weight) is nn.Parameter:
            layers.append(_Layer(f"{name}.weight", None if module.bias is None else f"{name}.bias", None))
        elif type(module) in _ACTIVATIONS and layers and layers[-1].activation is None:
            layers[-1] = replace(layers[-1], activation=_ACTIVATIONS[type(module)])
        elif type(module) is not nn.Identity:
            raise Refused(f"layer {name!r}, a {type(module).__name__}, does not fit Linear, activation, Linear, ...")
    if not layers:
        raise Refused("there are no layers")
    return layers, is_flattened


def _is_hooked(module: nn.Module) -> bool:
    """Whether something outside the layer's class has a hand in its forward or backward."""
    return "forward" in vars(module) or any(
        hooks for key, hooks in vars(module).items() if key.endswith("_hooks") and "state_dict" not in key)


def _is_flatten(module: nn.Module) -> bool:
    return type(module) is nn.Flatten and (module.start_dim, module.end_dim) == (1, -1)


def _output_slope(loss: Any) -> Callable[[Tensor, Tensor], Tensor]:
    """d loss / d outputs for outputs (trajectory, batch, output): by hand for the two common losses, else by vmap."""
    generic = vmap(grad(loss), in_dims=(0, None))
    if loss is F.mse_loss or (type(loss) is nn.MSELoss and loss.reduction == "mean"):
        return lambda out, y: (out - y).mul_(2 / y.numel()) if y.shape == out.shape[1:] else generic(out, y)
    if loss is F.cross_entropy:
        loss = nn.CrossEntropyLoss()
    if type(loss) is nn.CrossEntropyLoss and (loss.weight, loss.reduction, loss.label_smoothing) == (None, "mean", 0.0):
        ignored = loss.ignore_index
        return lambda out, y: _softmax_slope(out, y, ignored) if y.dim() == 1 else generic(out, y)
    return generic


def _softmax_slope(out: Tensor, y: Tensor, ignored: int) -> Tensor:
    kept = y != ignored
    slope = out.softmax(-1)
    slope.sub_(F.one_hot(y.where(kept, 0), out.shape[-1]))
    return slope.mul_((kept.to(slope.dtype) / kept.sum()).unsqueeze(-1))
