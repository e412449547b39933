"""The engine of little memory: nothing is kept between products.

Each product runs the network once on dual numbers (parameters + eps v) without recording, which gives J v and frees
each layer's activations as it goes, and then once forward and backward as a gradient does: 6 matrix multiplications
per layer against the 3 of a gradient. Going backward through the dual pass itself would save one of them, but autograd
then records the tangents as well, and the peak exceeds that of the cached engine (measured once: 822 against 727 MB,
434 MB this way, on the network of benchmarks/bench_curvature.py with 4096 frames). Operations without a
forward-mode derivative (float32 LSTM on the CPU, weight_norm; more in older releases of torch) are refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from hemstitch.curvature._forward import explained, run_frozen, same_randomness
from hemstitch.curvature._parameters import FlatParameters, Vector


class DualForward:
    """J and J' from a dual forward pass and a gradient pass per product.

    Every pass starts from the random state at construction, so that dropout draws one mask.
    """

    def __init__(self, model: nn.Module, inputs: Any, layout: FlatParameters) -> None:
        self.model, self.inputs, self.layout = model, inputs, layout
        self._names = {id(param): name for name, param in model.named_parameters()}
        self._random = _random_state(layout.device)
        with explained("dual_forward"):
            self.outputs = self.run(record=False)

    def run(self, v: Vector | None = None, *, record: bool = True) -> Tensor:
        """The outputs, with tangent J v inside ``forward_ad.dual_level()`` if ``v`` is given."""
        duals = {} if v is None else {
            self._names[id(param)]: forward_ad.make_dual(param, tangent)
            for param, tangent in zip(self.layout.trainable_params, self.layout.split_trainable(v), strict=True)}
        with same_randomness(self.layout.device):
            _set_random_state(self.layout.device, self._random)
            return run_frozen(self.model, self.inputs, duals, record=record)

    def jvp(self, v: Vector) -> Tensor:
        """J v, in the shape of the outputs."""
        with explained("dual_forward"), forward_ad.dual_level():
            pushed = forward_ad.unpack_dual(self.run(v, record=False)).tangent
        return torch.zeros_like(self.outputs) if pushed is None else pushed

    def vjp(self, w: Tensor) -> Vector:
        """J' w for w in the shape of the outputs."""
        return self.layout.flatten_trainable(
            torch.autograd.grad(self.run(), self.layout.trainable_params, w, allow_unused=True))

    def product(self, v: Vector, output_product: Callable[[Tensor], Tensor]) -> Vector:
        """J' H_L J v."""
        return self.vjp(output_product(self.jvp(v)))


def _random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def _set_random_state(device: torch.device, state: tuple[Tensor, Tensor | None]) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)
