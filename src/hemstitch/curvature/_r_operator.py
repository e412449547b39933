"""The fastest engine: Pearlmutter's R-operator written by hand for chains of Linear, Conv and pointwise layers.

One pass records each layer's input x and, for pointwise layers, the slope s = phi'(x). Then, with V and c the entries
of v that belong to a layer's weight W and bias b,

    forward    R{W x + b} = W R{x} + V x + c,    R{phi(x)} = s R{x}              gives J v at the outputs
    backward   d W = delta x',  d b = sum delta,  delta <- W' delta,  delta <- s delta      gives J' w

which is 4 matrix multiplications per layer against the 3 of a gradient and runs without autograd's bookkeeping.

The chain is found by watching the model run: every layer must take what the layer before it returned, directly or
through a reshape. Residual connections, functional activations on the way, in-place and other layers are refused.
Memory: one activation per layer; while they are recorded, 1.7 x that of a gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from hemstitch.curvature._forward import run_frozen
from hemstitch.curvature._parameters import FlatParameters, Vector
from hemstitch.errors import MisuseError

_POINTWISE = (nn.Sigmoid, nn.Tanh, nn.ReLU, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Softplus,
              nn.Mish, nn.Hardtanh, nn.ReLU6, nn.Hardswish, nn.Hardsigmoid, nn.Softsign, nn.LogSigmoid, nn.Dropout,
              nn.AlphaDropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.Identity)
_LINEAR = (nn.Flatten, nn.Unflatten, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
_CONVOLUTION = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_Slots = dict[int, Tensor]                                      # id of a parameter -> its part of a flat vector


class _Pointwise:
    """y = phi(x), or a fixed mask on x."""

    def __init__(self, module: nn.Module, inputs: Tensor, outputs: Tensor) -> None:
        (self.slope,) = torch.autograd.grad(outputs.sum(), inputs, retain_graph=True)

    def push(self, tangent: Tensor | None, v: _Slots) -> Tensor | None:
        return None if tangent is None else tangent.view_as(self.slope) * self.slope

    def pull(self, delta: Tensor, result: _Slots, wanted: bool) -> Tensor:
        return delta.view_as(self.slope) * self.slope


class _LocalGraph:
    """A map linear in its input (and, a convolution, in its parameters): J' from autograd, within the layer."""

    def __init__(self, module: nn.Module, inputs: Tensor, outputs: Tensor) -> None:
        self.module, self.inputs = module, inputs.detach().requires_grad_(True)
        self.weight, self.bias = getattr(module, "weight", None), getattr(module, "bias", None)
        with torch.enable_grad():
            self.outputs = module.forward(self.inputs)

    def push(self, tangent: Tensor | None, v: _Slots) -> Tensor | None:
        if self.weight is None:
            return None if tangent is None else self.module.forward(tangent.view_as(self.inputs))
        x, weight, bias = self.inputs.detach(), v.get(id(self.weight)), v.get(id(self.bias))
        result = None if tangent is None else self.module._conv_forward(tangent.view_as(x), self.weight.detach(), None)
        if weight is not None:
            pushed = self.module._conv_forward(x, weight, bias)
            return pushed if result is None else result.add_(pushed)
        if bias is not None:
            result = torch.zeros_like(self.outputs) if result is None else result
            result += bias.view(-1, *[1] * (x.ndim - 2))
        return result

    def pull(self, delta: Tensor, result: _Slots, wanted: bool) -> Tensor | None:
        params = [param for param in (self.weight, self.bias) if param is not None and id(param) in result]
        leaves = [*params, self.inputs] if wanted else params
        if not leaves:
            return None
        grads = torch.autograd.grad(self.outputs, leaves, delta.reshape(self.outputs.shape), retain_graph=True)
        for param, grad in zip(params, grads, strict=False):
            result[id(param)] += grad
        return grads[-1] if wanted else None


class _Affine:
    """y = x W' + b over the last axis."""

    def __init__(self, module: nn.Linear, inputs: Tensor, outputs: Tensor) -> None:
        self.weight, self.bias = module.weight, module.bias
        self.rows = inputs.detach().reshape(-1, module.in_features)

    def push(self, tangent: Tensor | None, v: _Slots) -> Tensor | None:
        weight, bias = v.get(id(self.weight)), v.get(id(self.bias))
        result = None if tangent is None else tangent.reshape(self.rows.shape) @ self.weight.detach().T
        if weight is not None:
            result = self.rows @ weight.T if result is None else result.addmm_(self.rows, weight.T)
        if bias is not None:
            result = bias.expand(len(self.rows), -1).clone() if result is None else result.add_(bias)
        return result

    def pull(self, delta: Tensor, result: _Slots, wanted: bool) -> Tensor | None:
        delta = delta.reshape(-1, self.weight.shape[0])
        if id(self.weight) in result:
            result[id(self.weight)].addmm_(delta.T, self.rows)
        if id(self.bias) in result:
            result[id(self.bias)] += delta.sum(0)
        return delta @ self.weight.detach() if wanted else None


