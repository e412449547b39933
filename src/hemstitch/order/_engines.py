"""Many trajectories at once: how one batch moves a whole stack of parameter vectors.

Backward trajectory k applies T_k, ..., T_1, so batch j is due in every trajectory k >= j: with the trajectories
stacked, all n of them cost n sequential steps, not n^2 / 2. An engine takes such a step for plain gradient descent

    theta_k := (1 - h w) theta_k - h grad L_j(theta_k)        h learning rate, w weight decay, for all k in the stack.

:class:`FusedEngine` knows stacks of Linear and pointwise layers and writes the products by hand, in place;
:class:`VmapEngine` takes any model that ``torch.func.vmap`` takes. An engine that cannot serve raises :class:`Refused`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

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
    """Gradients of all trajectories by ``torch.func.vmap``; about three times the loop's speed on small networks.

    Randomness is drawn once a batch for all trajectories, from the batch's seed, as the loop draws it.
    """

    name = "vmap"
    cpu_budget = 64 * 2**20  # bytes; vmap has a high cost per call, many trajectories share it

    def __init__(self, model: nn.Module, objective: Objective, batch: Any):
        self._device = device_of(model)
        self._bound = _Bound(_with_batch_statistics(model), objective)
        self._names = list(trainable(model))
        self._places = _places(model)
        self._probe(model, batch)

    def _probe(self, model: nn.Module, batch: Any) -> None:
        stack = self.stack([{name: p.detach() for name, p in model.named_parameters()}] * 2)
        try:
            self.step(stack, batch, {}, seed=0)
        except (RuntimeError, NotImplementedError, ValueError, TypeError) as error:
            raise Refused(f"torch.func.vmap cannot take this model: {str(error).splitlines()[0]}") from error

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


@dataclass(frozen=True)
class _Pointwise:
    forward: Callable[[Tensor], Tensor]  # may work in place: its input is not used again
    slope: Callable[[Tensor], Tensor]  # the derivative, from the output


_POINTWISE = {
    nn.ReLU: _Pointwise(Tensor.relu_, lambda out: out > 0),
    nn.Tanh: _Pointwise(Tensor.tanh_, lambda out: 1 - out * out),
    nn.Sigmoid: _Pointwise(Tensor.sigmoid_, lambda out: out * (1 - out)),
}


@dataclass(frozen=True)
class _Affine:
    weight: str
    bias: str | None


class FusedEngine:
    """Linear and pointwise layers by batched products in place; at batch size 1 the update is an outer product.

    Weights are kept as (trajectory, in, out): with activations as rows, (trajectory, batch, in), the products forward
    and down and the update then all run along rows. Speed is memory traffic, so on a CPU a few trajectories at a time,
    as many as fit the second-level cache, beat many.
    """

    name = "fused"
    cpu_budget = 2 * 2**20  # bytes; about a core's second-level cache

    def __init__(self, model: nn.Module, objective: Objective, batch: Any):
        if objective.loss is None:
            raise Refused("the loss is not loss(outputs, targets)")
        self._layers = _chain(model)
        self._output_slope = _output_slope(objective.loss)
        if batch[0].dim() != 2 and not self._layers[0] == "flatten":
            raise Refused(f"inputs are {batch[0].dim()}-dimensional, not (batch, features)")
        self._layers = [layer for layer in self._layers if layer != "flatten"]
        self._biases = {layer.bias for layer in self._layers if isinstance(layer, _Affine)}

    def bytes_per_trajectory(self, stack: Parameters) -> int:
        """The parameters: all else is small beside them."""
        return sum(p.nbytes for p in stack.values())

    def stack(self, starts: Sequence[Parameters]) -> Parameters:
        """{name: (trajectory, in, out) or (trajectory, 1, out)}."""
        names = [name for layer in self._layers if isinstance(layer, _Affine)
                 for name in (layer.weight, layer.bias) if name]
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
            if isinstance(layer, _Affine):
                above = delta
                if index:
                    delta = torch.bmm(above, stack[layer.weight].transpose(1, 2))
                _update(layer, stack, values[index], above, rates)
            else:
                delta.mul_(layer.slope(values[index + 1]))


def _forward(layer: _Affine | _Pointwise, stack: Parameters, value: Tensor) -> Tensor:
    if isinstance(layer, _Pointwise):
        return layer.forward(value)
    if layer.bias is None:
        return torch.bmm(value, stack[layer.weight])
    return torch.baddbmm(stack[layer.bias], value, stack[layer.weight])


def _update(layer: _Affine, stack: Parameters, value: Tensor, delta: Tensor, rates: Rates) -> None:
    """W := (1 - h w) W - h h_in' delta, one read and one write of W."""
    if layer.weight in rates:
        lr, decay = rates[layer.weight]
        stack[layer.weight].baddbmm_(value.transpose(1, 2), delta, beta=1 - lr * decay, alpha=-lr)
    if layer.bias in rates:
        lr, decay = rates[layer.bias]
        if decay:
            stack[layer.bias].mul_(1 - lr * decay)
        stack[layer.bias].sub_(delta if delta.shape[1] == 1 else delta.sum(1, keepdim=True), alpha=lr)


def _chain(model: nn.Module) -> list:
    """The model as a chain of Linear and pointwise layers; refused if it is anything else."""
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
    targets = [node.target for node in nodes[1:-1]]
    if len(set(targets)) < len(targets):
        raise Refused("a layer is used twice")
    layers = [_layer(name, model.get_submodule(name), index) for index, name in enumerate(targets)]
    layers = [layer for layer in layers if layer is not None]
    if not any(isinstance(layer, _Affine) for layer in layers) or isinstance(layers[0], _Pointwise):
        raise Refused("the chain does not start with a Linear layer")
    return layers


def _is_hooked(module: nn.Module) -> bool:
    """Whether something outside the layer's class has a hand in its forward or backward."""
    return "forward" in vars(module) or any(
        hooks for key, hooks in vars(module).items() if key.endswith("_hooks") and "state_dict" not in key)


def _layer(name: str, module: nn.Module, index: int) -> Any:
    if type(module) is nn.Linear and type(module.weight) is nn.Parameter:
        return _Affine(f"{name}.weight", None if module.bias is None else f"{name}.bias")
    if type(module) is nn.Identity:
        return None
    if type(module) is nn.Flatten and index == 0 and (module.start_dim, module.end_dim) == (1, -1):
        return "flatten"
    if type(module) in _POINTWISE:
        return _POINTWISE[type(module)]
    raise Refused(f"layer {name!r} is a {type(module).__name__}")


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
