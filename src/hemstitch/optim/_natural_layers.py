"""Layers whose backward pass computes the natural gradient of their parameters.

For y = W x + b on rows x_n with output derivatives y'_n, the gradient is sum_n y'_n [x_n, 1]'. Both sides of each
product are preconditioned by the inverse of their own Fisher matrix (the Kronecker factors of the layer's),
independently:

    [dW | db] = s_in s_out  Y~' X~        X~, s_in from the rows [x_n, 1];  Y~, s_out from the rows y'_n

so ``.grad`` holds the natural gradient and whatever comes after, clipping, accumulation, reduction over workers, any
optimizer, works on it. The derivative handed to the layer below is the plain one, dX = Y' W: preconditioning it too
would multiply the preconditioners of all layers above into it.

What is a row: for ``nn.Linear`` every position of the leading axes; for convolutions every output position, with the
whole window as x (Grosse and Martens 2016 derive this and its assumptions); for a scale per element, y = v * x, the
derivative itself, x_n * y'_n, is the row, and one side is enough.

Reference: Povey et al. 2015. The plain and the natural layer compute the same outputs.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hemstitch.errors import MisuseError
from hemstitch.optim._natural_rows import ChannelRows, WindowRows

Scalar = float | Tensor
"""A float on the CPU; elsewhere a 0-d tensor, which nobody has to wait for."""


class Preconditioner(Protocol):
    """What a layer asks of each side; see `hemstitch.curvature.OnlineNaturalGradient`."""

    def precondition_rows(self, x: Tensor, *, gain: float = 1.0) -> tuple[Tensor, Scalar]:
        """Preconditioned rows, and their scale."""

    def precondition_affine(self, x: Tensor) -> tuple[Tensor, Tensor, Scalar]:
        """The same for [x, 1]: rows, what became of the ones, scale."""


class Context(Protocol):
    """What a layer asks of the `NaturalGradient` that it belongs to."""

    def observe(self, layer: NaturalLayer, rows: torch.Size) -> Tensor | None:
        """Called in the forward pass with the leading axes; returns the mask of valid rows, if one is set."""

    def gain(self) -> float:
        """What output derivatives must be multiplied by to be those of a summed, unscaled loss."""


class NaturalLayer:
    """Stands in for ``layer.forward``; the layer keeps its parameters and their names.

    Attributes:
        layer: the module.
        sides: its preconditioners by name: ``in`` and ``out``, or only ``out``.
        plain: whether to leave the gradient as it is, for the time being.
    """

    kind = ""

    def __init__(self, layer: nn.Module, sides: dict[str, Preconditioner], context: Context) -> None:
        self.layer, self.sides, self.context = layer, sides, context
        self.plain = False

    @torch.compiler.disable  # the backward pass learns as it goes, which no compiled graph can hold
    def __call__(self, input: Tensor) -> Tensor:
        """The layer's outputs."""
        layer, parameters = self.layer, self.parameters()
        if self.plain or not torch.is_grad_enabled() or not any(p.requires_grad for p in parameters):
            return type(layer).forward(layer, input)
        if torch._C._are_functorch_transforms_active():
            raise MisuseError(ONCE)
        device, tensors = input.device.type, (input, *parameters)
        if torch.is_autocast_enabled(device):
            tensors = tuple(t.to(torch.get_autocast_dtype(device)) for t in tensors)
        with without_autocast(device):
            return _WithNaturalGradient.apply(self, self.prepare(tensors[0]), *tensors[1:])

    def parameters(self) -> tuple[Tensor, ...]:
        """Weight and bias, as far as the layer has them."""
        bias = getattr(self.layer, "bias", None)
        return (self.layer.weight,) if bias is None else (self.layer.weight, bias)

    def prepare(self, x: Tensor) -> Tensor:
        """What to do to the input before; differentiated by autograd."""
        return x

    def outputs(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Forward."""
        raise NotImplementedError

    def input_derivative(self, x: Tensor, weight: Tensor, dy: Tensor) -> Tensor:
        """Derivative handed to the layer below."""
        raise NotImplementedError

    def leading(self, x: Tensor, y: Tensor) -> torch.Size:
        """Axes that count the rows."""
        return y.shape[:-1]

    def gradients(self, x: Tensor, dy: Tensor, mask: Tensor | None) -> tuple[Tensor, ...]:
        """Natural gradients of the `parameters`."""
        raise NotImplementedError


ONCE = ("natural gradient can be differentiated once, and not by torch.func: for Hessians, Gauss-Newton products, "
        "per-sample gradients or create_graph=True wrap the computation in `with plain_gradients(model):`")


class _WithNaturalGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rule: NaturalLayer, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        y = rule.outputs(x, weight, bias)
        ctx.rule = rule
        ctx.mask = rule.context.observe(rule, rule.leading(x, y))
        ctx.save_for_backward(x, weight)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise MisuseError(ONCE)
        x, weight = ctx.saved_tensors
        with without_autocast(x.device.type):
            natural = ctx.rule.gradients(x, dy, ctx.mask)  # first, while dy is in the cache
            dx = ctx.rule.input_derivative(x, weight, dy) if ctx.needs_input_grad[1] else None
        return None, dx, *(g.to(weight.dtype) for g in natural)


def without_autocast(device: str) -> AbstractContextManager[Any]:
    """Compute in the types given within."""
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


class NaturalLinear(NaturalLayer):
    """``nn.Linear``."""

    kind = "affine"

    def outputs(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """(..., in) -> (..., out)."""
        return F.linear(x, weight, bias)

    def input_derivative(self, x: Tensor, weight: Tensor, dy: Tensor) -> Tensor:
        """(..., out) -> (..., in)."""
        return dy @ weight

    def gradients(self, x: Tensor, dy: Tensor, mask: Tensor | None) -> tuple[Tensor, ...]:
        """(..., in) and (..., out) -> (out, in) and (out,)."""
        if mask is not None:
            x, dy = x[mask], dy[mask]
        x, dy = (wide(t.reshape(-1, t.shape[-1])) for t in (x, dy))
        if self.layer.bias is None:
            x, scale_in = self.sides["in"].precondition_rows(x)
            dy, scale_out = self.sides["out"].precondition_rows(dy, gain=self.context.gain())
            return (_scaled_product(scale_in * scale_out, dy, x),)
        x, ones, scale_in = self.sides["in"].precondition_affine(x)
        dy, scale_out = self.sides["out"].precondition_rows(dy, gain=self.context.gain())
        scale = scale_in * scale_out
        d_bias = (dy.T @ ones).mul_(scale)  # while the last rows of dy are in the cache
        return _scaled_product(scale, dy, x), d_bias


class NaturalConv(NaturalLayer):
    """``nn.Conv1d`` and ``nn.Conv2d`` without groups: an affine map of the window at each output position.

    The windows, `kernel size` times the input, are never formed: their scores are a convolution with the directions as
    filters, their sums are a convolution's weight gradient, and the preconditioners act on the sum of products.
    """

    kind = "convolution"

    def prepare(self, x: Tensor) -> Tensor:
        """Pad, so that the windows are those of a convolution without padding."""
        if x.dim() != self.layer.weight.dim():
            raise MisuseError("natural gradient expects a batch axis before the channels of a convolution, got shape "
                              f"{tuple(x.shape)}: use x.unsqueeze(0)")
        widths = self.layer._reversed_padding_repeated_twice
        mode = "constant" if self.layer.padding_mode == "zeros" else self.layer.padding_mode
        return F.pad(x, widths, mode) if any(widths) else x

    def outputs(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """(batch, in, position...) -> (batch, out, position...)."""
        convolve = F.conv1d if weight.dim() == 3 else F.conv2d
        return convolve(x, weight, bias, self.layer.stride, 0, self.layer.dilation)

    def input_derivative(self, x: Tensor, weight: Tensor, dy: Tensor) -> Tensor:
        """(batch, out, position...) -> (batch, in, position...)."""
        transpose = torch.nn.grad.conv1d_input if weight.dim() == 3 else torch.nn.grad.conv2d_input
        return transpose(x.shape, weight, dy, self.layer.stride, 0, self.layer.dilation)

    def leading(self, x: Tensor, y: Tensor) -> torch.Size:
        """(batch, position...)."""
        return torch.Size((y.shape[0], *y.shape[2:]))

    def gradients(self, x: Tensor, dy: Tensor, mask: Tensor | None) -> tuple[Tensor, ...]:
        """Rows: all windows of all images."""
        x, dy = wide(x), wide(dy)
        if mask is not None:
            dy = dy * mask.unsqueeze(1)
        windows = WindowRows(self.layer, x, dy.shape, mask)
        derivatives = ChannelRows(dy, windows.shape[0])
        gradient = windows.cross(dy)
        for side, rows in (("in", windows), ("out", derivatives)):
            gain = self.context.gain() if side == "out" else 1.0
            factor, scale = self.sides[side].projection(rows, gain=gain)
            if factor is not None:
                transposed = gradient if side == "in" else gradient.T
                transposed.sub_(transposed @ factor.T @ factor).mul_(scale)
        d_weight = gradient[:, : self.layer.weight[0].numel()].reshape(self.layer.weight.shape)
        return (d_weight,) if self.layer.bias is None else (d_weight, gradient[:, -1])


class NaturalScale(NaturalLayer):
    """A scale per element, y = v * x: the derivative x_n * y'_n is the row."""

    kind = "scale"

    def outputs(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """(..., size) -> (..., size)."""
        return x * weight

    def input_derivative(self, x: Tensor, weight: Tensor, dy: Tensor) -> Tensor:
        """(..., size)."""
        return dy * weight

    def gradients(self, x: Tensor, dy: Tensor, mask: Tensor | None) -> tuple[Tensor, ...]:
        """Sum of the preconditioned rows."""
        products = wide(x * dy if mask is None else (x * dy)[mask])
        rows, scale = self.sides["out"].precondition_rows(
            products.reshape(-1, products.shape[-1]), gain=self.context.gain())
        return (rows.sum(0) * scale,)


def wide(x: Tensor) -> Tensor:
    """At least in float32."""
    return x if x.dtype.itemsize >= 4 else x.float()


def _scaled_product(scale: Scalar, left: Tensor, right: Tensor) -> Tensor:
    """scale left' right; on the CPU without a pass over memory for the scale."""
    if isinstance(scale, Tensor):
        return (left.T @ right).mul_(scale)
    return torch.addmm(left.new_empty(()), left.T, right, beta=0, alpha=scale)