class ROperator:
    """J and J' of a chain of layers, from recorded inputs and slopes."""

    def __init__(self, model: nn.Module, inputs: Any, layout: FlatParameters) -> None:
        if any(param.dtype != layout.dtype for param in layout.params):
            raise _refused(f"the parameters must all be {layout.dtype}")
        self.layout = layout
        calls, outputs = _watch(model, inputs)
        self.outputs = outputs.detach()
        self._layers = [make(*call) for make, *call in _chain(calls, outputs, layout)]

    def jvp(self, v: Vector) -> Tensor:
        """J v, in the shape of the outputs."""
        slots, tangent = self._slots(v), None
        with torch.no_grad():
            for layer in self._layers:
                tangent = layer.push(tangent, slots)
        return torch.zeros_like(self.outputs) if tangent is None else tangent.view_as(self.outputs)

    def vjp(self, w: Tensor) -> Vector:
        """J' w for w in the shape of the outputs."""
        result = torch.zeros(self.layout.numel, dtype=self.layout.dtype, device=self.layout.device)
        slots = self._slots(result)
        with torch.no_grad():
            for layer in reversed(self._layers):
                w = layer.pull(w, slots, wanted=layer is not self._layers[0])
        return result

    def product(self, v: Vector, output_product: Callable[[Tensor], Tensor]) -> Vector:
        """J' H_L J v."""
        return self.vjp(output_product(self.jvp(v)))

    def _slots(self, flat: Tensor) -> _Slots:
        return {id(param): part for param, part in
                zip(self.layout.trainable_params, self.layout.split_trainable(flat), strict=True)}


_Call = tuple[nn.Module, Tensor, Tensor, int]                   # module, input, output, version of the output


def _watch(model: nn.Module, inputs: Any) -> tuple[list[_Call], Tensor]:
    """Run the model and note what every layer took and returned, in order."""
    calls: list[_Call] = []

    def note(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if len(args) != 1 or not isinstance(args[0], Tensor) or not isinstance(output, Tensor):
            raise _refused(f"{type(module).__name__} does not map one tensor to one tensor")
        calls.append((module, args[0], output, output._version))

    leaves = [module for module in model.modules() if not any(module.children())]
    handles = [leaf.register_forward_hook(note) for leaf in leaves]
    try:
        return calls, run_frozen(model, inputs)
    finally:
        for handle in handles:
            handle.remove()


def _chain(calls: list[_Call], outputs: Tensor, layout: FlatParameters) -> list[tuple[Any, nn.Module, Tensor, Tensor]]:
    """The layers from the first with parameters on, each with its class; refuses what is no chain."""
    first = next((k for k, call in enumerate(calls) if any(True for _ in call[0].parameters())), len(calls))
    calls = calls[first:]
    if not calls:
        raise _refused("no layer has parameters")
    layers = [(_layer_class(module), module, taken, returned) for module, taken, returned, _ in calls]
    followers = [taken for _, taken, _, _ in calls[1:]] + [outputs]
    for (module, _, returned, version), follower in zip(calls, followers, strict=True):
        if not _is_reshape(returned, version, follower):
            raise _refused(f"what follows {type(module).__name__} is not its output")
    covered = {id(param) for module, *_ in calls for param in module.parameters()}
    if not covered.issuperset(id(param) for param in layout.trainable_params):
        raise _refused("some parameters belong to no layer of the chain")
    return layers


def _layer_class(module: nn.Module) -> Any:
    if getattr(module, "inplace", False):
        raise _refused(f"{type(module).__name__} works in place")
    if type(module) is nn.Linear:
        return _Affine
    if type(module) in _CONVOLUTION + _LINEAR:
        return _LocalGraph
    if type(module) in _POINTWISE:
        return _Pointwise
    raise _refused(f"{type(module).__name__} is not among Linear, Conv, AvgPool, Flatten and the pointwise layers")


def _is_reshape(returned: Tensor, version: int, follower: Tensor) -> bool:
    """Whether ``follower`` holds the elements of ``returned`` in their order, unchanged and not detached."""
    same = follower is returned or (returned.data_ptr() == follower.data_ptr() and returned.is_contiguous()
                                    and returned.numel() == follower.numel() and follower.is_contiguous())
    return same and follower._version == version and follower.requires_grad == returned.requires_grad


def _refused(reason: str) -> MisuseError:
    return MisuseError(f"engine 'r_operator' is for chains of Linear, Conv and pointwise layers: {reason}. "
                       "Use engine='double_backward'")
